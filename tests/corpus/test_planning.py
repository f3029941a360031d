"""What the paths of a corpus name, and what is said of the rest."""

import json
from pathlib import Path

import pytest

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import list_corpus
from scalselect_ray.corpus.location import check_links
from scalselect_ray.corpus.planning import passed_over_text
from scalselect_ray.errors import CorpusError, OutputError


def corpus(*paths: Path | str) -> CorpusConfig:
    return CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path) for path in paths])])


@pytest.fixture
def folder(tmp_path) -> Path:
    names = ("a.jsonl", "B.JSON", "images/0.jpg", "images/1.JPG", "x.csv", "sub/c.Parquet", "_tmp/d.jsonl", "_SUCCESS",
             "dataset_info.json", "00000_stats.json")  # fmt: skip
    for name in names:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"id": name}))
    return tmp_path / "corpus"


def test_a_source_knows_what_it_passed_over(folder):
    found = list_corpus(corpus(folder))
    assert [file.file.uri.removeprefix(f"{folder}/") for file in found.files] == ["B.JSON", "a.jsonl", "sub/c.Parquet"]
    assert found.passed_over == {
        "s": {".jpg": 2, ".csv": 1, ".json": 2, "without a suffix": 1, "hidden folder _tmp": 1}
    }
    assert passed_over_text(found.passed_over["s"]) == (
        "passed over: 2 .jpg, 2 .json, 1 .csv, 1 hidden folder _tmp, 1 without a suffix"
    )
    assert list_corpus(corpus(folder / "a.jsonl")).passed_over == {}
    assert passed_over_text({}) == ""


def test_what_is_passed_over_is_kept_short(folder):
    for number in range(300):
        (folder / f"x.k{number}").touch()
    found = list_corpus(corpus(folder)).passed_over["s"]
    assert len(found) == 101
    assert sum(found.values()) == 307
    text = passed_over_text(found)
    assert text.count(",") == 12
    assert text.endswith("293 of other kinds")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "nothing matches PATH;"),
        ("*.tar", "nothing matches PATH;"),
        ("{a,z,y}.jsonl", "z.jsonl (PATH also names 1 more that are not there)"),
        ("*.csv", "nothing that PATH names is a corpus file; passed over: 1 .csv. Corpora end in .json"),
        ("su*", "nothing that PATH names is a corpus file; passed over: 1 folder sub (end a path with /** to read"),
        ("images", "nothing that PATH names is a corpus file; passed over: 2 .jpg"),
    ],
)
def test_a_path_that_names_nothing_is_an_error_that_says_what_is_there(path, said, folder):
    with pytest.raises(CorpusError) as raised:
        list_corpus(corpus(folder / "a.jsonl", folder / path))
    assert said.replace("PATH", str(folder / path)) in str(raised.value)


def test_a_file_that_is_named_outright_is_taken_whatever_it_is_called(folder):
    found = list_corpus(corpus(folder / "x.csv", folder / "_tmp" / "d.jsonl", folder / "dataset_info.json"))
    assert len(found.files) == 3


@pytest.mark.parametrize("output", ["far/out", "far", "."])
def test_an_output_where_a_link_of_the_corpus_leads_is_refused(output, folder, tmp_path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "a.jsonl").write_text("{}")
    (folder / "link").symlink_to(tmp_path / "far")
    found = list_corpus(corpus(folder))
    with pytest.raises(OutputError, match="where a link of the corpus leads"):
        check_links(str(tmp_path / output), found)
    check_links(str(tmp_path / "elsewhere"), found)
    check_links(str(tmp_path / output), list_corpus(corpus(folder / "*.jsonl")))
