"""One JSON array of rows (LLaVA-665K and kin), streamed: each byte is looked at once, and only a window of them is in
memory."""

import json
import re
from collections.abc import Iterator, Sequence

from scalselect_ray.corpus.formats.base import (
    BYTE_ORDER_MARK,
    MAX_ROW_BYTES,
    MAX_ROW_VALUES,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    count_values,
    cut,
    parse_row,
    text_begins,
    too_long,
)
from scalselect_ray.corpus.formats.gzipped import inflated_head
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_WINDOW = 1 << 22  # bytes read at once
_BLANKS = re.compile(rb"[ \t\r\n]*+")
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
            size = range_.stop_byte - range_.start_byte
            if size > MAX_ROW_BYTES and range_.stop_row - range_.first_row == 1:
                yield range_, [too_long(size)]
                continue
            yield range_, _parsed(storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte))


def _parsed(block: bytes) -> list[object]:
    """The rows that lie in the bytes of a range."""
    if len(block) <= MAX_ROW_BYTES and count_values(block) <= MAX_ROW_VALUES:
        try:
            return list(json.loads(b"[" + block + b"]"))
        except (ValueError, RecursionError):  # one row of them: in an unknown encoding, or too deep
            pass
    return [parse_row(block[start:stop]) for start, stop in _Elements(opened=True).feed(block, is_last=True)]


def _elements(file: FileInfo) -> Iterator[tuple[int, int]]:
    """(start, stop) byte of each element."""
    elements = _Elements()
    with storage.open_read(file.uri) as stream:
        while not elements.closed:
            block = stream.read(_WINDOW)
            yield from elements.feed(block)
            if not block:
                raise UnreadableFileError(elements.break_off())


class _Elements:
    """Where the elements of a JSON list begin and end, by its brackets and strings alone: whether an element is valid
    is seen when it is parsed."""

    def __init__(self, opened: bool = False) -> None:
        self.closed = False
        self._base = 0  # where the next block begins
        self._start = 0  # of the element
        self._depth = 1 if opened else 0  # 0: before the list; 1: between its elements; more: inside one
        self._row = 0
        self._in_string = self._in_scalar = self._is_escaped = self._expect_comma = False

    def break_off(self) -> str:
        return f"the JSON list breaks off after row {self._row - 1}" if self._depth else "the file is empty"

    def feed(self, block: bytes, is_last: bool = False) -> Iterator[tuple[int, int]]:
        """(start, stop) byte of each element that ends in these bytes, which follow those that were fed before.
        `is_last`: a number may end with them. Raises UnreadableFileError where no list can go on."""
        at = 0
        if not self._base and block.startswith(BYTE_ORDER_MARK):
            at = len(BYTE_ORDER_MARK)
        if self._is_escaped and block:
            at, self._is_escaped = 1, False
        while at < len(block):
            if self._in_string:
                at = _STRING.match(block, at).end()  # type: ignore[union-attr]
                if at < len(block) and block[at] == 0x5C:  # the last byte is a backslash
                    self._is_escaped = True
                    break
                if at < len(block):
                    at, self._in_string = at + 1, False
                    if self._depth == 1:
                        yield self._ended(at)
            elif self._in_scalar:
                at = _SCALAR.match(block, at).end()  # type: ignore[union-attr]
                if at < len(block):
                    yield self._ended(at)
            elif self._depth > 1:
                at = _INSIDE.match(block, at).end() + 1  # type: ignore[union-attr]
                if at <= len(block):
                    self._enter(block[at - 1])
                    if self._depth == 1:
                        yield self._ended(at)
            else:
                at = _BLANKS.match(block, at).end()  # type: ignore[union-attr]
                if at < len(block):
                    at = self._between(block, at)
                    if self.closed:
                        return
                    if self._depth > 1 and (whole := _WHOLE.match(block, at - 1)):
                        self._depth, at = 1, whole.end()
                        yield self._ended(at)
        if self._in_scalar and is_last:
            yield self._ended(len(block))
        self._base += len(block)

    def _enter(self, character: int) -> None:
        if character == 0x22:
            self._in_string = True
        else:
            self._depth += 1 if character in b"[{" else -1

    def _between(self, block: bytes, at: int) -> int:
        """Takes a character between two elements, or the first of one; returns where to go on."""
        character = block[at]
        if not self._depth:
            if character != 0x5B:
                raise UnreadableFileError("not a JSON list")
            self._depth = 1
        elif character == 0x5D and (self._expect_comma or self._row == 0):
            self.closed = True
        elif self._expect_comma:
            if character != 0x2C:
                raise self._broken(f"after row {self._row - 1}", at, "expected ',' or ']'")
            self._expect_comma = False
        elif character in b",]}":
            raise self._broken(f"in row {self._row}", at, f"found {chr(character)!r} where a row should begin")
        else:
            self._start = self._base + at
            self._in_scalar = character not in b'[{"'
            if self._in_scalar:
                return at
            self._enter(character)
        return at + 1

    def _ended(self, at: int) -> tuple[int, int]:
        self._row += 1
        self._in_scalar, self._expect_comma = False, True
        return self._start, self._base + at

    def _broken(self, where: str, at: int, what: str) -> UnreadableFileError:
        return UnreadableFileError(f"broken JSON {where}, at byte {self._base + at}: {what}")


FORMATS = (JsonList(),)
