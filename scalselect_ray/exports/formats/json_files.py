"""What the formats share whose trainers read one JSON file and open the images themselves."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, ClassVar

from scalselect_ray.corpus import PLACEHOLDER, Turn
from scalselect_ray.corpus.conversation import thought_before
from scalselect_ray.corpus.fields import SYSTEM, THOUGHTS
from scalselect_ray.corpus.sample import Role
from scalselect_ray.exports.base import (
    ExportRow,
    Finish,
    Format,
    Images,
    NotExportableError,
    PartReport,
    Usage,
    join_parts,
    part_is_gone,
    text_of,
)
from scalselect_ray.exports.columns import FIRST_BYTES, fitted, merged, shape_of
from scalselect_ray.exports.fields import TURN_KEYS, own_turns
from scalselect_ray.io import storage


@dataclass(frozen=True)
class Layout:
    """How a trainer's rows say who says what."""

    turns: str  # the field of the turns, and in each turn
    role: str  # who speaks
    text: str  # and what
    roles: Mapping[Role, str]


LLAVA = Layout("conversations", "from", "value", {"system": "system", "user": "human", "assistant": "gpt"})
MESSAGES = Layout("messages", "role", "content", {"system": "system", "user": "user", "assistant": "assistant"})


class JsonFile(Format):
    """Rows to objects of one file in rank order: lines, or with the suffix `.json` a list. ASCII with escapes: every
    locale reads the same.

    A row of the format's own layout goes out as it came, with every field, and other image paths where it must have
    them; `verbatim` says whether that is so. Any other row is made anew: the fields of `places` and `turn_places` go
    along, the others are counted.

    Part files are written side by side and joined at the end.
    """

    modes = (Images.REFERENCE, Images.COPY)
    file: ClassVar[str] = "data.jsonl"
    layout: ClassVar[Layout] = LLAVA
    verbatim: ClassVar[bool] = True
    no_system: ClassVar[str] = ""
    """Why system turns, which the trainer would misread, are left out."""
    reads_system: ClassVar[bool] = False
    """The trainer reads the field `system` of a row."""
    places: ClassVar[tuple[str, ...]] = ("id",)
    turn_places: ClassVar[tuple[str, ...]] = ()

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        """One object of the file."""
        found = own_turns(row.fields, len(row.turns))
        name, own = found or ("", [])
        own = [{}] * (len(row.turns) - len(own)) + own
        as_it_came = self.verbatim and name == self.layout.turns
        turns = [
            {**self._kept(had, as_it_came), self.layout.role: self.layout.roles[turn.role], self.layout.text: text}
            for turn, had in zip(row.turns, own, strict=True)
            for text in [self._text(turn, had, as_it_came)]
            if not (turn.role == "system" and (self.no_system or self._has_system(row, had, text, as_it_came)))
        ]
        if self.no_system and any(turn.role == "system" for turn in row.turns):
            report.notes[f"rows lost their system turn: {self.no_system}"] += 1
        made = self._as_it_came(row, turns, report) if as_it_came else self._made_anew(row, turns, report)
        report.carried.update(key for key in self.places if made.get(key) is not None)
        of_turns = {key for turn in turns for key in self.turn_places if turn.get(key) is not None}
        report.carried.update(f"{self.layout.turns}[].{key}" for key in of_turns)
        lost = [] if as_it_came else self._lost_of_turns(name, own)
        report.leave_behind([*row.fields.no_json, *self._lost(row, made), *lost])
        return made

    def images(self, row: ExportRow, turns: Sequence[Mapping[str, Any]], report: PartReport) -> dict[str, Any]:
        """The field that names the images: none for text-only rows, a path, or several."""
        paths = [report.paths.of(image) for image in row.images]
        return {} if not paths else {"image": paths[0] if len(paths) == 1 else paths}

    def _kept(self, had: Mapping[str, Any], as_it_came: bool) -> dict[str, Any]:
        """What goes along of a turn beside role and text."""
        own = (self.layout.role, self.layout.text)
        if as_it_came:
            return {key: value for key, value in had.items() if key in own or key not in TURN_KEYS}
        return {key: value for key, value in had.items() if key in self.turn_places}

    def _has_system(self, row: ExportRow, had: Mapping[str, Any], text: str, as_it_came: bool) -> bool:
        """Whether the row says in its own field what a system turn would say."""
        return self.reads_system and as_it_came and not had and text in map(row.fields.record.get, SYSTEM)

    def _text(self, turn: Turn, had: Mapping[str, Any], as_it_came: bool) -> str:
        """What a turn says; without what was thought before, where that goes along in a field of its own."""
        text, own = text_of(turn), had.get(self.layout.text)
        is_own = as_it_came and thought_before(had) and isinstance(own, str) and text.endswith(own)
        return str(own) if is_own else text

    def _as_it_came(self, row: ExportRow, turns: list[dict[str, Any]], report: PartReport) -> dict[str, Any]:
        images = self.images(row, turns, report)
        moved = {str(place[0]) for place in row.fields.images if place} | {"image", "images"}
        made: dict[str, Any] = {}
        for name, value in row.fields.record.items():
            if name == self.layout.turns:
                made[name] = turns
            elif name in moved:
                made.update(images)
            else:
                made[name] = value
        return {**made, **images}

    def _made_anew(self, row: ExportRow, turns: list[dict[str, Any]], report: PartReport) -> dict[str, Any]:
        known = row.fields.record if row.id is None else {**row.fields.record, "id": row.id}
        kept = {name: known[name] for name in self.places if known.get(name) is not None}
        return {**kept, **self.images(row, turns, report), self.layout.turns: turns}

    def _lost(self, row: ExportRow, made: Mapping[str, Any]) -> Iterator[str]:
        """The fields of a row which are not in what was made of it."""
        for name in ("id", *row.fields.unread):
            value = row.fields.record.get(name)
            if value not in (None, "", [], {}) and made.get(name) != value:
                yield name

    def _lost_of_turns(self, name: str, own: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        for turn in own:
            for key, value in turn.items():
                is_said = key in TURN_KEYS or (key in THOUGHTS and thought_before(turn))
                if not is_said and key not in self.turn_places and value is not None:
                    yield f"{name}[].{key}"

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


class TableFile(JsonFile):
    """JSON lines that the trainer reads to a table with `datasets`: rows keep what fits into the columns of the first
    of them."""

    settling: ClassVar[Mapping[str, Any]] = {}
    """Fields of a turn that may first come late, and what they are in the first turn of the first row then: a value
    that says nothing there, and settles the column."""

    def always(self, finish: Finish) -> dict[str, Any]:
        """Fields that every row has, and what they are where a row has none."""
        return {}

    def finish(self, finish: Finish) -> Usage:
        usual = self.always(finish)
        shape = shape_of({self.layout.turns: [{self.layout.role: "", self.layout.text: ""}], "images": [""]})
        size = 0
        for line in lines_of(finish.parts):
            shape = merged(shape, shape_of({**usual, **json.loads(line)}))
            size += len(line)
            if size > FIRST_BYTES:
                break
        said = f"{self.layout.turns}[]"
        columns = shape[self.layout.turns][0]
        late = {
            name: value
            for name, value in self.settling.items()
            if finish.carried[f"{said}.{name}"] and columns.get(name) is None
        }
        columns |= {name: shape_of(value) for name, value in late.items()}
        report = PartReport(finish.paths)
        file = storage.join(finish.target, self.file)
        with storage.open_write(file) as stream:
            for line in lines_of(finish.parts):
                row = {**usual, **json.loads(line)}
                row[self.layout.turns][0] |= late
                late = {}
                lost: set[str] = set()
                stream.write(json.dumps(fitted(row, shape, "", lost)).encode() + b"\n")
                report.leave_behind(lost)
        return replace(self.usage(finish, file), left_behind=report.left_behind)


def lines_of(parts: Sequence[str]) -> Iterator[bytes]:
    """The lines of part files, one after the other. Raises OutputError, StorageError."""
    for uri in parts:
        try:
            with storage.open_read(uri) as part:
                yield from (line for line in part if line.strip())
        except FileNotFoundError as error:
            raise part_is_gone(uri) from error


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


def messages(row: ExportRow) -> list[dict[str, str]]:
    """`role` and `content` of each turn."""
    return [{"role": turn.role, "content": text_of(turn)} for turn in row.turns]


def row_id(row: ExportRow) -> dict[str, str | int]:
    return {} if row.id is None else {"id": row.id}
