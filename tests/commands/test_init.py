"""A config from a look at a corpus."""

import json
from pathlib import Path

import mixed_corpus
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN

from scalselect_ray.cli import main
from scalselect_ray.config_files import load_config
from scalselect_ray.corpus import Sample, list_files, load_image, plan_file, read_slices
from scalselect_ray.errors import ConfigError
from scalselect_ray.io import storage
from scalselect_ray.testing import object_store

TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
PICTURE = next(iter(GOLDEN.glob("llava/images/*"))).read_bytes()


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_the_config_of_a_mixed_corpus_reads_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, rows = mixed_corpus.make(tmp_path)
    out = tmp_path / "made" / "config.yaml"
    paths = [str(tmp_path / "list"), str(tmp_path / "*.parquet"), str(tmp_path / "shard.tar")]
    assert main(["init", *paths, "--out", str(out), "--model", str(GOLDEN / "llava" / "model"), "--json"]) == 0
    seen = {item["name"]: item for item in json.loads(capsys.readouterr().out)["sources"]}
    config = load_config(str(out))
    assert [source.paths for source in config.corpus.sources] == [[path] for path in paths]
    listed, parquet, tar = seen.values()
    assert (listed["formats"], parquet["formats"], tar["formats"]) == (["JSON list"], ["Parquet"], ["WebDataset tar"])
    assert (set(listed["layouts"]), set(parquet["layouts"]), set(tar["layouts"])) == (
        {"conversations"},
        {"messages"},
        {"conversations"},
    )
    assert (set(listed["images"]), set(parquet["images"]), set(tar["images"])) == (
        {"paths", "data URIs"},
        {"bytes"},
        {"bytes"},
    )
    assert config.corpus.sources[0].image_root == str(tmp_path / "list")
    assert config.extractor.model == str(GOLDEN / "llava" / "model")
    assert config.output == str(tmp_path / "made" / "selection")
    for name, item in zip(("list", "parquet", "tar"), seen.values(), strict=True):
        known = sum(source == name for source, _ in rows)
        assert item["rows"] == pytest.approx(known, rel=0.1)
    assert main(["plan", str(out), "--json"]) == 0  # and the job can use it
    planned = json.loads(capsys.readouterr().out)
    assert planned["rows"] == len(rows)


@pytest.mark.parametrize(
    ("picture", "named", "root"),
    [
        ("corpus/images/a/1.png", "a/1.png", "corpus/images"),
        ("corpus/a/1.png", "a/1.png", "corpus"),
        ("images/1.png", "1.png", "images"),
        ("1.png", "1.png", "."),
        ("elsewhere/1.png", "{folder}/elsewhere/1.png", "elsewhere"),
    ],
)
def test_the_image_root_is_found_where_images_usually_lie(tmp_path: Path, picture: str, named: str, root: str):
    (tmp_path / picture).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / picture).write_bytes(PICTURE)
    (tmp_path / "corpus").mkdir(exist_ok=True)
    row = {"id": 1, "image": named.format(folder=tmp_path), "conversations": TURNS}
    (tmp_path / "corpus" / "train.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["init", str(tmp_path / "corpus" / "train.jsonl"), "--out", str(tmp_path / "c.yaml")]) == 0
    source = load_config(str(tmp_path / "c.yaml"), ["extractor.model=a/b"]).corpus.sources[0]
    assert (source.name, source.image_root) == ("train", str((tmp_path / root).resolve()))


def test_images_that_are_nowhere_are_said_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"image": f"coco/{number}.jpg", "conversations": TURNS} for number in range(100)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert main(["init", str(tmp_path / "train.json"), "--out", str(tmp_path / "c.yaml")]) == 0
    assert "8 of 8 images are in none of the places that were tried" in errors(capsys)
    assert "None of the images was found" in (tmp_path / "c.yaml").read_text()
    with pytest.raises(ConfigError, match=r"extractor\.model is missing"):  # rather than a model that nobody chose
        load_config(str(tmp_path / "c.yaml"))


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "train.json").write_text(json.dumps([{"image": "1.jpg", "conversations": TURNS}]))
    (tmp_path / "c.yaml").write_text("mine")
    assert main(["init", str(tmp_path / "train.json"), "--out", str(tmp_path / "c.yaml")]) == 2
    assert "already exists and was left as it is" in errors(capsys)
    assert (tmp_path / "c.yaml").read_text() == "mine"


def test_what_cannot_be_read_is_refused_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "other.json").write_text(json.dumps([{"price": 7, "title": "That."}]))
    (tmp_path / "good.json").write_text(json.dumps([{"image": "1.jpg", "conversations": TURNS}]))
    out = tmp_path / "c.yaml"
    for arguments, message in (
        (["missing.json"], "nothing matches"),
        (["empty.json"], "the file is empty"),
        (["none.json"], "hold no rows"),
        (["broken.parquet"], "broken Parquet"),
        (["other.json"], "fields of the first row: price, title. A row has one of messages"),
        (["good.json", "--model", str(tmp_path)], "no config.json in this folder"),
        (["good.json", "--model", "nowhere"], "no such folder"),
    ):
        path, *more = arguments
        assert main(["init", str(tmp_path / path), *more, "--out", str(out)]) == 2
        assert message in errors(capsys)
        assert not out.exists()


def test_rows_of_large_and_compressed_files_are_guessed_or_said_to_be_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import gzip

    rows = [{"image": {"bytes": PICTURE, "path": None}, "conversations": TURNS} for _ in range(300)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=50)
    lines = "".join(json.dumps({"image": f"{number:03d}.jpg", "conversations": TURNS}) + "\n" for number in range(1000))
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.jsonl", "c.jsonl.gz")]
    assert main(["init", *paths, "--out", str(tmp_path / "c.yaml"), "--json"]) == 0
    assert [item["rows"] for item in json.loads(capsys.readouterr().out)["sources"]] == [300, 1000, None]


def test_sources_of_one_name_get_names_that_differ(tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.json").write_text(json.dumps([{"image": "1.jpg", "conversations": TURNS}]))
    assert (
        main(
            [
                "init",
                str(tmp_path / "a" / "train.json"),
                str(tmp_path / "b" / "train.json"),
                "--out",
                str(tmp_path / "c.yaml"),
            ]
        )
        == 0
    )
    config = load_config(str(tmp_path / "c.yaml"), ["extractor.model=a/b"])
    assert [source.name for source in config.corpus.sources] == ["train", "train-2"]


def test_a_corpus_in_a_bucket(s3: object_store.ObjectStore):
    s3.clear()
    line = json.dumps({"image": "a/1.png", "conversations": TURNS}) + "\n"
    storage.write("s3://bucket/corpus/json/train.jsonl", line.encode())
    storage.write("s3://bucket/corpus/images/a/1.png", PICTURE)
    assert main(["init", "s3://bucket/corpus/json/*.jsonl", "--out", "s3://bucket/job/config.yaml"]) == 0
    config = load_config("s3://bucket/job/config.yaml", ["extractor.model=a/b"])
    source = config.corpus.sources[0]
    assert (source.name, source.image_root) == ("json", "s3://bucket/corpus/images")
    assert config.output == "s3://bucket/job/selection"


TEXT_ONLY = {"conversations": [{**TURNS[0], "value": "Hi"}, TURNS[1]]}


@pytest.mark.parametrize("form", ["files", "jsonl", "json", "parquet"])
def test_images_are_seen_behind_many_rows_without_any(tmp_path: Path, form: str):
    """They stand together in many corpora: a few files or rows of the beginning tell nothing."""
    (tmp_path / "images" / "coco").mkdir(parents=True)
    (tmp_path / "images" / "coco" / "a.png").write_bytes(PICTURE)
    row = {"image": "coco/a.png", "conversations": TURNS}
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [TEXT_ONLY] * 300 + [row] * 300
    if form == "files":
        for number in range(9):
            (corpus / f"{number}.jsonl").write_text(json.dumps(TEXT_ONLY if number < 3 else row) + "\n")
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, pa.Table.from_pylist([row]).schema), corpus / "a.parquet")
    else:
        (corpus / f"a.{form}").write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    assert main(["init", str(corpus), "--out", str(tmp_path / "c.yaml")]) == 0
    source = load_config(str(tmp_path / "c.yaml"), ["extractor.model=a/b"]).corpus.sources[0]
    assert source.image_root == str(tmp_path / "images")


def test_links_in_an_image_root_are_said_and_where_they_lead_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "disk" / "coco" / "train").mkdir(parents=True)
    (tmp_path / "disk" / "coco" / "train" / "a.png").write_bytes(PICTURE)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "coco").symlink_to(tmp_path / "disk" / "coco")
    row = {"image": "coco/train/a.png", "conversations": TURNS}
    (tmp_path / "data" / "train.json").write_text(json.dumps([row]))
    assert main(["init", str(tmp_path / "data" / "train.json"), "--out", str(tmp_path / "c.yaml")]) == 0
    config = load_config(str(tmp_path / "c.yaml"), ["extractor.model=a/b"])
    assert config.corpus.sources[0].image_root == str(tmp_path / "data" / "images")
    assert config.corpus.image_links == [str(tmp_path / "disk" / "coco")]
    assert f"links in the image root lead to {tmp_path / 'disk' / 'coco'}" in errors(capsys)
    (sample,) = next(rows for _, rows in read_slices(plan_file(list_files(config.corpus)[0])))
    assert isinstance(sample, Sample)
    assert load_image(sample.images[0]).size


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {
                "pic": "a.png",
                "dialog": [{"speaker": "user", "utterance": "What?"}, {"speaker": "bot", "utterance": "A"}],
            },
            {"images": "pic", "messages": "dialog", "role_tag": "speaker", "content_tag": "utterance"},
        ),
        (
            {"pic": ["a.png"], "dialog": [{"who": "Q", "text": "What?"}, {"who": "A", "text": "A cat."}]},
            {
                "images": "pic",
                "messages": "dialog",
                "role_tag": "who",
                "content_tag": "text",
                "user_tag": "Q",
                "assistant_tag": "A",
            },
        ),
        (
            {"image": "a.png", "talk": json.dumps(TURNS), "system_message": "Be brief."},
            {"messages": "talk", "system": "system_message"},
        ),
        ({"image_path": "a.png", "conversations": TURNS}, {"images": "image_path"}),
        (
            {"img": "a.png", "Question": "What?", "Answer": "A cat.", "lang": "en"},
            {"images": "img", "prompt": "Question", "response": "Answer"},
        ),
        ({"image": "a.png", "alt_text": "a cat"}, {"caption": "alt_text"}),
    ],
)
def test_names_of_their_own_are_recognised_and_written(tmp_path: Path, row: dict, columns: dict):
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "train.jsonl").write_text((json.dumps(row) + "\n") * 3)
    assert main(["init", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "c.yaml")]) == 0
    config = load_config(str(tmp_path / "c.yaml"), ["extractor.model=a/b"])
    written = config.corpus.sources[0].columns
    assert {name: written.get(name) for name in columns} == columns
    for _, rows in read_slices(plan_file(list_files(config.corpus)[0])):
        assert [type(sample) for sample in rows] == [Sample] * 3


def test_a_picture_in_a_row_is_written_into_no_comment(tmp_path: Path):
    import base64

    row = {"image": base64.b64encode(PICTURE).decode(), "conversations": TURNS}
    (tmp_path / "train.jsonl").write_text((json.dumps(row) + "\n") * 3)
    assert main(["init", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "c.yaml")]) == 0
    written = (tmp_path / "c.yaml").read_text()
    assert "images: base64" in written
    assert max(map(len, written.splitlines())) < 400
