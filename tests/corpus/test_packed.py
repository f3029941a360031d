"""Packed files: their content or an error, in bounded memory, whatever is wrong with them."""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import tracemalloc
from collections import deque

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.corpus.formats import UnreadableFileError, packed
from scalselect_ray.io import storage


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
TEXT = "".join(f'{{"id": {number}, "text": "{number * 7919}"}}\n' for number in range(3000)).encode()


def unpacked(path) -> bytes:
    file = storage.stat(str(path))
    with storage.open_read(file.uri) as raw:
        return packed.inflated(raw, file).read()


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", [0, 1, len(TEXT)])
def test_the_content_comes_back_also_of_several_streams(kind, parts, size, tmp_path):
    (tmp_path / "a").write_bytes(PACK[kind](TEXT[:size]) * parts)
    assert unpacked(tmp_path / "a") == TEXT[:size] * parts
    assert packed.inflated_head(storage.stat(str(tmp_path / "a")), 4096) == (TEXT[:size] * parts)[:4096]
    assert packed.is_packed((tmp_path / "a").read_bytes()[:16])


@pytest.mark.parametrize("kind", PACK)
def test_what_is_written_is_packed_as_the_file_is_and_the_same_each_time(kind, tmp_path):
    (tmp_path / "a").write_bytes(PACK[kind](b"x"))
    made = []
    for _ in range(2):
        sink = io.BytesIO()
        with packed.deflated(sink, storage.stat(str(tmp_path / "a"))) as stream:
            stream.write(TEXT)
        made.append(sink.getvalue())
    (tmp_path / "b").write_bytes(made[0])
    assert unpacked(tmp_path / "b") == TEXT
    assert made[0][:3] == PACK[kind](b"x")[:3]
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", PACK)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_cut_is_an_error(kind, data, tmp_path):
    whole = PACK[kind](TEXT)
    (tmp_path / "a").write_bytes(whole[: data.draw(st.integers(16, len(whole) - 1))])
    with pytest.raises(UnreadableFileError, match="broken"):
        unpacked(tmp_path / "a")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])  # what the library writes of the fourth has no checksum
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_damaged_is_its_content_or_an_error(kind, data, tmp_path):
    whole = bytearray(PACK[kind](TEXT))
    whole[data.draw(st.integers(8, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "a").write_bytes(whole)
    with contextlib.suppress(UnreadableFileError):
        assert unpacked(tmp_path / "a") == TEXT


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_is_refused_with_little_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_FREE", 1 << 22)
    sink = io.BytesIO()
    sink.write(PACK[kind](bytes(1 << 26)))
    (tmp_path / "a").write_bytes(sink.getvalue())
    file = storage.stat(str(tmp_path / "a"))
    tracemalloc.start()
    try:
        with storage.open_read(file.uri) as raw, pytest.raises(UnreadableFileError, match="a bomb"):
            deque(iter(functools.partial(packed.inflated(raw, file).read, 1 << 16), b""), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_what_asks_for_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_MEMORY", 1 << 20)
    (tmp_path / "a").write_bytes(lzma.compress(TEXT))
    with pytest.raises(UnreadableFileError, match=r"broken xz: .*[Mm]emory"):
        unpacked(tmp_path / "a")


def test_what_is_not_packed_is_told(tmp_path):
    (tmp_path / "a.jsonl.xz").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(UnreadableFileError, match=r"packed in none of gzip, bzip2, xz, zstd: begins b'PK"):
        unpacked(tmp_path / "a.jsonl.xz")
