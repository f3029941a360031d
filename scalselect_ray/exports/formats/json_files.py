"""What the formats share whose trainers read one JSON file and open the images themselves."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, ClassVar

from scalselect_ray.corpus import PLACEHOLDER
from scalselect_ray.exports.base import (
    ExportRow,
    Finish,
    Format,
    Images,
    NotExportableError,
    PartReport,
    Usage,
    join_parts,
    text_of,
)
from scalselect_ray.io import storage

_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


class JsonFile(Format):
    """Rows to objects of one file in rank order: lines, or with the suffix `.json` a list. ASCII with escapes: every
    locale reads the same.

    Part files are written side by side and joined at the end.
    """

    modes = (Images.REFERENCE, Images.COPY)
    file: ClassVar[str] = "data.jsonl"

    @abstractmethod
    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        """One object of the file."""

    @abstractmethod
    def usage(self, finish: Finish, file: str) -> Usage:
        """Writes what stands beside the file, and says how to use it."""

    def write(self, items: Iterator[ExportRow], report: PartReport, stream: BinaryIO) -> int:
        between = self._between
        count = 0
        for item in report.each(items, self.row):
            stream.write(between if count else b"")
            stream.write(json.dumps(item).encode())
            count += 1
        return count

    def finish(self, finish: Finish) -> Usage:
        file = storage.join(finish.target, self.file)
        opening, closing = (b"[\n", b"\n]\n") if self.file.endswith(".json") else (b"", b"\n")
        with storage.open_write(file) as stream:
            stream.write(opening)
            join_parts(
                stream, [uri for uri, count in zip(finish.parts, finish.counts, strict=True) if count], self._between
            )
            stream.write(closing)
        return self.usage(finish, file)

    @property
    def _between(self) -> bytes:
        return b",\n" if self.file.endswith(".json") else b"\n"


def conversations(row: ExportRow) -> list[dict[str, str]]:
    """`from` and `value` of each turn."""
    return [{"from": _SPEAKERS[turn.role], "value": text_of(turn)} for turn in row.turns]


def without_system(row: ExportRow, report: PartReport, why: str) -> list[dict[str, str]]:
    """The same, less the system turns, which the trainer would misread."""
    kept = [turn for turn in conversations(row) if turn["from"] != "system"]
    if len(kept) < len(row.turns):
        report.notes[f"rows lost their system turn: {why}"] += 1
    return kept


def messages(row: ExportRow) -> list[dict[str, str]]:
    """`role` and `content` of each turn."""
    return [{"role": turn.role, "content": text_of(turn)} for turn in row.turns]


def check_counts(row: ExportRow, roles: Sequence[str], others: Sequence[str] = ()) -> None:
    """Refuses rows in whose turns of these roles the trainer would count other placeholders than there are images."""
    texts = [text_of(turn) for turn in row.turns if turn.role in roles]
    found = sum(text.count(PLACEHOLDER) for text in texts)
    if found != len(row.images):
        raise NotExportableError(f"the trainer would count {found} {PLACEHOLDER} for {len(row.images)} images")
    for other in others:
        if any(other in text for text in texts):
            raise NotExportableError(f"the trainer would take {other} in the text for a placeholder")


def check_turns(row: ExportRow, pairs: bool = False) -> None:
    """Refuses rows in which user and assistant do not take turns; with `pairs` also those in which the user has the
    last word."""
    roles = [turn.role for turn in row.turns if turn.role != "system"]
    if any(role != ("user", "assistant")[number % 2] for number, role in enumerate(roles)):
        raise NotExportableError("user and assistant do not take turns")
    if pairs and len(roles) % 2:
        raise NotExportableError("the last turn is not the assistant's")


def one_or_list(paths: list[str]) -> dict[str, str | list[str]]:
    """The `image` key: absent for text-only rows, a path, or several."""
    return {} if not paths else {"image": paths[0] if len(paths) == 1 else paths}


def row_id(row: ExportRow) -> dict[str, str | int]:
    return {} if row.id is None else {"id": row.id}
