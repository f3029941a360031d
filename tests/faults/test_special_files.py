"""FIFOs, sockets and devices among the files of a corpus and its images: nobody opens them, nobody waits for them."""

import io
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import (
    Reason,
    Reject,
    Sample,
    SampleRejectedError,
    fetched_images,
    list_files,
    load_image,
    plan_file,
    read_slices,
    reading_units,
)
from scalselect_ray.corpus.images import resolver
from scalselect_ray.io import storage

ROW = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}
KINDS = {"fifo": "FIFO", "link to a fifo": "FIFO", "socket": "socket", "device": "character device"}


@pytest.fixture(autouse=True)
def never_waits() -> Iterator[None]:
    """A blocked open ends the test."""

    def give_up(*_: object) -> None:
        raise TimeoutError("it was opened, and is waited for")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened or read."""
    found: list[str] = []
    for name in ("open_read", "open_random", "read_bytes", "read_start", "read_inside"):
        real = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda uri, *a, real=real: found.append(uri) or real(uri, *a))
    return found


def make(kind: str, path: Path) -> None:
    if kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # its name must be short
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe"))


@pytest.mark.parametrize("suffix", ["json", "jsonl", "json.gz", "jsonl.gz", "parquet", "tar", "tar.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_corpus_it_is_one_reject_and_never_opened(kind, suffix, tmp_path, opened):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW))
    make(kind, tmp_path / f"b.{suffix}")
    for paths in ([str(tmp_path)], [str(tmp_path / "a.jsonl"), str(tmp_path / f"b.{suffix}")]):
        files = list_files(CorpusConfig(sources=[SourceConfig(name="s", paths=paths)], slice_rows=5))
        units = [unit for file in files for unit in reading_units(plan_file(file))]
        rows = [row for unit in units for _, some in read_slices(unit) for row in some]
        assert [type(row) for row in rows] == [Sample, Reject]
        assert rows[1].reason == Reason.UNREADABLE_FILE
        assert f"b.{suffix}: it is a {KINDS[kind]} and not a file" in rows[1].message
    assert not [uri for uri in opened if "b." in uri]


@pytest.mark.parametrize("kind", KINDS)
def test_as_an_image_it_is_a_reject_and_never_opened(kind, tmp_path, opened):
    outside = kind == "device"  # where the link leads
    make(kind, tmp_path / "b.png")
    resolve = resolver("/" if outside else str(tmp_path))
    with pytest.raises(SampleRejectedError) as raised:
        fetched_images([resolve(str(tmp_path / "b.png"))])
    assert raised.value.reason == Reason.IMAGE_MISSING
    sink = io.BytesIO()
    Image.new("RGB", (3, 2)).save(sink, "PNG")
    (tmp_path / "a.png").write_bytes(sink.getvalue())
    assert load_image(resolve(str(tmp_path / "a.png"))).size == (3, 2)
    assert set(opened) == {str(tmp_path / "a.png")}
