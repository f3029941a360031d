"""What a decoder would spend on a picture, told by its bytes alone, before any decoder sees them.

`lean` leaves out what no pixel of the first frame depends on (metadata, later frames), and refuses what would cost far
more than its pixels: hundreds of scans, thousands of pieces. It reads each byte at most once and holds no more than one
copy of the picture."""

import re
import struct
from typing import NamedTuple

import numpy as np

from scalselect_ray.corpus.sample import Reason, SampleRejectedError

MAX_SCANNED = 1 << 31  # pixels times scans: 16 scans of the largest picture, 178 of one of 12 megapixels
MAX_PIECES = 1 << 16  # segments, chunks, blocks or strips
_SLOW_PIXELS = 1 << 22  # of kinds that Pillow decodes in Python, and so a hundred times slower
_SLOW_BYTES = 1 << 23
_SLOW_WIDTH = 1 << 16
_HEADER = 1 << 16  # bytes of a PPM header with its comments
_BLOCK = 1 << 20
_COMMENTS = 1000  # in a PPM of plain text

_JPEG_KEPT = {0xE0, 0xEE}  # APP0 and APP14: whether colours are YCbCr, RGB or CMYK
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_JPEG_BARE = {0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}  # markers that nothing follows
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_PNG_BEFORE = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL")  # chunks before the pixels that change them
_PPM_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]")
_GIF_BLOCK = re.compile(rb"[!,;]")


class Lean(NamedTuple):
    """A picture to decode."""

    data: bytes
    scanned: int = 0  # pixels times scans, where there are scans


def lean(name: str, data: bytes) -> Lean:
    """A picture with the same pixels that costs little more to decode than its pixels do. What is of no known kind, or
    broken, comes back as it is. Raises SampleRejectedError with the reason TOO_COSTLY."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return Lean(_png(data))
        if data.startswith((b"GIF87a", b"GIF89a")):
            return Lean(_gif(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            _webp(data)
        elif data.startswith((b"II", b"MM")) and sorted(data[2:4]) in ([0, 42], [0, 43]):
            _tiff(data)
        elif data.startswith(b"BM"):
            _bmp(data)
        elif data[:1] == b"P":
            _ppm(data)
    except _TooCostlyError as error:
        raise SampleRejectedError(Reason.TOO_COSTLY, f"{name}: {error}") from error
    except (struct.error, LookupError, ValueError):
        pass  # cut or broken: its decoder says how
    return Lean(data)


class _TooCostlyError(Exception):
    pass


class _Pieces:
    """Counts the pieces of one picture."""

    def __init__(self, what: str) -> None:
        self._what, self._count = what, 0

    def add(self, count: int = 1) -> None:
        self._count += count
        if self._count > MAX_PIECES:
            raise _TooCostlyError(f"it has more than {MAX_PIECES:,} {self._what}")


def _jpeg(data: bytes) -> Lean:
    kept, at, pixels, components = [data[:2]], 2, 0, 0
    pieces = _Pieces("segments before its first scan")
    while True:  # as Pillow and libjpeg go through a header: junk between segments is passed over
        at = data.find(b"\xff", at)
        if at < 0 or at + 10 > len(data):
            return Lean(b"".join(kept))  # no scan: its decoder says so, and is spared the junk
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            at += 1
            continue
        pieces.add()
        if marker == 0xDA:
            break
        if marker in _JPEG_BARE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + max(length, 2)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            pixels, components = max(pixels, width * height), 0 if marker in _JPEG_PROGRESSIVE else data[at + 9]
        if marker in _JPEG_KEPT or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[at:end])
        at = end
    scans = 1 if components == data[at + 4] else _count_scans(data, at)  # one scan of all components is the only one
    if scans * pixels > MAX_SCANNED and (scans := _jpeg_scans(data, at)) * pixels > MAX_SCANNED:
        raise _TooCostlyError(
            f"{pixels:,} pixels in {scans:,} scans are {scans * pixels:,} to decode, above the limit of {MAX_SCANNED:,}"
        )
    whole = sum(map(len, kept)) == at
    return Lean(data if whole else b"".join([*kept, memoryview(data)[at:]]), scans * pixels)


def _count_scans(data: bytes, start: int = 0) -> int:
    """How often the marker of a scan stands there. The pixels of a scan never hold it, but other data can."""
    scans = 0
    for at in range(start, len(data), _BLOCK):
        block = np.frombuffer(data, np.uint8, min(_BLOCK + 1, len(data) - at), at)
        scans += int(np.count_nonzero((block[:-1] == 0xFF) & (block[1:] == 0xDA)))
    return scans


def _jpeg_scans(data: bytes, at: int) -> int:
    """Scans up to the end of the first picture, from the first scan at byte `at`."""
    scans = 0
    while found := _JPEG_MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker not in _JPEG_BARE and at + 2 <= len(data):
            at += max(struct.unpack_from(">H", data, at)[0], 2)
    return scans


def _png(data: bytes) -> bytes:
    kept, at, start = [data[:8]], 8, 0  # `start`: the first byte of the pixels
    pieces = _Pieces("chunks")
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        pieces.add()
        if kind == b"IDAT":
            start = start or at
        elif start or kind == b"IEND":
            break
        elif kind in _PNG_BEFORE:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    if start and sum(map(len, kept)) == start and at + 12 >= len(data):
        return data
    end = b"" if at >= len(data) else b"\0\0\0\0IEND\xaeB`\x82"
    return b"".join([*kept, memoryview(data)[start or at : at], end])


def _gif(data: bytes) -> bytes:
    flags = data[10]
    begin = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    at, kept = begin, []
    pieces = _Pieces("blocks before its first frame")
    while (found := _GIF_BLOCK.search(data, at)) and found[0] == b"!":  # Pillow passes over what is no block
        start, at = found.start(), found.start() + 2
        while size := data[at]:
            pieces.add()
            at += 1 + size
        pieces.add()
        at += 1
        if data[start + 1] == 0xF9:  # which colour is transparent
            kept.append(data[start:at])
    at = found.start() if found else len(data)
    return data if at - begin == sum(map(len, kept)) else b"".join([data[:begin], *kept, memoryview(data)[at:]])


def _webp(data: bytes) -> None:
    pieces, at = _Pieces("chunks"), 12
    while at + 8 <= len(data):
        pieces.add()
        (size,) = struct.unpack_from("<I", data, at + 4)
        at += 8 + size + (size & 1)


def _tiff(data: bytes) -> None:
    order = "<" if data[:1] == b"I" else ">"
    big = data[2] == 43  # as Pillow tells
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    _Pieces("tags").add(entries)
    at += 8 if big else 2
    numbers: dict[int, tuple[int, ...]] = {}
    for _ in range(entries):
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
        if (
            tag in (256, 257, 259, 273, 278, 279, 322, 324, 325) and tag not in numbers
        ):  # what says where the pixels lie
            _Pieces("strips or tiles").add(count)
            code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            value, room = at + (12 if big else 8), 8 if big else 4
            if struct.calcsize(code) * count > room:
                (value,) = struct.unpack_from(order + ("Q" if big else "I"), data, value)
            numbers[tag] = struct.unpack_from(f"{order}{count}{code}", data, value)
        at += 20 if big else 12
    sizes = numbers.get(279, ()) + numbers.get(325, ())
    if sum(sizes) > 2 * len(data):
        raise _TooCostlyError(f"its strips are {sum(sizes):,} bytes of a file of {len(data):,}: they overlap")
    pixels, scans = numbers[256][0] * numbers[257][0], 0
    if numbers.get(259, (1,))[0] in (6, 7):  # each strip is a JPEG
        scans = _count_scans(data)
    if scans > 16 * max(len(sizes), 1) and pixels * scans // max(len(sizes), 1) > MAX_SCANNED:
        raise _TooCostlyError(f"{pixels:,} pixels in {scans:,} scans are above the limit of {MAX_SCANNED:,}")


def _bmp(data: bytes) -> None:
    header, width, height = struct.unpack_from("<III", data, 14)
    (compression,) = struct.unpack_from("<I", data, 30)
    height = min(height, (1 << 32) - height)  # negative: from the top
    if header != 12 and compression in (1, 2):
        _slow("a run-length BMP", width, height, len(data))


def _ppm(data: bytes) -> None:
    tokens = _PPM_COMMENT.sub(b"", data[:_HEADER]).split(None, 4)[:4]
    if len(tokens) < 4 and len(data) > _HEADER:
        raise _TooCostlyError(f"its header is longer than {_HEADER:,} bytes")
    magic, width, height = tokens[0], int(tokens[1]), int(tokens[2])
    if magic in (b"P1", b"P2", b"P3"):
        if (comments := data.count(b"#")) > _COMMENTS:
            raise _TooCostlyError(f"it has {comments:,} comments, more than {_COMMENTS:,}")
        _slow("a PPM in plain text", width, height, len(data))
    elif magic in (b"P5", b"P6") and tokens[3] != b"255" and (magic, tokens[3]) != (b"P5", b"65535"):
        _slow(f"a PPM with a maximum of {int(tokens[3])}", width, height, 0)


def _slow(what: str, width: int, height: int, size: int) -> None:
    if width * height > _SLOW_PIXELS or size > _SLOW_BYTES or width > _SLOW_WIDTH:
        raise _TooCostlyError(
            f"{what} of {width}x{height} pixels in {size:,} bytes is slow to decode: above the limit of "
            f"{_SLOW_PIXELS:,} pixels, {_SLOW_BYTES:,} bytes or a width of {_SLOW_WIDTH:,}"
        )
