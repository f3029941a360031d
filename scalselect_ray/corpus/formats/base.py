"""What a corpus format is: how a file is cut into ranges of rows, and how these are read."""

import bisect
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, ClassVar, NamedTuple

from scalselect_ray.corpus.fields import FIELDS
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.errors import StorageError
from scalselect_ray.io.storage import FileInfo

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_ROW_BYTES = 1 << 28  # a longer row is no sample but an attack or an accident
_ROWS = re.compile(rb'\s*[\[{]\s*(?:"([^"\\]{1,200})"\s*:\s*)?\{\s*"([^"\\]{1,200})"\s*:')
_TURNS = re.compile(rb'\[\s*\{\s*"(?:from|role|value|content)"\s*:')
_KEY = re.compile(r'\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*')
_NEXT = re.compile(r"\s*,")
_PARSE = json.JSONDecoder().raw_decode
MAX_ROW_VALUES = 1 << 18  # texts, numbers, lists and objects of a row, so that it takes no gigabytes once parsed


class RowRange(NamedTuple):
    """Rows [first_row, stop_row) of a file and the bytes [start_byte, stop_byte) that hold them: (0, 0) in a stream,
    which has one start.

    Ranges with the same bytes are read together.
    """

    first_row: int
    stop_row: int
    start_byte: int
    stop_byte: int
    digest: str = ""  # as `digest_of` of this package tells it, where its `scan` gives it


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a file is cut into ranges: at most `max_rows` rows and `max_bytes` bytes each, around the ranges in `kept`
    (first row to stop row), which stay as they are."""

    max_rows: int
    max_bytes: int
    kept: Mapping[int, int] = field(default_factory=dict)

    def ends(self, first: int, row: int, size: int) -> bool:
        """Whether a range that began at row `first` ends before `row`, with which it would have `size` bytes."""
        if first in self.kept:
            return row >= self.kept[first]
        return row - first >= self.max_rows or size > self.max_bytes or row in self.kept


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that is there but cannot be parsed."""

    message: str
    reason: Reason = Reason.BROKEN_ROW
    lost_bytes: int = 0  # where it stands for many rows


def parse_row(data: bytes) -> object:
    """One row of JSON, or `Broken`."""
    if len(data) > MAX_ROW_BYTES:
        return too_long(len(data))
    if (values := count_values(data)) > MAX_ROW_VALUES:
        return Broken(
            f"the row has {values:,} commas, lists and objects, above the limit of {MAX_ROW_VALUES:,}",
            Reason.TOO_COSTLY,
            lost_bytes=len(data) if _begins_as_rows(data) else 0,
        )
    try:
        return json.loads(data.removeprefix(BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        several = isinstance(error, json.JSONDecodeError) and _goes_on(error)
        what = "several rows in the place of one, not JSON" if several else "not JSON"
        return Broken(f"{what}: {error}: {data[:60]!r}", lost_bytes=len(data) if several else 0)


def _begins_as_rows(data: bytes) -> bool:
    """Whether what stands in the place of a row begins as several: in a list, in an object by their names, or in
    columns."""
    found = _ROWS.match(data)
    if found is None:
        return False
    outer, inner = ((name or b"").decode("utf-8", "replace") for name in found.groups())
    return inner == "0" if outer in FIELDS else inner in FIELDS


def _goes_on(error: json.JSONDecodeError) -> bool:
    """Whether another object follows what is whole JSON."""
    return error.msg == "Extra data" and error.doc[error.pos :].lstrip(" ,\t\r\0").startswith("{")


def count_values(data: bytes) -> int:
    """Never fewer than the values that JSON holds, and cheap: 0 where it is too short to hold more than
    `MAX_ROW_VALUES`."""
    return sum(map(data.count, (b",", b"[", b"{"))) if len(data) > MAX_ROW_VALUES else 0


def too_long(size: int, file_size: int | None = None) -> Broken:
    """In the place of a row of so many bytes, which nobody reads. It stands for many where it is the whole file."""
    message = f"the row has {size:,} bytes, above the limit of {MAX_ROW_BYTES:,}"
    return Broken(message, Reason.TOO_COSTLY, lost_bytes=size if size == file_size else 0)


class UnreadableFileError(Exception):
    """The file, or its rest after the ranges already given, cannot be read. `lost_bytes`: of that rest, where it is not
    all that follows these ranges."""

    def __init__(self, message: str, lost_bytes: int | None = None) -> None:
        super().__init__(message)
        self.lost_bytes = lost_bytes


class Format(ABC):
    """One container format. Rows are counted alike whatever the size of the ranges.

    The module that defines a format lists its objects in `FORMATS`; nothing else has to know it."""

    title: ClassVar[str]  # for people, such as "JSON lines"
    suffixes: ClassVar[tuple[str, ...]]  # of its files' names; where several formats share one, `begins` decides
    taken: ClassVar[tuple[str, ...]] = ()  # suffixes of files that it reads however they begin, if no other knows them
    packed: ClassVar[bool] = False  # its files are compressed, and `begins` is given what is in them
    sequential: ClassVar[bool] = False  # a stream, which can only be read from its start
    scanned: ClassVar[bool] = False  # `scan` reads every byte of a range, so that it costs little to do so once more
    placed: ClassVar[bool] = False  # where a range lies in the file is told by its rows alone
    indexed: ClassVar[bool] = False  # `scan` costs little: the file says by itself where its rows are

    @abstractmethod
    def begins(self, head: bytes) -> bool:
        """Whether a file with these first bytes (4096, or all it has) is of this format. Raises UnreadableFileError
        where it is of a kind that nothing here can read."""

    @abstractmethod
    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        """The ranges of a file in order. Raises UnreadableFileError where reading must stop, OSError."""

    @abstractmethod
    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        """The records of consecutive ranges, one range at a time; `Broken` where a row is broken. A format that has
        its fields apart reads `fields` alone; the `Record`s then name the others as unread."""

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        """Writes a file of this format with some rows of `file`, which lie in `ranges`, as they stand there; returns
        how many these are. Raises UnreadableFileError."""
        raise UnreadableFileError(f"{self.title}: rows of such a file cannot be written to another one")


def text_begins(head: bytes, character: bytes) -> bool:
    """Whether a text with these first bytes begins with `character`, blanks aside. A tar begins with a name, which is
    no text."""
    return head[257:262] != b"ustar" and head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(character)


def first_keys(head: bytes) -> dict[str, int]:
    """The keys of an object with these first bytes, and where the value of each begins: as far as they are whole, and
    the key after them."""
    text = head.decode("latin-1")  # a character a byte
    at, found = text.find("{") + 1, dict[str, int]()
    while (key := _KEY.match(text, at)) is not None:
        found.setdefault(key[1], key.end())
        try:
            _, at = _PARSE(text, key.end())
        except (ValueError, RecursionError):
            break
        following = _NEXT.match(text, at)
        if following is None:
            break
        at = following.end()
    return found


def lines_begin(head: bytes) -> bool:
    """Whether these first bytes, which begin with a bracket, are of a text with a row on each line: objects, or lists
    of turns (a list of rows on a line is one of several lists that were joined)."""
    first, *others = head.removeprefix(BYTE_ORDER_MARK).lstrip().splitlines() or [b""]
    if first.startswith(b"["):
        return _TURNS.match(first) is not None
    return any(line.strip() for line in others) and isinstance(parse_row(first.rstrip().removesuffix(b",")), dict)


def cut(sizes: Iterator[tuple[int, int]], cutting: Cutting) -> Iterator[RowRange]:
    """Ranges from the (start, stop) bytes of each row; one row may be larger than a range should be.

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
            yield RowRange(first, row, begin, end)
            first, begin = row, start
        elif row == first:
            begin = start
        row, end = row + 1, stop
    if row > first:
        yield RowRange(first, row, begin, end)
    if problem is not None:
        raise problem


def ranges_of_groups(groups: Sequence[tuple[int, int]], cutting: Cutting) -> Iterator[RowRange]:
    """Ranges from the (rows, bytes) of groups of rows that are read as one: whole groups where these are near the
    wanted size, else parts of one, which have the same bytes. The bytes of a range are counted from the first group."""
    at, firsts = 0, sorted(cutting.kept)
    for range_ in _whole_or_parts(groups, cutting.max_rows, cutting.max_bytes):
        at = max(at, range_.first_row)
        while at < range_.stop_row:  # what lies in a kept range goes, the rest ends at it
            following = firsts[bisect.bisect_right(firsts, at) :][:1]
            stop = cutting.kept.get(at) or min([range_.stop_row, *following])
            yield RowRange(at, stop, range_.start_byte, range_.stop_byte)
            at = stop


def _whole_or_parts(groups: Sequence[tuple[int, int]], max_rows: int, max_bytes: int) -> Iterator[RowRange]:
    first = begin = end = 0
    pending = pending_bytes = 0
    for rows, size in groups:
        parts = max(math.ceil(rows / max_rows), math.ceil(size / max_bytes), 1)
        parts = min(parts, max(rows, 1))
        if pending and (pending + rows > max_rows or pending_bytes + size > max_bytes):
            yield RowRange(first, first + pending, begin, end)
            first, begin, pending, pending_bytes = first + pending, end, 0, 0
        end = begin + pending_bytes + size
        if parts == 1:
            pending, pending_bytes = pending + rows, pending_bytes + size
            continue
        for part in range(parts):  # a large group, in equal parts
            start, stop = (first + rows * edge // parts for edge in (part, part + 1))
            if stop > start:
                yield RowRange(start, stop, begin, end)
        first, begin = first + rows, end
    if pending:
        yield RowRange(first, first + pending, begin, end)


def is_trouble(error: Exception) -> bool:
    """Whether it is the disk or the store that fails, and not what the file holds: Arrow raises an OSError for both."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and bool(error.errno))
