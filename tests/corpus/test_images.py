"""Where images may lie, and how they become pixels."""

import errno
import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scalselect_ray.corpus import ImageRef, Reason, SampleRejectedError, images, images_digest, load_image
from scalselect_ray.corpus.images import resolver
from scalselect_ray.errors import StorageError
from scalselect_ray.io import storage


def encoded(mode: str, form: str, **options) -> bytes:
    picture = Image.fromarray((np.arange(48 * 3).reshape(6, 8, 3) % 256).astype(np.uint8)).convert(mode)
    sink = io.BytesIO()
    picture.save(sink, form, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded("RGB", "JPEG"),
        encoded("CMYK", "JPEG"),
        encoded("P", "PNG", transparency=0),
        encoded("RGBA", "PNG"),
        encoded("LA", "PNG"),
        encoded("1", "PNG"),
        encoded("P", "GIF"),
        encoded("RGB", "WEBP"),
        encoded("RGB", "TIFF"),
        encoded("RGB", "BMP"),
    ],
)
def test_every_kind_becomes_rgb(data):
    picture = load_image(ImageRef("x", data=data))
    assert (picture.mode, picture.size) == ("RGB", (8, 6))


def test_the_digest_of_images_is_of_their_bytes_and_order():
    """Against what the words of its docstring say, by hashlib alone."""
    one, two = encoded("RGB", "PNG"), encoded("RGB", "JPEG")
    parts = hashlib.sha256(one).digest() + hashlib.sha256(two).digest()
    assert images_digest([one, two]) == hashlib.sha256(parts).hexdigest()[:32]
    others = ([two, one], [one], [two], [one, two, two], [one + two], [one, two[:-1]], [])
    assert len({images_digest(some) for some in ([one, two], *others)}) == 1 + len(others)
    assert images_digest([one] * 400) == images_digest(bytes(bytearray(one)) for _ in range(400))


def test_16_bit_grey_is_scaled_and_not_clipped():
    sink = io.BytesIO()
    Image.fromarray(np.array([[0, 256 * 100, 65535]], dtype=np.uint16)).save(sink, "PNG")
    assert [pixel[0] for pixel in np.asarray(load_image(ImageRef("x", data=sink.getvalue())))[0]] == [0, 100, 255]


def test_a_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"
    with pytest.raises(SampleRejectedError) as caught:
        load_image(ImageRef("bomb.png", data=data))
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", encoded("RGB", "PNG")[:50], encoded("RGB", "JPEG")[:200]])
def test_what_is_no_picture_is_unreadable(data):
    with pytest.raises(SampleRejectedError) as caught:
        load_image(ImageRef("x.jpg", data=data))
    assert caught.value.reason == Reason.IMAGE_UNREADABLE


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "a/../../secret.png",
        "/etc/passwd",
        "http://169.254.169.254/x",
        "file:///etc/passwd",
        "s3://other/x.png",
        "link.png",
        "folder/secret.png",
        ".",
    ],
)
def test_nothing_outside_the_image_root_is_read(path, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    (tmp_path / "secret.png").write_bytes(encoded("RGB", "PNG"))
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SampleRejectedError) as caught:
        resolver(str(tmp_path / "root"))(path)
    assert caught.value.reason == Reason.IMAGE_REFUSED


@pytest.mark.parametrize(
    "path", ["../a.png", "s3://bucket/images-other/a.png", "s3://bucket/images/../a.png", "http://bucket/images/a.png"]
)
def test_nothing_outside_a_bucket_prefix_is_read(path):
    with pytest.raises(SampleRejectedError):
        resolver("s3://bucket/images")(path)


def test_what_is_inside_is_found(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("RGB", "PNG"))
    resolve = resolver(str(tmp_path))
    assert load_image(resolve("a.png")).size == load_image(resolve(str(tmp_path / "a.png"))).size == (8, 6)
    assert resolver("s3://bucket/images")("s3://bucket/images/b/a.png").uri == "s3://bucket/images/b/a.png"
    with pytest.raises(SampleRejectedError) as caught:
        load_image(resolve("b.png"))
    assert caught.value.reason == Reason.IMAGE_MISSING


def test_the_whole_disk_can_be_the_image_root(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("RGB", "PNG"))
    assert load_image(resolver("/")(str(tmp_path / "a.png"))).size == (8, 6)


def test_a_key_that_no_store_has_is_refused():
    resolve = resolver("s3://bucket/images")
    assert resolve("é" * 500).uri is not None
    with pytest.raises(SampleRejectedError) as raised:
        resolve("é" * 510)
    assert raised.value.reason == Reason.IMAGE_REFUSED


@pytest.mark.parametrize("root", ["memory://bucket", "disk"])
def test_of_a_large_object_no_more_is_read_than_it_takes_to_know(root, tmp_path, monkeypatch):
    root = str(tmp_path) if root == "disk" else root
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    storage.write(f"{root}/large.png", bytes(5_000))
    read = []
    monkeypatch.setattr(
        storage, "read_bytes", lambda *a, original=storage.read_bytes: read.append(original(*a)) or read[-1]
    )
    with pytest.raises(SampleRejectedError) as raised:
        load_image(resolver(root)("large.png"))
    assert raised.value.reason == Reason.IMAGE_TOO_LARGE
    assert sum(map(len, read)) <= 1001


def test_trouble_of_a_disk_is_no_reject(tmp_path, monkeypatch):
    """A reject would stay when the trouble is over; a name that can never be a file is one."""
    (tmp_path / "a.png").write_bytes(encoded("RGB", "PNG"))

    def trouble(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_read_here", trouble)
        with pytest.raises(StorageError, match="Input/output error"):
            load_image(resolver(str(tmp_path))("a.png"))
    with pytest.raises(SampleRejectedError) as raised:
        load_image(resolver(str(tmp_path))("a" * 300))
    assert raised.value.reason == Reason.IMAGE_MISSING
