"""JSON lines, plain (slices are byte ranges) or packed (read as one stream). A row is a line that is not blank."""

import contextlib
import io
import re
from collections.abc import Collection, Container, Iterator, Sequence
from typing import BinaryIO, ClassVar, cast

from scalselect_ray.corpus.fields import FIELDS
from scalselect_ray.corpus.formats.base import (
    BYTE_ORDER_MARK,
    MAX_ROW_BYTES,
    Broken,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    cut,
    lines_begin,
    parse_row,
    text_begins,
    too_long,
)
from scalselect_ray.corpus.formats.packed import SUFFIXES, deflated, inflated
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_WINDOW = 1 << 23  # bytes read at once
_PACKED_WINDOW = 1 << 16  # the same; rows that end in it are lost where it breaks
_BLANKS = re.compile(rb"\s*+")


class JsonLines(Format):
    """One object a line."""

    title = "JSON lines"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")
    taken: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    scanned = True

    def begins(self, head: bytes) -> bool:
        return text_begins(head, b"{") or (text_begins(head, b"[") and lines_begin(head))

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        for range_ in cut(((start, stop) for start, stop, _ in self._lines(file)), cutting):
            yield range_._replace(start_byte=0, stop_byte=0) if self.sequential else range_

    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        for range_, lines in self._raw(file, ranges):
            yield range_, [line if isinstance(line, Broken) else _parsed(line) for line in lines]

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        count = 0
        with deflated(stream, file) if self.sequential else contextlib.nullcontext(stream) as written:
            for range_, lines in self._raw(file, ranges):
                for row, line in enumerate(lines, start=range_.first_row):
                    if row in rows and not isinstance(line, Broken):
                        written.write(line.removeprefix(BYTE_ORDER_MARK).strip() + b"\n")
                        count += 1
        return count

    def _raw(self, file: FileInfo, ranges: Sequence[RowRange]) -> Iterator[tuple[RowRange, list[bytes | Broken]]]:
        """The lines of consecutive ranges."""
        if not self.sequential:
            for range_ in ranges:
                size = range_.stop_byte - range_.start_byte
                if size > MAX_ROW_BYTES + 1 and range_.stop_row - range_.first_row == 1:
                    yield range_, [too_long(size, file.size)]
                    continue
                block = storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte)
                yield range_, [line for line in block.split(b"\n") if line.strip()]
            return
        lines = self._lines(file)
        row = 0
        for range_ in ranges:
            raw: list[bytes | Broken] = []
            while row < range_.stop_row and (found := next(lines, None)):
                if row >= range_.first_row:
                    start, stop, line = found
                    raw.append(too_long(stop - start) if line is None else line.removesuffix(b"\n"))
                row += 1
            yield range_, raw

    def _lines(self, file: FileInfo) -> Iterator[tuple[int, int, bytes | None]]:
        """(start, stop, line) of each line that is not blank, without the blanks before it; None in the place of one
        that is longer than a row may be."""
        with storage.open_read(file.uri) as raw:
            stream = cast(io.BufferedReader, inflated(raw, file) if self.sequential else raw)
            base = start = size = row = 0  # `size`: bytes of the line that were seen, from its first that is not blank
            read = 0  # bytes of the file, about, up to the last row
            pieces: list[bytes] = []
            while True:
                try:
                    block = stream.read1(_PACKED_WINDOW if self.sequential else _WINDOW)
                except UnreadableFileError as error:
                    raise UnreadableFileError(f"after row {row - 1}: {error}", file.size - read) from error
                if not block:
                    break
                at = 0
                while at < len(block):
                    if not size:
                        at = _BLANKS.match(block, at).end()  # type: ignore[union-attr]
                        if at == len(block):
                            break
                        start = base + at
                    end = block.find(b"\n", at) + 1
                    piece = block[at : end or len(block)]
                    size += len(piece)
                    if size <= MAX_ROW_BYTES + 1:
                        pieces.append(piece)
                    else:
                        pieces.clear()
                    if not end:
                        break
                    yield start, start + size, b"".join(pieces) if pieces else None
                    pieces, size, row, at = [], 0, row + 1, end
                    read = raw.tell()
                base += len(block)
            if size:
                yield start, start + size, b"".join(pieces) if pieces else None


def _parsed(line: bytes) -> object:
    """The row on a line, which may end in a comma, as if the lines were those of a list."""
    stripped = line.rstrip()
    return parse_row(stripped[:-1] if stripped.endswith(b",") else line)


class PackedJsonLines(JsonLines):
    """JSON lines in one packed stream."""

    suffixes = tuple(name + packed for name in JsonLines.suffixes for packed in SUFFIXES)
    taken = tuple(name + packed for name in JsonLines.taken for packed in SUFFIXES)
    packed = sequential = True
    scanned = False


FORMATS = (JsonLines(), PackedJsonLines())
