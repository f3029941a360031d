"""Files by URI."""

import errno
import os

import pytest

from scalselect_ray.errors import ConfigError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.io.listing import expand
from scalselect_ray.redaction import redact


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://bucket{tmp_path}"


def test_written_files_are_found(root):
    for name in ("b.json", "a.json", "c.txt"):
        storage.write(f"{root}/x/{name}", name.encode())
    assert storage.list_names(f"{root}/x") == ["a.json", "b.json", "c.txt"]
    assert [file.uri.rpartition("/")[2] for file in expand(f"{root}/x/*.json").files] == ["a.json", "b.json"]
    assert storage.read_bytes(f"{root}/x/a.json", 0, 3) == b"a.j"
    assert expand(f"{root}/nowhere").files == []
    assert storage.list_folders(root) == ["x"]


def test_a_changed_file_has_another_version(tmp_path):
    path = str(tmp_path / "a")
    storage.write(path, b"1")
    os.utime(path, (1, 1))
    before = storage.stat(path)
    storage.write(path, b"2")
    assert storage.stat(path).version != before.version


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    storage.write(str(tmp_path / "a"), b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write(str(tmp_path / "a"), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_secrets_are_redacted():
    text = redact("https://user:pass@host/a?X-Amz-Signature=abc&part=2 s3://b/k?token=t")
    assert text == "https://***@host/a?X-Amz-Signature=***&part=2 s3://b/k?token=***"
    azure = "abfs://container@account.dfs.core.windows.net/a"
    assert redact(azure) == azure, "what stands before the @ is a place"


def test_unknown_scheme_names_the_cure():
    with pytest.raises(ConfigError, match="known schemes"):
        storage.read_bytes("nosuch://bucket/a")


def break_off(uri):
    with storage.open_write(uri) as stream:
        stream.write(bytes(40 << 20))
        raise ValueError("it broke")


def test_what_breaks_off_while_it_is_written_is_not_there(tmp_path, s3):
    s3.clear()
    for uri in (str(tmp_path / "a" / "b"), "s3://bucket/streamed/b"):
        with pytest.raises(ValueError, match="broke"):
            break_off(uri)
        assert expand(uri).files == []
    assert list(tmp_path.rglob("*.tmp")) == []
    fs = storage.filesystem("s3://bucket")[0]
    assert fs.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []


@pytest.mark.parametrize("size", [0, 5, 70 << 20])
def test_what_is_streamed_is_there_in_the_end(size, tmp_path, s3):
    s3.clear()
    block = bytes(range(256)) * 4096
    for uri in (str(tmp_path / "b"), f"s3://bucket/streamed/{size}"):
        with storage.open_write(uri) as stream:
            for start in range(0, size, len(block)):
                stream.write(block[: min(len(block), size - start)])
            assert not storage.exists(uri)
        assert storage.stat(uri).size == size
        assert storage.read_bytes(uri) == (block * 70)[:size]
    storage.delete_folder("s3://bucket/streamed")
    assert expand("s3://bucket/streamed").files == []


def test_an_interruption_is_not_tried_again():
    calls = []

    def call():
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.patiently("s3://bucket/x", call)
    assert len(calls) == 1


def test_the_first_bytes_of_an_object(tmp_path, s3):
    for root in (str(tmp_path), "s3://bucket/start"):
        storage.write(f"{root}/empty", b"")
        storage.write(f"{root}/a", b"abc")
        assert [
            storage.read_start(f"{root}/{name}", size) for name, size in (("empty", 5), ("a", 2), ("a", 3), ("a", 9))
        ] == [
            b"",
            b"ab",
            b"abc",
            b"abc",
        ]
        with pytest.raises(FileNotFoundError):
            storage.read_start(f"{root}/none", 5)


def test_a_link_to_nothing_hides_no_other_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{}")
    (tmp_path / ".#a.jsonl").symlink_to("somebody@somewhere.1234")
    assert [file.uri for file in expand(str(tmp_path)).files] == [str(tmp_path / "a.jsonl")]


def tree(folder):
    return [file.uri.replace(":///", "://") for file in storage.list_tree(folder)]


ODD = ["sel[1]", "a*", "b?", "[!x]", "**", "{a,b}", "a b", "%41", "#x"]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_of_any_name_is_listed_and_removed_as_it_is(root, name):
    """Beside it lie folders that its name matches as a pattern."""
    others = [f"{root}/{other}/x/file" for other in ("sel1", "ab", "bx", "y", "a", "b", "A")]
    for uri in others:
        storage.write(uri, b"")
    mine = [f"{root}/{name}/file", f"{root}/{name}/x/file", f"{root}/{name}/x/[0]"]
    for uri in mine:
        storage.write(uri, b"1")
    assert tree(f"{root}/{name}") == sorted(mine)
    storage.delete(mine[1:2])
    assert tree(f"{root}/{name}") == sorted([mine[0], mine[2]])
    storage.delete_folder(f"{root}/{name}")
    assert storage.list_tree(f"{root}/{name}") == []
    assert all(map(storage.exists, others))


def test_a_folder_that_is_not_there_has_no_tree(root):
    storage.write(f"{root}/file", b"")
    assert storage.list_tree(f"{root}/nowhere") == []
    assert storage.list_tree(f"{root}/file") == []


def test_a_folder_that_can_be_written_is_left_as_it_is(root):
    storage.write(f"{root}/x/file", b"1")
    storage.check_folder(f"{root}/x")
    storage.check_folder(f"{root}/new")
    assert tree(root) == [f"{root}/x/file"]


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_a_file_is_no_folder_to_write_to(root, below):
    storage.write(f"{root}/file", b"1")
    if root.startswith("/") or not below:
        with pytest.raises(OutputError, match="choose another place"):
            storage.check_folder(f"{root}/file{below}")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_is_read_only_now_is_told_before_work(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, "_write_here", refuse)
    with pytest.raises(OutputError, match=r"no permission to write there|[Rr]ead-only"):
        storage.check_folder(str(tmp_path))
