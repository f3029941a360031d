"""Where images may lie, and how they become pixels."""

import base64
import contextlib
import errno
import hashlib
import io
import itertools
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from scalselect_ray.corpus import (
    ImageRef,
    Reason,
    SampleRejectedError,
    decoding,
    fetched_images,
    images,
    images_digest,
    load_image,
)
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
        encoded("RGB", "PPM"),
        encoded("RGB", "AVIF"),
        encoded("RGBA", "AVIF"),
        encoded("RGB", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 6))]),
    ],
)
def test_every_kind_becomes_rgb(data):
    picture = load_image(ImageRef("x", data=data))
    assert (picture.mode, picture.size) == ("RGB", (8, 6))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG2000", {}), ("JPEG2000", {"no_jp2": True}), ("ICO", {"sizes": [(8, 6)]}), ("QOI", {})]
)
def test_kinds_whose_cost_nobody_tells_are_decoded_in_a_process_of_their_own(kind, options):
    picture = load_image(ImageRef("x", data=encoded("RGB", kind, **options)))
    assert picture.tobytes() == Image.open(io.BytesIO(encoded("RGB", "PNG"))).tobytes()


def test_what_is_read_is_said_where_something_else_is_found():
    with pytest.raises(
        SampleRejectedError,
        match=r"not an image .*ftypheic.* AVIF, .*JPEG, JPEG2000, "
        ".*WEBP",
    ) as caught:
        load_image(ImageRef("a.heic", data=b"\0\0\0\x18ftypheic\0\0\0\0"))
    assert caught.value.reason == Reason.IMAGE_UNREADABLE


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_a_picture_whose_decoder_takes_memory_is_bounded_by_its_pixels(kind, monkeypatch):
    monkeypatch.setattr(decoding, "_DEEP_PIXELS", 47)
    with pytest.raises(SampleRejectedError, match=f"8x6 pixels of {kind} are above 47") as caught:
        load_image(ImageRef("x", data=encoded("RGB", kind)))
    assert caught.value.reason == Reason.IMAGE_TOO_LARGE
    assert load_image(ImageRef("x", data=encoded("RGB", "PNG"))).size == (8, 6)


PICTURES = {kind: encoded("RGB", kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "JPEG2000")}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("spelling", ["bare", "lines", "without padding", "for URLs", "a data URI", "a struct"])
def test_base64_is_read_in_all_spellings(spelling, kind):
    text = base64.b64encode(PICTURES[kind]).decode()
    field = {
        "bare": text,
        "lines": base64.encodebytes(PICTURES[kind]).decode(),
        "without padding": text.rstrip("="),
        "for URLs": base64.urlsafe_b64encode(PICTURES[kind]).decode(),
        "a data URI": f"data:image/x;base64,{text}",
        "a struct": {"bytes": text, "path": "a.png"},
    }[spelling]
    for root in (None, "/images", "s3://bucket/images"):
        assert resolver(root)(field).data == PICTURES[kind]


@pytest.mark.parametrize(
    "path", ["9j/4AAQSkZJRgABAQ.jpg", "iVBORw0KGgo", "a" * 64, "iVBORw0KGgo/" + "b" * 60 + ".png", "coco/" + "0" * 60]
)
def test_a_path_is_no_base64(path):
    assert resolver("/images")(path).uri == f"/images/{path}"


@pytest.mark.parametrize(
    ("field", "named"),
    [({"bytes": None, "photo": "a.png"}, "photo"), ({"bytes": "what", "path": None}, "base64"), (7, "int")],
)
def test_an_image_that_is_none_is_named_as_it_is(field, named):
    with pytest.raises(SampleRejectedError, match=named) as caught:
        resolver("/images")(field)
    assert caught.value.reason == Reason.IMAGE_UNREADABLE


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


@pytest.mark.parametrize("path", ["coco/a.png", "b.png"])
def test_links_in_an_image_root_lead_where_the_config_allows_it(path, tmp_path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    for folder in (root, disk / "coco"):
        folder.mkdir(parents=True)
    (disk / "coco" / "a.png").write_bytes(encoded("RGB", "PNG"))
    (root / "coco").symlink_to(disk / "coco")
    (root / "b.png").symlink_to(disk / "coco" / "a.png")
    for allowed in ([disk], [tmp_path / "other", disk / "coco"]):
        image = resolver(str(root), [str(folder) for folder in allowed])(path)
        assert image.uri == str(root / path)
        assert load_image(image).size == (8, 6)
    for allowed in ([], [tmp_path / "other"], [tmp_path / "dis"]):
        with pytest.raises(SampleRejectedError) as caught:
            resolver(str(root), [str(folder) for folder in allowed])(path)
        assert caught.value.reason == Reason.IMAGE_REFUSED
        for named in (str(root / path.split("/")[0]), str(disk / "coco"), "corpus.image_links", *map(str, allowed)):
            assert named in caught.value.message


def test_a_path_of_a_row_does_not_lead_to_where_links_may_lead(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").write_bytes(encoded("RGB", "PNG"))
    for path in ("../a.png", str(tmp_path / "a.png"), f"file://{tmp_path}/a.png"):
        with pytest.raises(SampleRejectedError, match="outside the image root"):
            resolver(str(tmp_path / "root"), [str(tmp_path)])(path)


def test_a_file_uri_inside_the_image_root_is_a_path(tmp_path):
    (tmp_path / "my cat.png").write_bytes(encoded("RGB", "PNG"))
    assert load_image(resolver(str(tmp_path))((tmp_path / "my cat.png").as_uri())).size == (8, 6)
    for uri in (f"file://host{tmp_path}/a.png", f"file://{tmp_path}/%2e%2e/a.png", f"file://{tmp_path}/a%00.png"):
        with pytest.raises(SampleRejectedError) as caught:
            resolver(str(tmp_path))(uri)
        assert caught.value.reason == Reason.IMAGE_REFUSED


def test_what_is_put_in_the_place_of_an_image_after_it_was_looked_at_is_not_read(tmp_path):
    root, secret = tmp_path / "root", encoded("RGB", "GIF")
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "1.png").write_bytes(secret)
    (root / "a" / "1.png").write_bytes(encoded("RGB", "PNG"))
    image = resolver(str(root))("a/1.png")
    (root / "a").rename(root / "b")
    (root / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(SampleRejectedError) as caught:
        load_image(image)
    assert caught.value.reason == Reason.IMAGE_REFUSED
    assert load_image(resolver(str(root), [str(tmp_path / "secret")])("a/1.png")).size == (8, 6)
    (root / "a").unlink()
    (root / "a").mkdir()
    os.mkfifo(root / "a" / "1.png")
    with pytest.raises(SampleRejectedError, match="no file"):  # and nobody waits for it
        load_image(image)


def test_a_link_that_turns_to_and_fro_never_shows_what_lies_outside(tmp_path):
    """Between the look at where it leads and the opening it may lead elsewhere."""
    root = tmp_path / "root"
    inside, outside = encoded("RGB", "PNG"), encoded("RGB", "GIF")
    for folder, data in ((root / "in", inside), (tmp_path / "out", outside)):
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(data)
    targets = [root / "in", tmp_path / "out"]
    done = threading.Event()

    def turn() -> None:
        for count in itertools.count():
            if done.is_set():
                return
            (root / "new").symlink_to(targets[count % 2])
            (root / "new").replace(root / "a")

    turning = threading.Thread(target=turn)
    turning.start()
    seen = []
    try:
        for _ in range(300):
            with contextlib.suppress(SampleRejectedError):
                seen.append(fetched_images([resolver(str(root))("a/1.png")])[0].data)
    finally:
        done.set()
        turning.join()
    assert set(seen) <= {inside}


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
