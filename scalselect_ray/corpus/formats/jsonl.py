"""JSON lines, plain (slices are byte ranges) or gzipped (read as one stream). A row is a line that is not blank."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

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
from scalselect_ray.corpus.formats.gzipped import inflated, inflated_head
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_MAX_BLANK = 1 << 16  # bytes of lines without a row, at most


class JsonLines(Format):
    """One object a line."""

    title = "JSON lines"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def begins(self, head: bytes) -> bool:
        return text_begins(head, b"{")

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        for range_ in cut(((start, stop) for start, stop, _ in self._lines(file)), cutting):
            yield range_._replace(start_byte=0, stop_byte=0) if self.sequential else range_

    def read(self, file: FileInfo, ranges: Sequence[RowRange]) -> Iterator[tuple[RowRange, list[object]]]:
        if not self.sequential:
            for range_ in ranges:
                block = storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte)
                yield range_, [parse_row(line) for line in block.split(b"\n") if line.strip()]
            return
        lines = (line for _, _, line in self._lines(file))
        row = 0
        for range_ in ranges:
            records: list[object] = []
            while row < range_.stop_row:
                line = next(lines, None)
                if line is None:
                    break
                if row >= range_.first_row:
                    records.append(parse_row(line))
                row += 1
            yield range_, records

    def _lines(self, file: FileInfo) -> Iterator[tuple[int, int, bytes]]:
        """(start, stop, line) of each line that is not blank."""
        with storage.open_read(file.uri) as raw:
            stream = inflated(raw, file) if self.sequential else raw
            at = row = last = 0
            while True:
                try:
                    line = stream.readline(MAX_ROW_BYTES)
                except UnreadableFileError as error:
                    raise UnreadableFileError(f"behind row {row - 1}: {error}") from error
                if not line:
                    return
                if len(line) >= MAX_ROW_BYTES:
                    raise UnreadableFileError(f"row {row} is longer than {MAX_ROW_BYTES:,} bytes")
                if line.strip():
                    yield at, at + len(line), line
                    row, last = row + 1, at + len(line)
                elif at - last > _MAX_BLANK:
                    raise UnreadableFileError(f"more than {_MAX_BLANK:,} bytes of blank lines behind row {row - 1}")
                at += len(line)


class GzippedJsonLines(JsonLines):
    """JSON lines in one gzip stream."""

    suffixes = (".jsonl.gz", ".ndjson.gz", ".json.gz")
    sequential = True

    def begins(self, head: bytes) -> bool:
        inflated = inflated_head(head)
        return inflated is not None and text_begins(inflated, b"{")


FORMATS = (JsonLines(), GzippedJsonLines())
