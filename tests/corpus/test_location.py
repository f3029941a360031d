"""A corpus and an output lie apart."""

from contextlib import nullcontext

import pytest

from scalselect_ray import redaction
from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus.location import check_apart, check_told
from scalselect_ray.errors import ConfigError, OutputError
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


@pytest.mark.parametrize(
    ("field", "value", "is_told"),
    [
        ("paths", ["s3://b/hunter2hunter2/x.json"], True),
        ("paths", ["/a.json", "https://host/hunter2hunter2"], True),
        ("name", "of hunter2hunter2", True),
        ("image_root", "s3://b/hunter2hunter2", True),
        ("paths", ["https://me:hunter2hunter2@host/x.json", "https://host/x.json?sig=hunter2hunter2"], False),
        ("paths", ["s3://b/hunter2/x.json"], False),
    ],
)
def test_a_secret_in_what_samples_are_told_by_is_refused(field, value, is_told, monkeypatch):
    monkeypatch.setattr(redaction, "_hidden", set())
    redaction.hide_environment("STORE_SECRET", "hunter2hunter2")
    source = SourceConfig(**{"name": "s", "paths": ["/x.json"], field: value})
    with pytest.raises(ConfigError) if is_told else nullcontext() as raised:
        check_told(CorpusConfig(sources=[source]))
    if raised is not None:
        assert f"corpus.sources.0.{field}" in str(raised.value)
        assert "hunter2" not in str(raised.value)


def test_the_place_of_a_file_that_is_there_is_no_secret(monkeypatch, tmp_path):
    monkeypatch.setattr(redaction, "_hidden", set())
    redaction.hide_environment("TOKENIZED_DATA", str(tmp_path))
    check_told(corpus_of(f"{tmp_path}/x.json"))
