"""Rows of JSON that follow each other with other blanks than a line break between two: written over several lines
each, or with the line ends of old Macs. A single row that is written over several lines is such a file."""

import json
import re
from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from scalselect_ray.corpus.fields import CONVERSATION
from scalselect_ray.corpus.formats.base import BYTE_ORDER_MARK, first_keys, text_begins
from scalselect_ray.corpus.formats.json_list import JsonList, PackedJsonList
from scalselect_ray.corpus.formats.json_object import list_in
from scalselect_ray.corpus.formats.packed import SUFFIXES

_MAC = re.compile(rb"\}[ \t,]*\r[ \t\r]*\{")
_ANOTHER = re.compile(r"[\s,]*\{")


class JoinedJson(JsonList):
    """As a list without its brackets."""

    title = "JSON objects"
    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    listed = False

    def begins(self, head: bytes) -> bool:
        return _is_joined(head, is_plain=False)

    def write(self, rows: Iterator[bytes], stream: BinaryIO) -> int:
        count = 0
        for row in rows:
            stream.write(row + b"\n")
            count += 1
        return count


class JoinedLines(JoinedJson):
    """The same under a name that is for rows alone: not to be told from an object that holds rows."""

    suffixes = (".jsonl", ".ndjson")

    def begins(self, head: bytes) -> bool:
        return _is_joined(head, is_plain=True)


class PackedJoinedJson(PackedJsonList):
    """The same in one packed stream."""

    title = JoinedJson.title
    suffixes = tuple(name + packed for name in JoinedJson.suffixes for packed in SUFFIXES)
    listed = False
    write = JoinedJson.write

    def begins(self, head: bytes) -> bool:
        return _is_joined(head, is_plain=False)


class PackedJoinedLines(PackedJoinedJson):
    """The same under a name that is for rows alone."""

    suffixes = tuple(name + packed for name in JoinedLines.suffixes for packed in SUFFIXES)

    def begins(self, head: bytes) -> bool:
        return _is_joined(head, is_plain=True)


def _is_joined(head: bytes, is_plain: bool) -> bool:
    """Whether a file with these first bytes holds such rows; `is_plain`: that it holds rows is known."""
    if not text_begins(head, b"{"):
        return False
    text = head.removeprefix(BYTE_ORDER_MARK).strip()
    first, *others = text.split(b"\n")
    if not others:
        return _MAC.search(first) is not None
    if not _goes_on(first) or any(map(_is_row, others)):
        return False  # rows on lines, of which some are broken
    if list_in(head) is not None:
        return False  # an object that holds rows
    if is_plain or _is_followed(text.decode("utf-8", "replace")):
        return True
    return any(name in CONVERSATION for name in first_keys(text))


def _goes_on(line: bytes) -> bool:
    """Whether a line is the beginning of JSON that goes on in the next."""
    text = line.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text) - 1
    except RecursionError:
        pass
    return False


def _is_row(line: bytes) -> bool:
    """Whether a line is an object with something in it: turns of a row on several lines are no lines of their own."""
    try:
        return bool(json.loads(line.strip().removesuffix(b","))) and line.startswith(b"{")
    except (ValueError, RecursionError):
        return False


def _is_followed(text: str) -> bool:
    """Whether an object is whole in what begins with it, and another begins after it."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return _ANOTHER.match(text, end) is not None


FORMATS = (JoinedJson(), JoinedLines(), PackedJoinedJson(), PackedJoinedLines())
