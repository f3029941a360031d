"""Small files that would take minutes or gigabytes to decode: refused by what their bytes say, or stripped of what
costs and shows nothing. What is good stays what it was, pixel for pixel."""

import io
import random
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scalselect_ray.corpus import ImageRef, Reason, SampleRejectedError, decoding, images, load_image, load_images
from scalselect_ray.corpus.image_cost import MAX_PIECES, lean
from scalselect_ray.corpus.images import resolver
from scalselect_ray.io import storage
from scalselect_ray.testing import damage

PICTURES = damage.pictures()


def encoded(width: int, height: int, form: str, mode: str = "RGB", **options) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, (width, height), 77 if mode in "LP" else (77, 5, 200)).save(sink, form, **options)
    return sink.getvalue()


def with_scans(data: bytes, scans: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def sequential(scans: int) -> bytes:
    """A JPEG that says it is not progressive, with a scan of one of its components again and again."""
    data = bytearray(with_scans(encoded(4000, 4000, "JPEG", progressive=True), scans))
    data[data.index(b"\xff\xc2") + 1] = 0xC0
    data[data.index(b"\xff\xda") + 4] = 1
    return bytes(data)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(chunk: bytes, count: int) -> bytes:
    data = PICTURES["a.png"]
    return data[:33] + chunk * count + data[33:]


def gif_with(block: bytes) -> bytes:
    data = PICTURES["a.gif"]
    begin = 13 + (3 << (data[10] & 7) + 1)
    return data[:begin] + block + data[begin:]


def webp_with(chunks: int) -> bytes:
    data = encoded(8, 8, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    data += b"JUNK\0\0\0\0" * chunks
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def tiff(strips: int, size: int, compression: int = 1, body: bytes = b"", width: int = 1) -> bytes:
    """A picture with a strip a row; all strips are the same bytes."""
    begin = 8 + 2 + 12 * 8 + 4
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, strips),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, strips, begin),
        (278, 4, 1, 1),
        (279, 4, strips, begin + 4 * strips),
    ]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    at = begin + 8 * strips
    return data + struct.pack("<I", at) * strips + struct.pack("<I", size) * strips + body


def bmp(width: int, height: int, body: bytes) -> bytes:
    header = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + bytes(1024) + body


COSTLY = {
    "progressive.jpg": (with_scans(encoded(4000, 4000, "JPEG", "L", progressive=True), 300), "30[0-9] scans"),
    "sequential.jpg": (sequential(300), "3[01][0-9] scans"),
    "segments.jpg": (b"\xff\xd8" + b"\xff\xe1\0\2" * (MAX_PIECES + 1) + PICTURES["a.jpg"][2:], "segments"),
    "pixels.png": (png_with(png_chunk(b"IDAT", b""), MAX_PIECES + 1), "chunks"),
    "texts.png": (png_with(png_chunk(b"tEXt", b"a\0b"), MAX_PIECES + 1), "chunks"),
    "comment.gif": (gif_with(b"!\xfe" + b"\x01x" * (MAX_PIECES + 1) + b"\0"), "blocks"),
    "extensions.gif": (gif_with(b"!\xf9\0" * (MAX_PIECES + 1)), "blocks"),
    "chunks.webp": (webp_with(MAX_PIECES + 1), "chunks"),
    "strips.tif": (tiff(MAX_PIECES + 1, 1, body=b"x"), "strips"),
    "overlap.tif": (tiff(1000, 100_000, 5, bytes(100_000)), "overlap"),
    "scans.tif": (tiff(1, 5000, 7, b"\xff\xda" * 2500, width=100_000_000), "2,500 scans"),
    "wide.bmp": (bmp(1 << 24, 1, b"\0\2\0\xff" * 4), "run-length BMP of 16777216x1"),
    "long.bmp": (bmp(100, 100, b"\0\0" * (1 << 22) + b"\0"), "run-length BMP"),
    "plain.ppm": (b"P3 3000 3000 255\n1 2 3", "plain text of 3000x3000"),
    "comments.ppm": (b"P2 10 10 255\n" + b"#\n" * 2000, "2,000 comments"),
    "header.ppm": (b"P6 #" + b"x" * (1 << 17) + b"\n1 1 255\nabc", "header is longer"),
    "split.ppm": (b"P3 3#\n000 3#\n000 255\n1 2 3", "plain text of 3000x3000"),
    "maximum.ppm": (b"P6 3000 3000 254\n", "maximum of 254"),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_a_picture_that_costs_far_more_than_its_pixels_is_refused_before_it_is_decoded(name, monkeypatch):
    data, words = COSTLY[name]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a decoder saw it"))
    with pytest.raises(SampleRejectedError, match=words) as raised:
        load_image(ImageRef(name, data=data))
    assert raised.value.reason == Reason.TOO_COSTLY
    assert name in raised.value.message
    assert re.search(r"\d", raised.value.message.replace(name, ""))


ODD = {
    "many scans of few pixels": with_scans(encoded(64, 64, "JPEG", progressive=True), 300),
    "a film after the picture": encoded(4000, 4000, "JPEG", progressive=True) + b"\xff\xda" * 1000,
    "markers in metadata": encoded(4000, 4000, "JPEG", progressive=True, comment=b"\xff\xda" * 1000),
    "thousands of profiles": png_with(png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000))), 5000),
    "texts that inflate": png_with(png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))), 50),
    "a long comment": gif_with(b"!\xfe" + (b"\xff" + b"x" * 255) * 4000 + b"\0"),
    "junk before a frame": gif_with(b"\1\2\3" * 5000),
    "frames": encoded(8, 8, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), n) for n in range(40)]),
    "moving.webp": encoded(8, 8, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), n) for n in range(40)]),
    "moving.png": encoded(8, 8, "PNG", save_all=True, append_images=[Image.new("RGB", (8, 8), n) for n in range(40)]),
    "tall.tif": tiff(1000, 1, body=b"x"),
    "short.bmp": bmp(3, 1, b"\3\7\0\1"),
    "comment.ppm": b"P6 # a\n2#b\n 1 255\nabcdef",
}


@pytest.mark.parametrize("name", ODD)
def test_what_shows_nothing_is_left_out_and_the_pixels_stay(name):
    data = ODD[name]
    found = load_image(ImageRef("x", data=data))
    with Image.open(io.BytesIO(data)) as picture:
        assert found.tobytes() == decoding.as_rgb(picture).tobytes()


def test_metadata_never_reaches_a_decoder():
    exif = b"\xff\xe1" + struct.pack(">H", 60_000 + 2) + b"Exif\0\0" + bytes(59_994)
    jpeg = PICTURES["a.jpg"][:2] + exif * 200 + PICTURES["a.jpg"][2:]
    for data in (jpeg, ODD["thousands of profiles"], ODD["texts that inflate"], ODD["a long comment"]):
        assert len(lean("x", data).data) < 2000 < len(data)
    assert load_image(ImageRef("x", data=jpeg)).tobytes() == load_image(ImageRef("x", data=PICTURES["a.jpg"])).tobytes()


@pytest.mark.parametrize("name", PICTURES)
@settings(max_examples=60, deadline=None)
@given(dice=st.randoms(use_true_random=False))
def test_a_damaged_picture_that_pillow_decodes_keeps_its_pixels(name, dice):
    data = damage.mutated(name, PICTURES[name], dice)
    try:
        with Image.open(io.BytesIO(data), formats=decoding._FORMATS) as picture:
            expected = decoding.as_rgb(picture).tobytes()
    except Exception:
        return
    assert load_image(ImageRef("x", data=data)).tobytes() == expected


@pytest.mark.heavy
@pytest.mark.parametrize("name", PICTURES)
def test_a_large_picture_is_decoded_by_a_process_of_its_own_to_the_same_pixels(name, monkeypatch):
    here = load_image(ImageRef(name, data=PICTURES[name]))
    monkeypatch.setattr(decoding, "_LARGE_BYTES", 0)
    apart = load_image(ImageRef(name, data=PICTURES[name]))
    assert (apart.size, apart.tobytes()) == (here.size, here.tobytes())


@pytest.mark.heavy
def test_decoding_ends_when_its_time_is_used_up(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_SECONDS", 1)
    noise = Image.frombytes("RGB", (3000, 3000), random.Random(0).randbytes(27_000_000))
    sink = io.BytesIO()
    noise.save(sink, "JPEG", progressive=True, quality=95)
    data = with_scans(sink.getvalue(), 100)
    with pytest.raises(SampleRejectedError, match="not decoded within 1 second") as raised:
        load_image(ImageRef("slow.jpg", data=data))
    assert raised.value.reason == Reason.TOO_COSTLY


@pytest.mark.heavy
def test_a_decoder_that_fails_in_its_own_process_is_a_reject_with_its_words(monkeypatch):
    monkeypatch.setattr(decoding, "_LARGE_BYTES", 0)
    with pytest.raises(SampleRejectedError, match="truncated") as raised:
        load_image(ImageRef("cut.png", data=PICTURES["a.png"][:-60]))
    assert raised.value.reason == Reason.IMAGE_UNREADABLE


def test_an_image_that_a_row_names_often_is_fetched_and_decoded_once(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(PICTURES["a.png"])
    (tmp_path / "b.png").write_bytes(PICTURES["palette.png"])
    read, as_rgb, fetched, decoded = storage.read_inside, decoding.as_rgb, [], []
    monkeypatch.setattr(storage, "read_inside", lambda uri, *rest: fetched.append(uri) or read(uri, *rest))
    monkeypatch.setattr(decoding, "as_rgb", lambda picture: decoded.append(picture) or as_rgb(picture))
    resolve = resolver(str(tmp_path))
    found = load_images([resolve("a.png"), resolve("b.png")] * 200)
    assert len(found) == 400
    assert np.array_equal(np.asarray(found[0]), np.asarray(found[398]))
    assert not np.array_equal(np.asarray(found[0]), np.asarray(found[1]))
    assert fetched == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert len(decoded) == 2


def test_images_of_a_sample_are_bounded_together(tmp_path, monkeypatch):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(PICTURES["a.png"])
    size = len(PICTURES["a.png"])
    monkeypatch.setattr(images, "MAX_BYTES", 3 * size)
    read = []
    monkeypatch.setattr(storage, "_read_here", lambda *a, original=storage._read_here: read.append(a) or original(*a))
    resolve = resolver(str(tmp_path))
    assert len(load_images([resolve(f"{number % 3}.png") for number in range(9)])) == 9
    assert len(read) == 3
    with pytest.raises(SampleRejectedError, match=f"{size:,} bytes, and the images before it {3 * size:,}") as raised:
        load_images([resolve(f"{number}.png") for number in range(4)])
    assert raised.value.reason == Reason.TOO_COSTLY
    assert len(read) == 6


def test_nothing_is_decoded_of_a_sample_with_too_many_pixels(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 3 * 24 * 16 - 1)
    monkeypatch.setattr(decoding, "as_rgb", lambda picture: pytest.fail("decoded"))
    with pytest.raises(SampleRejectedError, match="above 1,151") as raised:
        load_images([ImageRef("x", data=PICTURES["a.png"])] * 3)
    assert raised.value.reason == Reason.IMAGE_TOO_LARGE
