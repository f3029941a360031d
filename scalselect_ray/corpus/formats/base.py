"""What a format is: a way to cut a file into runs of rows, and a way to read runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from scalselect_ray.corpus.sample import Reason
from scalselect_ray.io.storage import FileInfo

MAX_ROW_BYTES = 1 << 28  # a longer row is no sample but an attack or an accident


class Run(NamedTuple):
    """Rows [first_row, stop_row) of a file and the bytes [start_byte, stop_byte) that hold them: (0, 0) in a stream,
    which has one start.

    Runs with the same bytes are read together.
    """

    first_row: int
    stop_row: int
    start_byte: int
    stop_byte: int


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a file is cut into runs: at most `max_rows` rows and `max_bytes` bytes each, around the runs in `kept` (first
    row to stop row), which are as they are."""

    max_rows: int
    max_bytes: int
    kept: Mapping[int, int] = field(default_factory=dict)

    def ends(self, first: int, row: int, size: int) -> bool:
        """Whether a run that began at row `first` ends before `row`, with which it would have `size` bytes."""
        if first in self.kept:
            return row >= self.kept[first]
        return row - first >= self.max_rows or size > self.max_bytes or row in self.kept


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that is there but cannot be parsed."""

    message: str
    reason: Reason = Reason.BROKEN_ROW


def parse_row(data: bytes) -> object:
    """One row of JSON, or `Broken`."""
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        return Broken(f"not JSON: {error}: {data[:60]!r}")


class UnreadableFileError(Exception):
    """The file, or its rest behind the runs already given, cannot be read."""


class Format(Protocol):
    """One container format. Rows are counted alike whatever the size of the runs."""

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[Run]:
        """The runs of a file in order. Raises UnreadableFileError where reading must stop, OSError."""
        ...

    def read(self, file: FileInfo, runs: Sequence[Run]) -> Iterator[tuple[Run, list[object]]]:
        """The records of consecutive runs, a run at a time; `Broken` in the place of a broken row."""
        ...


def cut(sizes: Iterator[tuple[int, int]], cutting: Cutting) -> Iterator[Run]:
    """Runs from the (start, stop) bytes of each row; one row may be larger than a run should be.

    An error of `sizes` passes through after the rows before it have been given.
    """
    first = row = 0
    begin = end = 0
    problem: UnreadableFileError | None = None
    rows = iter(sizes)
    while True:
        try:
            start, stop = next(rows)
        except StopIteration:
            break
        except UnreadableFileError as error:
            problem = error
            break
        if row > first and cutting.ends(first, row, stop - begin):
            yield Run(first, row, begin, end)
            first, begin = row, start
        elif row == first:
            begin = start
        row, end = row + 1, stop
    if row > first:
        yield Run(first, row, begin, end)
    if problem is not None:
        raise problem
