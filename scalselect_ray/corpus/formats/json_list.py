"""One JSON array of rows (LLaVA-665K and kin), streamed: only a window of it is in memory."""

import json
import re
from collections.abc import Iterator, Sequence

from scalselect_ray.corpus.formats.base import (
    MAX_ROW_BYTES,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    cut,
    parse_row,
    text_begins,
)
from scalselect_ray.corpus.formats.gzipped import inflated_head
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_WINDOW = 1 << 22  # bytes read at once
_BLANKS = re.compile(r"[ \t\r\n]*")


class JsonList(Format):
    """Slices are byte ranges of the file between the array's commas."""

    title = "JSON list"
    suffixes = (".json", ".json.gz")

    def begins(self, head: bytes) -> bool:
        inflated = inflated_head(head)
        if inflated is not None and text_begins(inflated, b"["):
            raise UnreadableFileError("a gzipped JSON list cannot be cut into slices: unpack it, or write JSON lines")
        return text_begins(head, b"[")

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        return cut(_elements(file), cutting)

    def read(self, file: FileInfo, ranges: Sequence[RowRange]) -> Iterator[tuple[RowRange, list[object]]]:
        for range_ in ranges:
            block = storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte)
            try:
                rows = json.loads(b"[" + block + b"]")
            except (ValueError, RecursionError):  # one row of them: in an unknown encoding, or too deep
                rows = [parse_row(element) for element in _split(block)]
            yield range_, rows


def _elements(file: FileInfo) -> Iterator[tuple[int, int]]:
    """(start, stop) byte of each element. The decoder of the standard library finds where an element ends."""
    decoder = json.JSONDecoder()
    with storage.open_read(file.uri) as stream:
        window, offset, row = b"", 0, 0  # `window` starts at byte `offset` of the file
        expect_comma, opened = False, False
        while True:
            block = stream.read(_WINDOW)
            window += block
            text, at = _decoded(window), 0  # ascii or latin-1 view: an index is a byte offset
            while True:
                at = _skip_blank(text, at)
                if at >= len(text):
                    break
                character = text[at]
                if not opened:
                    if character == "\ufeff" or text[at : at + 3] == "\xef\xbb\xbf":
                        at += 3
                        continue
                    if character != "[":
                        raise UnreadableFileError("not a JSON list")
                    opened, at = True, at + 1
                elif character == "]" and (expect_comma or row == 0):
                    return
                elif expect_comma:
                    if character != ",":
                        raise UnreadableFileError(
                            f"broken JSON behind row {row - 1}, at byte {offset + at}: expected ',' or ']'"
                        )
                    expect_comma, at = False, at + 1
                else:
                    try:
                        _, end = decoder.raw_decode(text, at)
                    except (ValueError, RecursionError) as error:
                        if block and len(text) - at < MAX_ROW_BYTES:
                            break  # may go on in the next window
                        raise UnreadableFileError(
                            f"broken JSON in row {row}, at byte {offset + at}: {error}"
                        ) from error
                    if end == len(text) and block:
                        break  # a number could go on
                    yield offset + at, offset + end
                    row, expect_comma, at = row + 1, True, end
            window, offset = window[at:], offset + at
            if not block:
                raise UnreadableFileError(
                    f"the JSON list breaks off behind row {row - 1}" if opened else "the file is empty"
                )


def _split(block: bytes) -> Iterator[bytes]:
    """The elements that lie in the bytes of a range_, each whole, as `_elements` found them."""
    decoder, text, at = json.JSONDecoder(), _decoded(block), 0
    while (at := _skip_blank(text, at)) < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise UnreadableFileError(f"broken JSON: {error}") from error
        yield block[at:end]
        at = _skip_blank(text, end) + 1  # behind the comma


def _decoded(window: bytes) -> str:
    return window.decode("latin-1")


def _skip_blank(text: str, at: int) -> int:
    return _BLANKS.match(text, at).end()  # type: ignore[union-attr]


FORMATS = (JsonList(),)
