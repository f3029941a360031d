"""Gzip as a stream that cannot blow up."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from scalselect_ray.corpus.formats.base import UnreadableFileError
from scalselect_ray.io.storage import FileInfo

_BLOCK = 1 << 16
_FREE = 1 << 26  # bytes that any file may inflate to
_RATIO = 200  # what a larger one may inflate to, in its own sizes: text comes to 20, deflate could go to 1000


def inflated(raw: BinaryIO, file: FileInfo) -> BinaryIO:
    """The content of a gzip file that is open as `raw`; checked by the file's own checksum, as far as it is read.

    Reads raise UnreadableFileError where the gzip is broken, or where it turns out to be a bomb: little memory is spent
    before that, and little time."""
    return cast(BinaryIO, io.BufferedReader(_Inflated(raw, max_inflated(file)), _BLOCK))


@contextlib.contextmanager
def deflated(stream: BinaryIO) -> Iterator[BinaryIO]:
    """What is written to it goes to `stream` as gzip: of the same bytes the same, without a name or a time."""
    with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
        yield cast(BinaryIO, packed)


def inflated_head(head: bytes) -> bytes | None:
    """What the first bytes of a gzip file inflate to, at most 4096 bytes; None where it is no gzip. Raises
    UnreadableFileError where it is a broken one."""
    if not head.startswith(b"\x1f\x8b"):
        return None
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 4096)
    except zlib.error as error:
        raise UnreadableFileError(f"broken gzip: {error}") from error


def max_inflated(file: FileInfo) -> int:
    """Bytes that a gzip file may inflate to."""
    return _FREE + _RATIO * file.size


class _Inflated(io.RawIOBase):
    def __init__(self, raw: BinaryIO, limit: int) -> None:
        self._gzip = gzip.GzipFile(fileobj=raw)
        self._limit, self._at = limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._gzip.read(len(buffer))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableFileError(f"broken gzip: {error}") from error
        self._at += len(data)
        if self._at > self._limit:
            raise UnreadableFileError(
                f"the gzip inflates to more than {self._limit:,} bytes, {_RATIO} times its size: a bomb"
            )
        buffer[: len(data)] = data
        return len(data)
