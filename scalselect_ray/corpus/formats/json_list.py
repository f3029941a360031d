"""One JSON array of rows (LLaVA-665K and kin), streamed: each byte is looked at once, and only a window and the row
that it ends in are in memory."""

import io
import itertools
import json
import re
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from typing import BinaryIO, ClassVar, cast

from scalselect_ray.corpus.fields import FIELDS
from scalselect_ray.corpus.formats.base import (
    BYTE_ORDER_MARK,
    MAX_ROW_BYTES,
    MAX_ROW_VALUES,
    Broken,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    count_values,
    cut,
    lines_begin,
    parse_row,
    text_begins,
    too_long,
)
from scalselect_ray.corpus.formats.packed import SUFFIXES, deflated, inflated
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

WINDOW = 1 << 22  # bytes read at once
_PACKED_WINDOW = 1 << 16  # the same; rows that end in it are lost where it breaks
_BETWEEN = re.compile(rb"[ \t\r\n,]*+")
_ROW = re.compile(rb"[-\[{0-9tfnNI]")  # what a row may begin with among objects: a text there is a quote too many
_SCALAR = re.compile(rb'[^ \t\r\n,\[\]{}"]*+')  # a number, true, false or null
_REST = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'  # of a string
_STRING = re.compile(_REST, re.DOTALL)
_FLAT = rb'[^"\[\]{}]++|"' + _REST + rb'"'  # what neither opens nor closes


def _nested(depth: int) -> bytes:
    """An object or a list with all that is in it, down to a depth."""
    inner = rb"|" + _nested(depth - 1) if depth else b""
    return rb"[\[{](?:" + _FLAT + inner + rb")*+[\]}]"


_WHOLE = re.compile(_nested(4), re.DOTALL)  # a row with its turns, which have typed lists
_INSIDE = re.compile(rb"(?:" + _FLAT + rb"|" + _nested(3) + rb")*+", re.DOTALL)
_FIRST_KEY = re.compile(rb'\{[ \t\r\n]*("' + _REST + rb'")[ \t\r\n]*:', re.DOTALL)
_LEARNT = 64  # rows from which it is learnt how a row begins
_OVERLAP = 1 << 12  # bytes; more than a border has
_CUT_OFF = 8  # bytes; where JSON ends too early, the parser complains no further from its end (a literal, an escape)


class JsonList(Format):
    """Slices are byte ranges of the file between the array's commas."""

    title = "JSON list"
    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson")
    scanned = True
    listed: ClassVar[bool] = True  # its rows stand in brackets

    def begins(self, head: bytes) -> bool:
        return text_begins(head, b"[") and not lines_begin(head)

    def opens(self, file: FileInfo) -> int:
        """The byte at which the list begins."""
        return 0

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        return cut(_elements(file, self.listed), cutting)

    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        for range_ in ranges:
            size = range_.stop_byte - range_.start_byte
            if size > MAX_ROW_BYTES and range_.stop_row - range_.first_row == 1:
                yield range_, [too_long(size)]
                continue
            block = storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte)
            yield range_, _parsed(block, lambda: border_of(file, self.opens(file)))

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        return self.write(self.chosen(file, ranges, rows), stream)

    def write(self, rows: Iterator[bytes], stream: BinaryIO) -> int:
        """Writes a file of such rows; returns how many these are."""
        count = 0
        for row in rows:
            stream.write((b",\n" if count else b"[\n") + row)
            count += 1
        stream.write(b"\n]\n" if count else b"[]\n")
        return count

    def chosen(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int]) -> Iterator[bytes]:
        """Some rows as they stand in a file, without the blanks around them."""
        for range_ in ranges:
            wanted = [row for row in range(range_.first_row, range_.stop_row) if row in rows]
            if not wanted:
                continue
            block = storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte)
            places = _places(block, border_of(file, self.opens(file)))
            for start, stop in (places[row - range_.first_row] for row in wanted):
                yield block[start:stop].strip()


class PackedJsonList(JsonList):
    """A list in one packed stream."""

    suffixes = tuple(name + packed for name in JsonList.suffixes for packed in SUFFIXES)
    packed = sequential = True
    scanned = False

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        for range_ in cut(((start, stop) for start, stop, _ in _unpacked(file, self.listed)), cutting):
            yield range_._replace(start_byte=0, stop_byte=0)

    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        for range_, found in self._in_ranges(file, ranges):
            yield range_, [too_long(stop - start) if row is None else parse_row(row) for start, stop, row in found]

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        with deflated(stream, file) as packed:
            return super().copy_rows(file, ranges, rows, packed)

    def chosen(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int]) -> Iterator[bytes]:
        for range_, found in self._in_ranges(file, ranges):
            for row, (_, _, data) in enumerate(found, start=range_.first_row):
                if row in rows and data is not None:
                    yield data.strip()

    def _in_ranges(
        self, file: FileInfo, ranges: Sequence[RowRange]
    ) -> Iterator[tuple[RowRange, list[tuple[int, int, bytes | None]]]]:
        """What `_unpacked` gives of consecutive ranges."""
        elements, row = _unpacked(file, self.listed), 0
        for range_ in ranges:
            found = list(itertools.islice(elements, range_.first_row - row, range_.stop_row - row))
            row = range_.stop_row
            yield range_, found


def _unpacked(file: FileInfo, listed: bool) -> Iterator[tuple[int, int, bytes | None]]:
    """(start, stop, row) of each row in what a packed list holds, if they are `listed` in one; None in the place of one
    that is longer than a row may be. Raises UnreadableFileError where the list breaks off or cannot be unpacked
    further, after the rows before."""
    with storage.open_read(file.uri) as raw:
        stream = cast(io.BufferedReader, inflated(raw, file))
        head, problem = _head(stream)
        # `read`: bytes of the file, about, up to the last row
        elements, read = Elements(border(head), listed=not listed), 0
        while head:
            for start, stop in elements.feed(head):
                yield start, stop, elements.data(start, stop)
                read = raw.tell()
            if problem is not None:
                break
            try:
                head = stream.read1(_PACKED_WINDOW)
            except UnreadableFileError as error:
                problem = error
        for start, stop in elements.end():
            yield start, stop, elements.data(start, stop)
    if problem is not None:
        raise UnreadableFileError(f"after row {elements.rows - 1}: {problem}", file.size - read) from problem
    if elements.listed and listed:
        raise UnreadableFileError(f"the JSON list breaks off after row {elements.rows - 1}", file.size - read)
    if elements.has_begun:
        start, stop = elements.stop, elements.fed
        yield start, stop, elements.data(start, stop)


def _head(stream: io.BufferedReader) -> tuple[bytes, UnreadableFileError | None]:
    """The first bytes of a stream, by which it is learnt how rows begin; and what kept it from giving more."""
    pieces: list[bytes] = []
    try:
        while sum(map(len, pieces)) < WINDOW and (piece := stream.read1(_PACKED_WINDOW)):
            pieces.append(piece)
    except UnreadableFileError as error:
        return b"".join(pieces), error
    return b"".join(pieces), None


def _parsed(block: bytes, border: Callable[[], re.Pattern[bytes] | None]) -> list[object]:
    """The rows that lie in the bytes of a range."""
    if len(block) <= MAX_ROW_BYTES and count_values(block) <= MAX_ROW_VALUES:
        try:
            return list(json.loads(b"[" + block + b"]"))
        except (ValueError, RecursionError):  # one row of them is broken, or what stands between them
            pass
    return [parse_row(block[start:stop]) for start, stop in _places(block, border())]


def _places(block: bytes, border: re.Pattern[bytes] | None) -> list[tuple[int, int]]:
    """(start, stop) of each row in the bytes of a range."""
    elements = Elements(border, listed=True)
    found = [*elements.feed(block), *elements.end()]
    if elements.has_begun:  # it was broken, and ended where the next one begins
        found.append((elements.stop, len(block)))
    return found


def _elements(file: FileInfo, listed: bool) -> Iterator[tuple[int, int]]:
    """(start, stop) byte of each element. Raises UnreadableFileError where the list, if they are `listed` in one,
    breaks off."""
    elements = Elements(border_of(file), listed=not listed)
    with storage.open_read(file.uri) as stream:
        while block := stream.read(WINDOW):
            yield from elements.feed(block)
    yield from elements.end()
    if elements.listed and listed:
        raise UnreadableFileError(f"the JSON list breaks off after row {elements.rows - 1}", file.size - elements.stop)
    if elements.has_begun:
        yield elements.stop, file.size


def border_of(file: FileInfo, opens: int = 0) -> re.Pattern[bytes] | None:
    """The border of the list that begins at byte `opens` of a file."""
    return border(storage.read_bytes(file.uri, opens, min(file.size, opens + WINDOW)))


def border(head: bytes) -> re.Pattern[bytes] | None:
    """What a row begins with in a list that begins so: a bracket, and the first key of one of its first rows. None
    where these are no objects.

    Inside a string each quote would have a backslash before it: a row with a border in it has objects that begin as
    rows do, or is broken."""
    elements = Elements()
    starts = [start for start, _ in itertools.islice(elements.feed(head), _LEARNT)]
    found = [_FIRST_KEY.match(head, start) for start in starts]
    if not any(found):  # the first row is broken, and has taken all the others along
        found = [_FIRST_KEY.search(head)]
    keys = sorted({re.escape(first.group(1)) for first in found if first})
    return re.compile(rb"\{[ \t\r\n]*(?:" + b"|".join(keys) + rb")[ \t\r\n]*:") if keys else None


class Elements:
    """Where the elements of a JSON list begin and end, by its brackets and strings alone: whether an element is valid
    is seen when it is parsed.

    Lists that were written or edited by hand are read as they are meant: commas may be missing or too many, brackets
    may close once too often, and a list may follow another. An element whose own brackets or quotes do not close would
    take all that follows along: where it is no JSON, it ends where the next begins, by `border`, and so does
    what is no row from its first byte on."""

    def __init__(self, border: re.Pattern[bytes] | None = None, listed: bool = False) -> None:
        self.rows = 0  # elements that were found
        self.listed = listed  # whether a list has begun and not ended
        self._border = border
        self._data = bytearray()  # what was fed, from the open element on
        self._base = 0  # where that begins
        self._at = 0  # how far it has been looked at
        self._begun: int | None = None  # where the open element begins in it; below 0: the beginning is not kept
        self._depth = 0  # of brackets in the open element
        self._in_string = self._in_scalar = self._is_escaped = self._is_junk = False
        self._searched = self._parsed = 0  # bytes of the open element
        self._nested: tuple[int, int] | None = None  # where the first border in these begins, and the element after it

    @property
    def has_begun(self) -> bool:
        """Whether an element has begun and not ended."""
        return self._begun is not None

    @property
    def stop(self) -> int:
        """Where the open element begins; without one, where the next may begin."""
        return self._base + (self._at if self._begun is None else self._begun)

    @property
    def fed(self) -> int:
        """How many bytes were fed."""
        return self._base + len(self._data)

    def data(self, start: int, stop: int) -> bytes | None:
        """The bytes of the element that was found last; None where it is longer than a row may be."""
        return bytes(self._data[start - self._base : stop - self._base]) if start >= self._base else None

    def feed(self, block: bytes) -> Iterator[tuple[int, int]]:
        """(start, stop) byte of each element that ends in these bytes, which follow those that were fed before."""
        if not self._base and not self._data and block.startswith(BYTE_ORDER_MARK):
            self._at = len(BYTE_ORDER_MARK)
        self._data += block
        yield from self._found()
        self._forget()

    def end(self) -> Iterator[tuple[int, int]]:
        """The elements that are left where nothing follows, but for an open one in which no other begins."""
        while (nested := self._find_nested()) is not None:
            yield self._cut(nested)
            yield from self._found()

    def _found(self) -> Iterator[tuple[int, int]]:
        while True:
            while self._at < len(self._data):
                if self._step():
                    nested = self._find_nested(self._at)
                    if nested is not None and self._is_broken(nested, self._at):
                        yield self._cut(nested)
                    else:
                        yield self._ended(self._at)
            nested = self._find_nested()
            if nested is None or not self._is_broken(nested):
                return
            yield self._cut(nested)

    def _step(self) -> bool:
        """Goes on by a piece; whether an element ends with it."""
        data, at = self._data, self._at
        if self._begun is None:
            return self._begin()
        if self._is_junk:
            self._at = len(data)
            return False
        if self._in_scalar:
            self._at = _SCALAR.match(data, at).end()  # type: ignore[union-attr]
            return self._at < len(data)
        if self._is_escaped:
            at, self._is_escaped = at + 1, False
        elif self._in_string:
            at = _STRING.match(data, at).end()  # type: ignore[union-attr]
            if at < len(data):  # at a quote, or at a backslash that is the last byte
                self._is_escaped = data[at] == 0x5C
                at, self._in_string = at + 1, self._is_escaped
        else:
            at = _INSIDE.match(data, at).end()  # type: ignore[union-attr]
            if at < len(data):
                self._enter(data[at])
                at += 1
        self._at = at
        return not self._depth and not self._in_string

    def _begin(self) -> bool:
        """Goes on to the next element; whether it ends at once."""
        at = _BETWEEN.match(self._data, self._at).end()  # type: ignore[union-attr]
        self._at = at + 1
        if at == len(self._data):
            self._at = at
        elif self._data[at] in b"]}":
            self.listed = self.listed and self._data[at] == 0x7D
        elif self._data[at] == 0x5B and not self.listed:
            self.listed = True
        else:
            self._begun = at
            if whole := _WHOLE.match(self._data, at):
                self._at = whole.end()
                return True
            if self._border is not None and not _ROW.match(self._data, at):
                self._is_junk = True
            elif self._data[at] in b'[{"':
                self._enter(self._data[at])
            else:
                self._at, self._in_scalar = at, True
        return False

    def _enter(self, character: int) -> None:
        if character == 0x22:
            self._in_string = True
        else:
            self._depth += 1 if character in b"[{" else -1

    def _find_nested(self, stop: int | None = None) -> tuple[int, int] | None:
        """The first border inside the open element, of which `stop` is the end where it is known: the byte at which the
        element would end, and that of the next one."""
        if self._border is None or self._begun is None or self._begun < 0:
            return None
        if self._nested is None:
            end = len(self._data) if stop is None else stop
            border = self._border.search(self._data, self._begun + max(1, self._searched - _OVERLAP), end)
            self._searched = end - self._begun
            if border is not None:
                before = self._data[max(self._begun, border.start() - _OVERLAP) : border.start()]
                between = len(before) - len(before.rstrip(b" \t\r\n,"))
                self._nested = self._base + border.start() - between, self._base + border.start()
        return self._nested

    def _is_broken(self, nested: tuple[int, int], stop: int | None = None) -> bool:
        """Whether the open element, of which `stop` is the end where it is known, can be no JSON, however it goes on.
        What may be is parsed again each time that it has doubled."""
        assert self._begun is not None
        size = (len(self._data) if stop is None else stop) - self._begun
        if size > MAX_ROW_BYTES:
            return True
        while (wanted := max(2 * self._parsed, self._base + nested[1] - self._begun + _OVERLAP)) <= size:
            self._parsed = wanted
            if _breaks(bytes(self._data[self._begun : self._begun + wanted])):
                return True
        return stop is not None and not _is_json(bytes(self._data[self._begun : stop]))

    def _cut(self, nested: tuple[int, int]) -> tuple[int, int]:
        """Ends the open element where another begins in it."""
        self._depth = 0
        self._in_string = self._is_escaped = self._is_junk = False
        self._at = nested[1] - self._base
        return self._ended(nested[0] - self._base)

    def _ended(self, stop: int) -> tuple[int, int]:
        element = self.stop, self._base + stop
        self._begun, self._nested, self._in_scalar = None, None, False
        self._searched = self._parsed = 0
        self.rows += 1
        return element

    def _forget(self) -> None:
        """Keeps the open element, up to the size that a row may have."""
        forgotten = self._at
        if self._begun is not None:
            if len(self._data) - self._begun <= MAX_ROW_BYTES:
                forgotten = max(0, self._begun)
            self._begun -= forgotten
        del self._data[:forgotten]
        self._base, self._at = self._base + forgotten, self._at - forgotten


def _breaks(beginning: bytes) -> bool:
    """Whether what begins so can be no JSON. What is too costly for a row is not looked at."""
    if count_values(beginning) > MAX_ROW_VALUES:
        return False
    text = beginning.decode("utf-8", "replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos < len(text) - _CUT_OFF and not error.msg.startswith("Unterminated string")
    except RecursionError:
        pass
    return False


def _is_json(data: bytes) -> bool:
    """Whether it can be parsed, or is too costly to be."""
    row = parse_row(data)
    return not isinstance(row, Broken) or row.reason is Reason.TOO_COSTLY


FORMATS = (JsonList(), PackedJsonList())
