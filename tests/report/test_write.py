"""Where a page may be written: in the place of a file, and of nothing else."""

import os
import socket
from pathlib import Path

import pytest

from scalselect_ray.errors import OutputError
from scalselect_ray.io import storage
from scalselect_ray.report.write import page_uri


def make(kind: str, path: Path) -> str:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))  # the whole path may be too long for a socket
    elif kind == "link to a device":
        path.symlink_to("/dev/full")
    elif kind == "device":
        return "/dev/full"
    elif kind == "below a file":
        path.write_text("mine")
        return str(path / "page.html")
    elif kind == "a folder by its slash":
        return f"{path}/"
    return str(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("folder", "is a folder"),
        ("a folder by its slash", "is a folder"),
        ("pipe", "no plain file"),
        ("socket", "no plain file"),
        ("device", "no plain file"),
        ("link to a device", "no plain file"),
        ("below a file", "is no folder"),
    ],
)
def test_a_page_replaces_nothing_but_a_file(kind, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = make(kind, tmp_path / "x")
    before = os.lstat(out.rstrip("/")) if kind not in ("below a file", "a folder by its slash") else None
    with pytest.raises(OutputError, match=words):
        page_uri(out)
    assert before is None or os.lstat(out).st_mode == before.st_mode


def test_a_new_file_and_an_old_one_may_be_written(tmp_path):
    assert page_uri(f"file://{tmp_path}/new/page.html") == f"{tmp_path}/new/page.html"
    (tmp_path / "page.html").write_text("old")
    assert page_uri(str(tmp_path / "page.html")) == f"{tmp_path}/page.html"


def test_a_folder_of_a_store_is_no_page():
    storage.write("memory://pages/folder/a.html", b"")
    with pytest.raises(OutputError, match="is a folder"):
        page_uri("memory://pages/folder")
    assert page_uri("memory://pages/folder/a.html") == "memory://pages/folder/a.html"
