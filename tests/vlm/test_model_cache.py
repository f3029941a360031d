"""Checkpoints that are fetched from a bucket: what is taken, where it lies, and what of it is believed later."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import GOLDEN

from scalselect_ray.errors import ModelError, StorageError
from scalselect_ray.io import storage
from scalselect_ray.testing import object_store
from scalselect_ray.vlm import description_fingerprint, fingerprint, model_cache, open_checkpoint

MODEL = GOLDEN / "llava" / "model"
pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3").clear()
    uri = f"{request.param}://bucket/{tmp_path.name}/model"
    object_store.upload(MODEL, uri)
    return uri


def test_a_fetched_checkpoint_is_the_same_and_only_its_user_can_enter(bucket, temporary):
    fetched = open_checkpoint(bucket)
    assert fingerprint(fetched) == fingerprint(open_checkpoint(str(MODEL)))
    assert fetched.folder.is_relative_to(temporary)
    (root,) = temporary.glob("scalselect*")
    assert root.stat().st_mode & 0o777 == 0o700


def test_preparing_fetches_no_weights(bucket):
    folder = open_checkpoint(bucket, weights=False).folder
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.glob("*.safetensors"))
    assert open_checkpoint(bucket).folder == folder
    assert list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", sorted(path.name for path in MODEL.iterdir()))
def test_what_is_no_longer_what_was_fetched_is_fetched_again(name, bucket):
    path = open_checkpoint(bucket).folder / name
    good, before = path.read_bytes(), path.stat()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_checkpoint(bucket).folder == path.parent
    assert path.read_bytes() == good


def test_what_is_still_what_was_fetched_is_not_fetched_again(s3, tmp_path):
    uri = f"s3://bucket/{tmp_path.name}/model"
    object_store.upload(MODEL, uri)
    open_checkpoint(uri)
    s3.clear()
    open_checkpoint(uri)
    assert not [path for method, path in s3.paths if method == "GET" and path.endswith((".json", ".safetensors"))]


@pytest.mark.parametrize("wrong", ["others can read it", "others can write it", "a link", "a file", "of another user"])
def test_a_cache_that_others_could_fill_is_not_used(wrong, temporary, monkeypatch):
    root = temporary / f"scalselect-models-{os.getuid()}"
    root.mkdir(mode=0o700)
    if wrong == "a link":
        root.rename(temporary / "elsewhere")
        root.symlink_to(temporary / "elsewhere")
    elif wrong == "a file":
        root.rmdir()
        root.touch(mode=0o600)
    elif wrong == "of another user":
        monkeypatch.setattr(os, "getuid", lambda: 4242)
        root.rename(temporary / "scalselect-models-4242")
    else:
        root.chmod(0o755 if "read" in wrong else 0o722)
    object_store.upload(MODEL, "memory://bucket/guarded")
    with pytest.raises(ModelError, match="that nobody else can enter") as raised:
        open_checkpoint("memory://bucket/guarded")
    assert str(temporary) in str(raised.value)


def test_only_what_lies_right_inside_the_folder_is_taken(bucket, tmp_path):
    """A training run leaves checkpoints below its newest one; their files have the same names."""
    for below in ("step_500", "video_processor"):
        for name in ("config.json", "preprocessor_config.json", "model.safetensors", "chat_template.jinja"):
            storage.write(storage.join(bucket, below, name), b"{}")
    fetched = open_checkpoint(bucket)
    assert fingerprint(fetched) == fingerprint(open_checkpoint(str(MODEL)))
    assert not (fetched.folder / "preprocessor_config.json").exists()


def test_a_folder_of_checkpoints_is_none(bucket):
    with pytest.raises(ModelError, match=r"no config\.json right inside"):
        open_checkpoint(bucket.rpartition("/")[0])


def test_an_object_that_changes_while_it_is_fetched_is_not_kept(bucket, monkeypatch):
    download = storage.download

    def slow(uri: str, target: str) -> None:
        download(uri, target)
        if uri.endswith("config.json"):
            storage.write(uri, (MODEL / "config.json").read_bytes() + b" ")

    monkeypatch.setattr(storage, "download", slow)
    with pytest.raises(ModelError, match="changed while it was fetched"):
        open_checkpoint(bucket)
    monkeypatch.setattr(storage, "download", download)
    folder = open_checkpoint(bucket).folder
    assert (folder / "config.json").read_bytes() == (MODEL / "config.json").read_bytes() + b" "


def test_a_checkpoint_that_was_replaced_is_another(bucket, tmp_path):
    before = open_checkpoint(bucket)
    shutil.copytree(MODEL, tmp_path / "changed")
    template = tmp_path / "changed" / "chat_template.jinja"
    template.write_text(template.read_text().replace("USER", "User") + " ")
    object_store.upload(tmp_path / "changed", bucket)
    after = open_checkpoint(bucket)
    assert after.folder != before.folder
    assert fingerprint(after) == fingerprint(open_checkpoint(str(tmp_path / "changed")))
    assert description_fingerprint(before) == description_fingerprint(open_checkpoint(str(MODEL)))
    assert model_cache.folder_of("x").parent == after.folder.parent


def test_a_store_that_fails_is_no_fault_of_the_model(bucket, monkeypatch):
    def fail(*_: object) -> None:
        raise StorageError("bucket: the store fails")

    monkeypatch.setattr(storage, "download", fail)
    with pytest.raises(StorageError, match="the store fails"):
        open_checkpoint(bucket)
