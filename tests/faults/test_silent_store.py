"""A store that accepts a connection and never answers."""

import socket
import threading
import time

import fsspec
import pytest
import s3fs
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.errors import StorageError
from scalselect_ray.io import answers, listing, storage

MODEL = GOLDEN / "llava" / "model"


@pytest.fixture
def silent(monkeypatch):
    """S3 at a socket that takes what is sent and says nothing; the limits are short."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setattr(answers, "ONE_S", 1.0)
        monkeypatch.setattr(answers, "MANY_S", 1.0)
        monkeypatch.setattr(answers, "SAID_S", 0.2)
        monkeypatch.setattr(storage, "_PATIENCE", storage._PATIENCE.copy(stop=lambda state: True))
        s3fs.S3FileSystem.clear_instance_cache()
        yield
    s3fs.S3FileSystem.clear_instance_cache()


VERBS = [
    ["run", "CONFIG"],
    ["plan", "CONFIG"],
    ["run", "CONFIG", "output=OUT"],
    ["plan", "CONFIG", "output=OUT", "extractor.model=s3://silent/model"],
    ["status", "s3://silent/out"],
    ["explain", "s3://silent/out", "x"],
    ["report", "s3://silent/out"],
    ["export", "s3://silent/out", "--to", "llava", "--out", "OUT"],
    ["clean", "s3://silent/out", "--delete"],
    ["init", "s3://silent/data/x.json", "--out", "OUT"],
    ["run", "s3://silent/config.yaml"],
]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_it_is_said_and_given_up(arguments, tmp_path, capsys):
    sources = [{"name": "a", "paths": ["s3://silent/data"]}]
    config = write_config(tmp_path, sources, MODEL, output="s3://silent/out")
    known = {"CONFIG": str(config), "OUT": str(tmp_path / "new"), "output=OUT": f"output={tmp_path / 'new'}"}
    assert main([known.get(argument, argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert "waiting for s3://silent/" in said
    assert "for 0.2 s" in said
    assert "no answer for 1 s" in said
    assert "Traceback" not in said


CALLS = {
    "stat": lambda: storage.stat("s3://silent/x"),
    "expand": lambda: listing.expand("s3://silent/x/*.json"),
    "list_tree": lambda: storage.list_tree("s3://silent/x"),
    "list_names": lambda: storage.list_names("s3://silent/x"),
    "exists": lambda: storage.exists("s3://silent/x"),
    "read": lambda: storage.read_bytes("s3://silent/x"),
    "read a range": lambda: storage.read_bytes("s3://silent/x", 0, 3),
    "write": lambda: storage.write("s3://silent/x", b"1"),
    "delete": lambda: storage.delete(["s3://silent/x"]),
    "download": lambda: storage.download("s3://silent/x", "/tmp/never-there"),
}


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("call", CALLS)
def test_no_call_waits_for_ever(call):
    with pytest.raises(StorageError, match=r"s3://silent/x.*no answer for 1 s"):
        CALLS[call]()


def test_any_other_kind_of_store_has_the_same_limit(monkeypatch):
    monkeypatch.setattr(answers, "ONE_S", 0.2)
    monkeypatch.setattr(storage, "_PATIENCE", storage._PATIENCE.copy(stop=lambda state: True))
    ended = threading.Event()
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", lambda *_, **__: ended.wait())
    with pytest.raises(StorageError, match=r"no answer for 0\.2 s"):
        storage.stat("memory://a/b")
    ended.set()


def test_time_outs_that_a_user_has_set_are_waited_for(monkeypatch):
    monkeypatch.setattr(answers, "ONE_S", 0.05)
    monkeypatch.setitem(fsspec.config.conf, "memory", {"config_kwargs": {"read_timeout": 60}})
    assert answers.answered("memory://a", lambda: time.sleep(0.2) or 7) == 7
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"config_kwargs": {"retries": {"max_attempts": 9}, "read_timeout": 3}}
    )
    expected = {"config_kwargs": {"retries": {"max_attempts": 9}, "read_timeout": 3}}
    assert answers.client_options("s3") == expected
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    assert answers.client_options("s3") == {}
