"""Compressed files as streams that cannot blow up: gzip, bzip2, xz and Zstandard, told by their first bytes."""

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from scalselect_ray.corpus.formats.base import UnreadableFileError
from scalselect_ray.errors import StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
"""Of what is packed in one of them."""
_BLOCK = 1 << 16
_MAGIC = 16  # bytes by which it is told how a file is packed
_FREE = 1 << 26  # bytes that any file may inflate to
_RATIO = 200  # what a larger one may inflate to, in its own sizes: text comes to 20, deflate could go to 1000
_MEMORY = 1 << 28  # bytes that a decompressor may take: what is packed can ask for more


class _Codec(NamedTuple):
    name: str
    magic: bytes  # its first bytes
    opened: Callable[[BinaryIO], Any]  # the stream of what is in a stream
    written: Callable[[BinaryIO], Any]  # what is written to it is packed into a stream


class _Kept(io.RawIOBase):
    """A stream that stays open when who writes to it closes it."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._raw.write(data)


class _Xz(io.RawIOBase):
    """As `lzma.LZMAFile`, which cannot be told how much memory it may take."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._data = raw, b""
        self._decompressor = self._begun()

    def _begun(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY)

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._decompressor.eof:
                self._data = (self._decompressor.unused_data or self._raw.read(_BLOCK)).lstrip(b"\0")
                if not self._data:
                    return b""
                self._decompressor = self._begun()  # another stream follows
            elif self._decompressor.needs_input and not self._data:
                self._data = self._raw.read(_BLOCK)
                if not self._data:
                    raise EOFError("it ends too early")
            found = self._decompressor.decompress(self._data, size)
            self._data = b""
            if found:
                return found


_CODECS = (
    _Codec(
        "gzip",
        b"\x1f\x8b",
        lambda raw: gzip.GzipFile(fileobj=raw),
        lambda raw: gzip.GzipFile("", "wb", fileobj=raw, mtime=0),  # without a name or a time
    ),
    _Codec("bzip2", b"BZh", bz2.BZ2File, functools.partial(bz2.BZ2File, mode="w")),
    _Codec("xz", b"\xfd7zXZ\0", _Xz, functools.partial(lzma.LZMAFile, mode="w")),
    _Codec(
        "zstd",
        b"\x28\xb5\x2f\xfd",
        lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"),
        lambda raw: pa.CompressedOutputStream(pa.PythonFile(_Kept(raw), mode="w"), "zstd"),
    ),
)


def is_packed(head: bytes) -> bool:
    """Whether a file with these first bytes is packed in one of the ways that are known here."""
    return _codec_of(head) is not None


def inflated(raw: BinaryIO, file: FileInfo) -> BinaryIO:
    """The content of a packed file that is open as `raw`; checked by the file's own checksum, as far as it is read.

    Reads raise UnreadableFileError where it is broken, or where it turns out to be a bomb: little memory is spent
    before that, and little time."""
    codec = _known(raw.read(_MAGIC))
    raw.seek(0)
    return cast(BinaryIO, io.BufferedReader(_Inflated(raw, codec, max_inflated(file)), _BLOCK))


@contextlib.contextmanager
def deflated(stream: BinaryIO, file: FileInfo) -> Iterator[BinaryIO]:
    """What is written to it goes to `stream` packed as `file` is: of the same bytes the same. Raises
    UnreadableFileError, OSError."""
    with _known(storage.read_start(file.uri, _MAGIC)).written(stream) as packed:
        yield cast(BinaryIO, packed)


def inflated_head(file: FileInfo, size: int) -> bytes:
    """The first bytes of what a packed file holds. Raises UnreadableFileError, OSError."""
    with storage.open_random(file.uri) as raw:
        return inflated(cast(BinaryIO, io.BufferedReader(cast(Any, raw), _BLOCK)), file).read(size)


def max_inflated(file: FileInfo) -> int:
    """Bytes that a packed file may inflate to."""
    return _FREE + _RATIO * file.size


def _known(head: bytes) -> _Codec:
    codec = _codec_of(head)
    if codec is None:
        known = ", ".join(codec.name for codec in _CODECS)
        raise UnreadableFileError(f"it is called as a packed file and is packed in none of {known}: begins {head!r}")
    return codec


def _codec_of(head: bytes) -> _Codec | None:
    return next((codec for codec in _CODECS if head.startswith(codec.magic)), None)


class _Inflated(io.RawIOBase):
    def __init__(self, raw: BinaryIO, codec: _Codec, limit: int) -> None:
        self._codec, self._limit, self._at = codec, limit, 0
        self._stream = codec.opened(raw)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except StorageError:
            raise
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk, and not what is packed
                raise
            raise UnreadableFileError(f"broken {self._codec.name}: {error}") from error
        self._at += len(data)
        if self._at > self._limit:
            raise UnreadableFileError(
                f"the {self._codec.name} inflates to more than {self._limit:,} bytes, {_RATIO} times its size: a bomb"
            )
        buffer[: len(data)] = data
        return len(data)
