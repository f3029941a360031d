"""A corpus and an output lie apart."""

import pytest

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus.location import check_apart
from scalselect_ray.errors import OutputError
from scalselect_ray.io import storage


def corpus_of(path):
    return CorpusConfig(sources=[SourceConfig(name="s", paths=[path])])


TOGETHER = [
    ("/data", "/data"),
    ("/data", "/data/out"),
    ("/data/", "/data/a/b/out"),
    ("/data/**/*.json", "/data/a/out"),
    ("/data/*/*.json", "/data/out"),
    ("/out/data/x.json", "/out"),
    ("/out/*.json", "/out"),
    ("s3://b/data", "s3://b/data/out"),
    ("s3://b/data/**", "s3://b/data/x/out"),
    ("s3://b/out/data/*.json", "s3://b/out"),
    ("s3://b", "s3://b/out"),
]
APART = [
    ("/data", "/data-out"),
    ("/data/x.json", "/data/out"),
    ("/data/*.json", "/data/out"),
    ("/data/*", "/data/out"),
    ("/data/*", "/data/a/out"),
    ("/output/x.json", "/out"),
    ("s3://b/data", "s3://b/data2"),
    ("s3://b/data", "s3://c/data/out"),
    ("s3://b/data/*.json", "s3://b/data/out"),
    ("/b/data", "s3://b/data"),
]


@pytest.mark.parametrize(("path", "output"), TOGETHER)
def test_an_output_below_a_corpus_or_a_corpus_below_an_output_is_refused(path, output, monkeypatch):
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    with pytest.raises(OutputError, match=r"\(source 's'\): the next run would read as samples"):
        check_apart(output, corpus_of(path))


@pytest.mark.parametrize(("path", "output"), APART)
def test_neighbours_are_fine(path, output, monkeypatch):
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    check_apart(output, corpus_of(path))


@pytest.mark.parametrize("path", ["data", "link", "link/**/*.json", "link/*/*/*.json"])
def test_links_are_followed(path, tmp_path):
    (tmp_path / "data" / "x").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for output in ("data/x/out", "link/x/out"):
        with pytest.raises(OutputError, match="would read as samples"):
            check_apart(str(tmp_path / output), corpus_of(str(tmp_path / path)))


def test_a_folder_of_the_corpus_may_have_signs_of_a_pattern(tmp_path):
    (tmp_path / "d[1]").mkdir()
    with pytest.raises(OutputError, match="would read as samples"):
        check_apart(str(tmp_path / "d[1]" / "out"), corpus_of(str(tmp_path / "d[1]")))
    check_apart(str(tmp_path / "d1" / "out"), corpus_of(str(tmp_path / "d[1]")))
