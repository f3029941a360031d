"""One JSON object, of which one key holds the list of rows: `{"version": 1, "data": [...]}`."""

import json
import re
from collections.abc import Container, Iterator, Sequence
from typing import BinaryIO, ClassVar

from scalselect_ray.corpus.fields import FIELDS
from scalselect_ray.corpus.formats.base import (
    BYTE_ORDER_MARK,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    cut,
    first_keys,
    lines_begin,
    text_begins,
)
from scalselect_ray.corpus.formats.json_list import WINDOW, Elements, JsonList, border_of
from scalselect_ray.corpus.formats.packed import SUFFIXES
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_HEAD = 4096  # bytes in which the list must begin
_USUAL = ("data", "rows", "samples", "examples", "items", "records", "train", "dataset", "instances", "annotations")
_LIST = re.compile(r"\[\s*\{")
_FIELD = re.compile("|".join(f'"{name}"' for name in FIELDS))


class JsonObject(JsonList):
    """As a list from where the list begins; what stands before and after it are no rows."""

    title = "JSON object"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)

    def begins(self, head: bytes) -> bool:
        if not text_begins(head, b"{") or lines_begin(head):
            return False
        if list_in(head) is not None:
            return True
        lines = head.removeprefix(BYTE_ORDER_MARK).strip().splitlines()[:-1]
        if lines and not any(map(_is_whole, lines)):
            raise UnreadableFileError(
                "one JSON object over several lines, and none of its first keys plainly holds the rows: write a list "
                "of "
                f"rows, or one row a line; it begins {head[:80]!r}"
            )
        return False

    def opens(self, file: FileInfo) -> int:
        return list_in(storage.read_start(file.uri, _HEAD)) or 0

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        """All of it is looked at before the first range is given: another list may follow."""
        opens = self.opens(file)
        elements = Elements(border_of(file, opens))
        found: list[tuple[int, int]] = []
        ends = self._ends(file, opens, elements, found)
        if ends is not None:
            _check_rest(storage.read_bytes(file.uri, ends, min(file.size, ends + WINDOW)), file.size - ends)
        yield from cut(iter(found), cutting)
        if ends is None:
            raise UnreadableFileError(
                f"the JSON list breaks off after row {elements.rows - 1}", file.size - opens - elements.stop
            )

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        """With what stands before and after the list."""
        opens = self.opens(file)
        ends = self._ends(file, opens, Elements(border_of(file, opens)), [])
        stream.write(storage.read_bytes(file.uri, 0, opens))
        count = super().copy_rows(file, ranges, rows, stream)
        rest = storage.read_bytes(file.uri, ends, file.size) if ends is not None else b""
        rest = rest.lstrip(b"], \t\r\n") or b"}"
        stream.write(b", " * rest.startswith(b'"') + rest)
        return count

    def _ends(self, file: FileInfo, opens: int, elements: Elements, found: list[tuple[int, int]]) -> int | None:
        """Puts (start, stop) of each row into `found`; returns a byte behind the list, before all that follows it, or
        None where the list breaks off."""
        with storage.open_read(file.uri) as stream:
            stream.seek(opens)
            while block := stream.read(WINDOW):
                for start, stop in elements.feed(block):
                    if not elements.listed:
                        return opens + start
                    found.append((opens + start, opens + stop))
                if not elements.listed:
                    return opens + elements.stop
        return None


class PackedJsonObject(JsonObject):
    """One in a packed stream: it is not read."""

    suffixes = tuple(name + packed for name in JsonObject.suffixes for packed in SUFFIXES)
    packed = True
    copy_rows = Format.copy_rows

    def begins(self, head: bytes) -> bool:
        if super().begins(head):
            raise UnreadableFileError(
                "one packed JSON object that holds the rows under a key: unpack it, or write a list of rows, or a row "
                "a line"
            )
        return False


def _is_whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.rstrip().removesuffix(b",")), dict | list)
    except (ValueError, RecursionError):
        return False


def list_in(head: bytes) -> int | None:
    """The byte at which the list of rows begins, of an object with these first bytes; None where it is not plain: a row
    is an object as well, and may have lists of objects that are no rows."""
    text = head.decode("latin-1")  # a character a byte
    for name, at in first_keys(head).items():
        if name in FIELDS:
            return None
        if _LIST.match(text, at):
            return at if name in _USUAL or _FIELD.search(text[at:]) is not None else None
    return None


def _check_rest(rest: bytes, size: int) -> None:
    """That what follows the list holds no other list of objects. Raises UnreadableFileError."""
    text = rest.decode("utf-8", "replace").strip().lstrip(",] \t\r\n").removesuffix("}")
    try:
        others = json.loads("{" + text + "}") if size <= len(rest) else None
    except (ValueError, RecursionError):
        others = None
    if others is None:
        raise UnreadableFileError(
            f"the JSON object goes on after its list of rows with {size:,} bytes that are no further keys: "
            f"{rest[:60]!r}"
        )
    lists = [name for name, value in others.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        raise UnreadableFileError(
            f"the JSON object holds other lists of objects as well ({', '.join(lists)}): which of them holds the rows "
            f"is "
            "not plain; write the rows as a list of their own, or as JSON lines"
        )


FORMATS = (JsonObject(), PackedJsonObject())
