"""Rows of any layout to one schema: who says what, and where the images stand.

Who says what stands in a list (`messages`, `conversations`, `texts`, `conversation`), as turns `{role, content}` or
`{from, value}` or as pairs `{user, assistant}` or `{human, assistant}`; or in fields of the row (`prompt` and
`completion`, `query` and `response` with `history`, `instruction`, `input` and `output`, `question` and `answer`,
`caption`). A list may be a text of JSON, or an object of lists; a content may be a text or a typed list. `system` is a
turn before these. Images: `images` or `image`, one or several, or inside the turns. `fields` has all the names."""

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeGuard

from scalselect_ray.corpus.fields import (
    ANSWERED,
    ASKED,
    CAPTIONS,
    FIELDS,
    IMAGES,
    LAYOUTS,
    MEDIA,
    SYSTEM,
    TURNS,
    Columns,
    image_in,
    is_field,
    renamed,
    unread_of,
)
from scalselect_ray.corpus.formats.base import Broken, parse_row
from scalselect_ray.corpus.sample import (
    MAX_TEXT,
    Content,
    ImagePlaceholder,
    ImageRef,
    Reason,
    Role,
    Sample,
    SampleRejectedError,
    Turn,
)

PLACEHOLDER = "<image>"
_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "system": "system",
}
_PAIR = (
    ("user", "human", "question", "query", "instruction", "input"),
    ("assistant", "gpt", "answer", "response", "output"),
)
_TEXTS = ("text", "input_text", "output_text")  # kinds of typed content
_PICTURES = ("image", "image_url", "input_image", "image_path", "image_file")
_OTHER_MEDIA = re.compile(r"video|audio")
_NO_IMAGE = {"", "none", "nan", "null"}
_MARK = re.compile(r"<[^<>\s]+>")  # a placeholder that names its image
_NAMED = 12  # fields that a message names

ImageResolver = Callable[[object], ImageRef]


def normalise(
    row: int,
    record: object,
    resolve_image: ImageResolver,
    verbatim: bool = False,
    columns: Columns = MappingProxyType({}),
) -> Sample:
    """The sample a row holds. `resolve_image` turns an image field (path, bytes, struct) to a reference; `columns` are
    the names of a corpus that has its own.

    User texts are split at each `<image>`, the pieces stripped; an assistant turn stays as it stands. Images without
    any placeholder stand before the first user text. `verbatim`, for exports: nothing is stripped, and a sample without
    images is a sample. Raises SampleRejectedError, and nothing else whatever the row holds."""
    if isinstance(record, list):
        record = {"conversations": record}
    if not isinstance(record, Mapping):
        raise SampleRejectedError(Reason.BROKEN_ROW, f"a row must be an object, found {type(record).__name__}")
    original, record = record, renamed(record, columns)
    assert isinstance(record, Mapping)
    for name in MEDIA:
        if not _is_null(record.get(name)):
            raise SampleRejectedError(Reason.UNSUPPORTED_MEDIA, f"the row has {name}: only images are supported")
    listed, marked = _image_fields(record)
    reading = _Reading(columns, verbatim, marked)
    try:
        turns = [reading.turn(said) for said in _with_system(record, _said(record, reading), reading)]
        if reading.fields:
            _check_inside(turns, reading)
            listed = reading.fields
        turns = _numbered(turns, len(listed), verbatim)
    except SampleRejectedError as error:
        raise SampleRejectedError(error.reason, error.message + _not_read(original, reading)) from None
    return Sample(row, known_id(record), tuple(turns), tuple(resolve_image(field) for field in listed))


@dataclass(frozen=True, slots=True)
class _Said:
    """What one turn says, not yet checked."""

    role: object
    content: object
    where: str  # in the row, for messages
    keys: Iterable[object] = ()  # of the turn


@dataclass
class _Reading:
    """The turns of one row as they are read."""

    columns: Columns
    verbatim: bool
    marked: Mapping[str, object]  # images by the placeholder that stands for each
    fields: list[object] = field(default_factory=list)  # images inside the turns
    placed: set[str] = field(default_factory=set)  # placeholders of `marked` that stand in the turns
    unused: list[str] = field(default_factory=list)  # what stands in the turns and was not read, for messages

    def role(self, name: object) -> Role | None:
        for tag, role in (("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system")):
            if tag in self.columns and self.columns[tag] == name:
                return _ROLES[role]
        return known_role(name)

    def turn(self, said: _Said) -> Turn:
        """One turn; images that stand inside it are added to `fields`. Placeholders have the index -1 until `_numbered`
        numbers them."""
        known = self.role(said.role)
        if known is None:
            raise SampleRejectedError(
                Reason.BAD_CONVERSATION,
                f"{said.where}: unknown role {str(said.role)[:40]!r}{_keys(said)}; known: {', '.join(sorted(_ROLES))}",
            )
        items: list[Content] = []
        for piece in said.content if _is_list(said.content) else [said.content]:
            items += self._items(known, piece, said)
        return Turn(known, tuple(item for item in items if item != ""))

    def _items(self, role: Role, piece: object, said: _Said) -> Iterable[Content]:
        kind = _kind(piece)
        if kind in _PICTURES and isinstance(piece, Mapping):
            if not _is_null(image := image_in(piece)):
                self.fields.append(image)
            else:
                others = sorted(str(key) for key, value in piece.items() if key != "type" and value is not None)
                self.unused += [f"{name} of an image in {said.where}" for name in others]
            return [ImagePlaceholder(-1, written=False)]
        if _OTHER_MEDIA.search(kind):
            raise SampleRejectedError(
                Reason.UNSUPPORTED_MEDIA, f"{said.where} has content of type {kind}: only images are supported"
            )
        text = piece
        if kind in _TEXTS and isinstance(piece, Mapping):
            text = _first(piece, ("text", "content", "value"))
        if not isinstance(text, str):
            what = f"content of type {kind}" if kind else type(piece).__name__
            keys = f" with {_names(piece)}" if isinstance(piece, Mapping) else _keys(said)
            raise SampleRejectedError(
                Reason.BAD_CONVERSATION, f"{said.where}: a {role} turn must hold text and images, found {what}{keys}"
            )
        if what := _not_text(text):
            raise SampleRejectedError(Reason.BAD_CONVERSATION, f"{said.where}: a {role} turn holds {what}")
        if role != "user":
            return [text]
        return self._at_marks(text) if self.marked else _split(text, self.verbatim)

    def _at_marks(self, text: str) -> Iterator[Content]:
        """The text split where placeholders stand that each name an image."""
        marks = "|".join(re.escape(mark) for mark in sorted(self.marked, key=len, reverse=True))
        for number, piece in enumerate(re.split(f"({marks})", text)):
            if number % 2:
                self.fields.append(self.marked[piece])
                self.placed.add(piece)
                yield ImagePlaceholder(-1)
            else:
                yield from _split(piece, self.verbatim)


def _said(record: Mapping[str, Any], reading: _Reading) -> list[_Said]:
    for name in TURNS:
        if not _is_null(record.get(name)):
            return _turns(name, record[name], reading)
    if isinstance(record.get(CAPTIONS[0]), str):
        return _captioned(record[CAPTIONS[0]])
    answers = [name for name in ANSWERED if not _is_missing(record.get(name))]
    for names in ASKED:
        asked = [name for name in names if not _is_missing(record.get(name))]
        if asked and answers:
            before = [] if _is_null(record.get("history")) else _turns("history", record["history"], reading)
            return [
                *before,
                *_asked(record, asked, reading),
                *_side("assistant", answers[0], record[answers[0]], reading),
            ]
    if isinstance(record.get(CAPTIONS[1]), str):
        return _captioned(record[CAPTIONS[1]])
    raise SampleRejectedError(Reason.BAD_CONVERSATION, f"no conversation: the row has none of {', '.join(LAYOUTS)}")


def _captioned(caption: str) -> list[_Said]:
    return [_Said("user", PLACEHOLDER, "caption"), _Said("assistant", caption, "caption")]


def _asked(record: Mapping[str, Any], names: Sequence[str], reading: _Reading) -> list[_Said]:
    """The turns that ask: texts of several fields are one."""
    if len(names) > 1 and all(isinstance(record[name], str) for name in names):
        return [_Said("user", "\n".join(record[name] for name in names), " and ".join(names))]
    return [said for name in names for said in _side("user", name, record[name], reading)]


def _side(role: Role, name: str, value: object, reading: _Reading) -> list[_Said]:
    """The turns of a field that one role says: a text, a list of turns, or several texts of which the first counts."""
    if _is_list(value) and len(value) and isinstance(value[0], str):
        value = value[0]
    elif _is_list(value) and len(value) and isinstance(value[0], Mapping) and _role(value[0], reading) is not None:
        return _turns(name, value, reading)
    return [_Said(role, value, name)]


def _turns(name: str, value: object, reading: _Reading) -> list[_Said]:
    """The turns of a field that has several."""
    if isinstance(value, str):
        value = _parsed(name, value)
    if isinstance(value, Mapping):
        value = _unzipped(name, value)
    if not _is_list(value):
        raise SampleRejectedError(
            Reason.BAD_CONVERSATION, f"{name} must be a list of turns, found {type(value).__name__}"
        )
    return [said for number, turn in enumerate(value) for said in _turn(name, number, turn, reading)]


def _parsed(name: str, text: str) -> object:
    """A list of turns that is a text of JSON."""
    found = parse_row(text.encode(errors="replace"))
    if isinstance(found, Broken):
        reason = Reason.TOO_COSTLY if found.reason == Reason.TOO_COSTLY else Reason.BAD_CONVERSATION
        raise SampleRejectedError(reason, f"{name} is a text, of which no list of turns can be made: {found.message}")
    return found


def _unzipped(name: str, value: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    """The turns of an object of lists; an object without lists is the only turn."""
    columns = {key: items for key, items in value.items() if items is not None}
    if not all(_is_list(items) for items in columns.values()):
        return [dict(value)]
    if len({len(items) for items in columns.values()}) > 1:
        lengths = ", ".join(f"{key}: {len(items)}" for key, items in list(columns.items())[:_NAMED])
        raise SampleRejectedError(
            Reason.BAD_CONVERSATION, f"{name} is an object of lists that are not of one length ({lengths})"
        )
    return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]


def _turn(name: str, number: int, turn: object, reading: _Reading) -> list[_Said]:
    """One turn, or the two of a pair."""
    where = f"{name}[{number}]"
    if name == "history" and _is_list(turn) and len(turn) == 2:
        return [_Said("user", turn[0], where), _Said("assistant", turn[1], where)]
    if not isinstance(turn, Mapping):
        raise SampleRejectedError(Reason.BAD_CONVERSATION, f"{where} must be an object, found {type(turn).__name__}")
    role = _role(turn, reading, name)
    if role is None and all(any(key in turn for key in keys) for keys in _PAIR):
        system = [] if _is_null(turn.get("system")) else [_Said("system", turn["system"], where)]
        user, assistant = (_first(turn, keys) for keys in _PAIR)
        return [*system, _Said("user", user, where, turn), _Said("assistant", assistant, where, turn)]
    contents = ("value", "content") if name == "conversations" else ("content", "value")
    return [_Said(role, _first(turn, _tagged(reading, "content_tag", contents)), where, turn)]


def _role(turn: Mapping[Any, Any], reading: _Reading, name: str = "") -> object:
    return _first(turn, _tagged(reading, "role_tag", ("from", "role") if name == "conversations" else ("role", "from")))


def _tagged(reading: _Reading, tag: str, keys: Sequence[str]) -> Sequence[str]:
    return (reading.columns[tag], *keys) if tag in reading.columns else keys


def _first(item: Mapping[Any, Any], keys: Sequence[str]) -> object:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _with_system(record: Mapping[str, Any], said: list[_Said], reading: _Reading) -> list[_Said]:
    """The turns after the row's system text, unless they begin with one of their own."""
    name = next((name for name in SYSTEM if not _is_null(record.get(name))), None)
    if name is None or (said and reading.role(said[0].role) == "system"):
        return said
    return [_Said("system", record[name], name), *said]


def _kind(piece: object) -> str:
    """What a piece of a content is, by its own word or by what it has; empty where neither tells."""
    if not isinstance(piece, Mapping):
        return ""
    if piece.get("type") is not None:
        return str(piece["type"]).strip().lower()
    return next((kind for kind in ("text", "image", "image_url") if piece.get(kind) is not None), "")


def _not_text(text: str) -> str:
    """What in it no text can hold; empty where all is well."""
    if "\0" in text:
        return "a NUL character"
    try:
        _ = text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, {text[error.start]!a}"
    return ""


@functools.lru_cache(maxsize=64)  # rows that share a large text share its pieces
def _split(text: str, verbatim: bool) -> Sequence[Content]:
    items: list[Content] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        items += [ImagePlaceholder(-1)] if number else []
        items += [piece if verbatim else piece.strip()]
    return items


def _check_inside(turns: Sequence[Turn], reading: _Reading) -> None:
    """That the images inside the turns are all that the turns have a place for, and all that have a place."""
    if len(reading.fields) != _count_placeholders(turns):
        raise SampleRejectedError(
            Reason.PLACEHOLDER_MISMATCH, "the row has images inside its turns, and other placeholders beside them"
        )
    if missing := [mark for mark in reading.marked if mark not in reading.placed]:
        raise SampleRejectedError(
            Reason.PLACEHOLDER_MISMATCH, f"images that stand nowhere in the user's turns: {', '.join(missing[:_NAMED])}"
        )


def _count_placeholders(turns: Sequence[Turn]) -> int:
    return sum(isinstance(item, ImagePlaceholder) for turn in turns for item in turn.content)


def _numbered(turns: Sequence[Turn], images: int, verbatim: bool) -> list[Turn]:
    """The turns with each placeholder pointing to its image."""
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not users or not any(turn.role == "assistant" and turn.content for turn in turns):
        raise SampleRejectedError(
            Reason.BAD_CONVERSATION, "the conversation needs a user turn and an assistant turn with text"
        )
    placeholders = _count_placeholders(turns)
    if not placeholders and not images and not verbatim:
        raise SampleRejectedError(Reason.TEXT_ONLY, "the sample has no image")
    if not placeholders:
        first = turns[users[0]]
        leading = Turn(first.role, (*(ImagePlaceholder(-1, written=False) for _ in range(images)), *first.content))
        turns = [leading if turn is first else turn for turn in turns]
    elif placeholders != images:
        raise SampleRejectedError(Reason.PLACEHOLDER_MISMATCH, f"{placeholders} image placeholders but {images} images")
    index = iter(range(images))
    return [
        Turn(
            turn.role,
            tuple(
                replace(item, index=next(index)) if isinstance(item, ImagePlaceholder) else item
                for item in turn.content
            ),
        )
        for turn in turns
    ]


def _image_fields(record: Mapping[str, Any]) -> tuple[list[object], dict[str, object]]:
    """The images of the row; and by the placeholder that stands for each, where the row names them so."""
    for name in IMAGES:
        value = record.get(name)
        if _is_null(value):
            continue
        if isinstance(value, str) and value.lstrip().startswith("["):  # a list as a text of JSON; else it is a path
            found = parse_row(value.encode(errors="replace"))
            value = found if isinstance(found, list) else value
        if isinstance(value, Mapping) and all(isinstance(key, str) and _MARK.fullmatch(key) for key in value):
            marked = {key: image for key, image in value.items() if not _is_null(image)}
            return list(marked.values()), marked
        fields = [field for field in (value if _is_list(value) else [value]) if not _is_null(field)]
        if fields:
            return fields, {}
    return [], {}


def _not_read(record: Mapping[Any, Any], reading: _Reading) -> str:
    """What of a row was not read, for the message of its reject: nobody else sees it."""
    read = {*FIELDS, *reading.columns.values()}
    mapped = [
        f"{name} (mapped to {ours})" for ours, name in reading.columns.items() if is_field(ours) and name not in record
    ]
    others = [*reading.unused, *(name for name in map(str, record) if name not in read), *unread_of(record)]
    return (f"; not in the row: {_names(mapped)}" if mapped else "") + (
        f"; not read: {_names(others)}" if others else ""
    )


def _names(of: Iterable[object]) -> str:
    """Some names, bounded, for a message."""
    names = list(of)
    shown = ", ".join(str(name)[:60] for name in names[:_NAMED]) or "nothing"
    return shown + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")


def _keys(said: _Said) -> str:
    return f" (the turn has {_names(said.keys)})" if said.keys else ""


def layout_of(record: object) -> str:
    """What makes the conversation of a row that has one, in words."""
    if not isinstance(record, Mapping):
        return "a bare list of turns"
    found = next((name for name in (*TURNS, CAPTIONS[0]) if not _is_null(record.get(name))), None)
    if found is not None:
        return found
    has = [name for names in (*ASKED, ANSWERED) for name in names if not _is_missing(record.get(name))]
    return " with ".join(has) or "caption"


def known_role(name: object) -> Role | None:
    """The role that rows call so, whatever their corpus."""
    return _ROLES.get(str(name).strip().lower())


def known_id(record: object) -> str | None:
    """The id a row has, as text."""
    value = record.get("id") if isinstance(record, Mapping) else None
    if _is_null(value) or isinstance(value, (list, dict, bytes)):
        return None
    return str(value)[:MAX_TEXT].encode(errors="replace").decode()


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_null(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NO_IMAGE
    if isinstance(value, Mapping):  # Parquet's empty image struct
        return all(item is None for item in value.values())
    return _is_missing(value)


def _is_missing(value: object) -> bool:
    """Whether a field that may hold any text is not there: "None" is an answer."""
    if isinstance(value, str) or _is_list(value):
        return len(value) == 0
    return value is None or (isinstance(value, float) and math.isnan(value))
