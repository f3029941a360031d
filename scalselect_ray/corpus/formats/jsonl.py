"""JSON lines, plain (slices are byte ranges) or gzipped (read as one stream). A row is a line that is not blank."""

from collections.abc import Iterator, Sequence

from scalselect_ray.corpus.formats.base import MAX_ROW_BYTES, Cutting, Run, UnreadableFileError, cut, parse_row
from scalselect_ray.corpus.formats.gzipped import inflated
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_MAX_BLANK = 1 << 16  # bytes of lines without a row, at most


class JsonLines:
    """One object a line."""

    def __init__(self, compressed: bool = False) -> None:
        self.sequential = compressed

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[Run]:
        for run in cut(((start, stop) for start, stop, _ in self._lines(file)), cutting):
            yield run._replace(start_byte=0, stop_byte=0) if self.sequential else run

    def read(self, file: FileInfo, runs: Sequence[Run]) -> Iterator[tuple[Run, list[object]]]:
        if not self.sequential:
            for run in runs:
                block = storage.read_bytes(file.uri, run.start_byte, run.stop_byte)
                yield run, [parse_row(line) for line in block.split(b"\n") if line.strip()]
            return
        lines = (line for _, _, line in self._lines(file))
        row = 0
        for run in runs:
            records: list[object] = []
            while row < run.stop_row:
                line = next(lines, None)
                if line is None:
                    break
                if row >= run.first_row:
                    records.append(parse_row(line))
                row += 1
            yield run, records

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
