"""Rows of any layout to one schema: who says what, and where the images stand.

Who says what stands in a list (`messages`, `conversations`, `texts`, `conversation`), as turns `{role, content}` or
`{from, value}` or as pairs `{user, assistant}` or `{human, assistant}`; or in fields of the row (`prompt` and
`completion`, `query` and `response` with `history`, `instruction`, `input` and `output`, `question` and `answer`,
`caption`). A list may be a text of JSON, or an object of lists; a content may be a text or a typed list. `system` is a
turn before these. Images: `images` or `image`, one or several, or inside the turns, or in a field of each turn.
`fields` has all the names."""

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
    IMAGE_NAME,
    IMAGES,
    LAYOUTS,
    MEDIA,
    SYSTEM,
    THOUGHTS,
    TURNS,
    Columns,
    image_in,
    is_field,
    pictures_of,
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
    "ai": "assistant",
    "system": "system",
    "developer": "system",
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
# as others write PLACEHOLDER
_OTHER_MARKS = re.compile(r"<\|?image[_ ]?(\d+)\|?>|<ImageHere>|<image_placeholder>|<img>([^<>]*)</img>")
_IMAGE_COLUMN = re.compile(r"(?:image|img|picture|photo)(?:_?(?:url|uri|path|file|bytes|base64|\d+))?s?", re.IGNORECASE)
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

    User texts are split at each `<image>`; an assistant turn stays as it stands. Images without any placeholder stand
    before the first user text. `verbatim`, for exports: a sample without images is a sample. Raises
    SampleRejectedError, and nothing else whatever the row holds."""
    if rows := rows_in(record, columns):
        what = "a list" if isinstance(record, list) else "an object"
        raise SampleRejectedError(
            Reason.BROKEN_ROW, f"{what} of {rows:,} rows, in the place of one: write a list of rows, or a row a line"
        )
    if isinstance(record, list):
        record = {"conversations": record}
    if not isinstance(record, Mapping):
        raise SampleRejectedError(Reason.BROKEN_ROW, f"a row must be an object, found {type(record).__name__}")
    original, record = record, renamed(record, columns)
    assert isinstance(record, Mapping)
    for name in MEDIA:
        if not _is_null(record.get(name)):
            raise SampleRejectedError(Reason.UNSUPPORTED_MEDIA, f"the row has {name}: only images are supported")
    name, listed, marked = _image_fields(record)
    reading = _Reading(columns, verbatim, marked, has_listed=bool(listed))
    try:
        turns = [reading.turn(said) for said in _with_system(record, _said(record, reading), reading)]
        if reading.fields:
            _check_inside(turns, reading)
            name, listed = "a turn", reading.fields
        else:
            name, listed = _meant(record, name, listed, turns)
        listed = _by_index(listed, reading.indexes) or _in_texts(turns)
        turns = _at_other_marks(turns, len(listed))
        _check_for_images(turns, listed, original, reading)
        turns = _numbered(turns, len(listed), verbatim)
    except SampleRejectedError as error:
        raise SampleRejectedError(error.reason, error.message + _not_read(original, reading)) from None
    try:
        images = tuple(resolve_image(field) for field in listed)
    except SampleRejectedError as error:
        if error.reason != Reason.IMAGE_UNREADABLE:  # others name the path
            raise
        raise SampleRejectedError(error.reason, f"{error.message} (in {name})") from None
    return Sample(row, known_id(record), tuple(turns), images)


@dataclass(frozen=True, slots=True)
class _Said:
    """What one turn says, not yet checked."""

    role: object
    content: object
    where: str  # in the row, for messages
    turn: Mapping[Any, Any] = field(default_factory=dict)  # with all its keys


@dataclass
class _Reading:
    """The turns of one row as they are read."""

    columns: Columns
    verbatim: bool
    marked: Mapping[str, object]  # images by the placeholder that stands for each
    has_listed: bool = False  # the row has images beside its turns
    fields: list[object] = field(default_factory=list)  # images inside the turns
    indexes: list[int | None] = field(default_factory=list)  # of the row's images, as typed content names them
    are_texts: bool = False  # typed contents are texts of JSON
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
        content = self._unpacked(known, said.content)
        inside = len(self.fields)
        items: list[Content] = []
        for piece in content if _is_list(content) else [content]:
            items += self._items(known, piece, said)
        if known == "assistant":
            items = _with_thought(items, said.turn)
        turn = Turn(known, tuple(item for item in items if item != ""))
        return turn if self.has_listed or len(self.fields) > inside else self._with_own_images(turn, said)

    def _unpacked(self, role: Role, content: object) -> object:
        """A typed content that is a text of JSON, as a list; an answer only after a question that is one."""
        if not isinstance(content, str) or not content.startswith("[") or not (role == "user" or self.are_texts):
            return content
        found = parse_row(content.encode(errors="replace"))
        if not isinstance(found, list) or not found or not all(_is_typed(piece) for piece in found):
            return content
        self.are_texts = True
        return found

    def _with_own_images(self, turn: Turn, said: _Said) -> Turn:
        """A turn that may name its images in a field of its own, in a row that has none beside its turns: they stand
        where it has placeholders, else before its text."""
        name, own, _ = _image_fields(said.turn)
        if not own:
            return turn
        (placed,) = _at_other_marks([turn], len(own))
        if turn.role != "user" or _count_placeholders([placed]) not in (0, len(own)):
            self.unused.append(f"{name} of {said.where}")
            return turn
        self.fields += own
        if _count_placeholders([placed]):
            return placed
        return replace(turn, content=(*(ImagePlaceholder(-1, written=False) for _ in own), *turn.content))

    def _items(self, role: Role, piece: object, said: _Said) -> Iterable[Content]:
        kind = _kind(piece)
        if kind in _PICTURES and isinstance(piece, Mapping):
            if not _is_null(image := image_in(piece)):
                self.fields.append(image)
            else:
                index = piece.get("index")
                self.indexes.append(index if isinstance(index, int) and not isinstance(index, bool) else None)
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
        if _is_number(text):
            text = str(text)
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
        return self._at_marks(text) if self.marked else _split(text)

    def _at_marks(self, text: str) -> Iterator[Content]:
        """The text split where placeholders stand that each name an image."""
        marks = "|".join(re.escape(mark) for mark in sorted(self.marked, key=len, reverse=True))
        for number, piece in enumerate(re.split(f"({marks})", text)):
            if number % 2:
                self.fields.append(self.marked[piece])
                self.placed.add(piece)
                yield ImagePlaceholder(-1)
            else:
                yield from _split(piece)


def _said(record: Mapping[str, Any], reading: _Reading) -> list[_Said]:
    for name in TURNS:
        if not _is_null(record.get(name)):
            return _turns(name, record[name], reading)
    if (caption := _text_in(record.get(CAPTIONS[0]))) is not None:
        return _captioned(caption)
    answers = [name for name in ANSWERED if not _is_missing(record.get(name))]
    for names in ASKED:
        asked = [name for name in names if not _is_missing(record.get(name))]
        if asked and answers:
            before = [] if _is_null(record.get("history")) else _turns("history", record["history"], reading)
            if len(asked) == 1 and (pairs := _paired(record, asked[0], answers[0])):
                return [*before, *pairs]
            return [
                *before,
                *_asked(record, asked, reading),
                *_side("assistant", answers[0], record[answers[0]], reading),
            ]
    if (caption := _text_in(record.get(CAPTIONS[1]))) is not None:
        return _captioned(caption)
    has = [name for name in FIELDS if name not in ("id", "uid") and not _is_missing(record.get(name))]
    raise SampleRejectedError(
        Reason.BAD_CONVERSATION,
        f"no conversation: the row has none of {', '.join(LAYOUTS)}" + (f"; it has {_names(has)}" if has else ""),
    )


def _with_thought(items: list[Content], turn: Mapping[Any, Any]) -> list[Content]:
    """An answer after what was thought before it."""
    thought, first = thought_before(turn), next(iter(items), None)
    if not thought or not isinstance(first, str) or not first or "</think>" in first:
        return items
    return [thought + first, *items[1:]]


def thought_before(turn: Mapping[Any, Any]) -> str:
    """What is put before an answer of which the turn says in a field of its own what was thought: as thinking models
    write it, and as their chat templates look for it. Empty where it says nothing."""
    thought = _first(turn, THOUGHTS)
    is_text = isinstance(thought, str) and thought.strip() and not _not_text(thought)
    return f"<think>\n{str(thought).strip()}\n</think>\n\n" if is_text else ""


def _is_number(value: object) -> bool:
    """Whether it is a number that a text would write in one way."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text_in(value: object) -> str | None:
    """A text, or the first of several; else None."""
    if _is_list(value) and len(value):
        value = value[0]
    return value if isinstance(value, str) else None


def _captioned(caption: str) -> list[_Said]:
    return [_Said("user", PLACEHOLDER, "caption"), _Said("assistant", caption, "caption")]


def _asked(record: Mapping[str, Any], names: Sequence[str], reading: _Reading) -> list[_Said]:
    """The turns that ask: texts of several fields are one."""
    if len(names) > 1 and all(isinstance(record[name], str) for name in names):
        return [_Said("user", "\n".join(record[name] for name in names), " and ".join(names))]
    return [said for name in names for said in _side("user", name, record[name], reading)]


def _paired(record: Mapping[str, Any], asked: str, answered: str) -> list[_Said]:
    """The turns of as many questions as answers; of one of each, or of other values, nothing."""
    questions, answers = record[asked], record[answered]
    for texts in (questions, answers):
        if not _is_list(texts) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            return []
    if len(questions) != len(answers):
        return []
    pairs = enumerate(zip(questions, answers, strict=True))
    return [
        said
        for number, (question, answer) in pairs
        for said in (
            _Said("user", question, f"{asked}[{number}]"),
            _Said("assistant", answer, f"{answered}[{number}]"),
        )
    ]


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
    contents = ("value", "content", "parts") if name == "conversations" else ("content", "value", "parts")
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


def _is_typed(piece: object) -> bool:
    """Whether it is a piece of a typed content that says of what kind it is."""
    return isinstance(piece, Mapping) and "type" in piece and _kind(piece) in (*_TEXTS, *_PICTURES)


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
def _split(text: str) -> Sequence[Content]:
    items: list[Content] = []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        items += [ImagePlaceholder(-1)] if number else []
        items += [piece]
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


def _at_other_marks(turns: list[Turn], images: int) -> list[Turn]:
    """The turns with placeholders where the user's texts write one otherwise for each image, in their order; as they
    are where that is not plain."""
    if not images or _count_placeholders(turns):
        return turns
    texts = [item for turn in turns if turn.role == "user" for item in turn.content if isinstance(item, str)]
    marks = [found for text in texts for found in _OTHER_MARKS.finditer(text)]
    numbers = [int(found[1]) for found in marks if found[1]]
    if len(marks) != images or (numbers and numbers not in ([*range(images)], [*range(1, images + 1)])):
        return turns

    def split(text: str) -> Sequence[Content]:
        return _split(_OTHER_MARKS.sub(PLACEHOLDER, text))

    return [
        replace(turn, content=tuple(item for text in turn.content for item in split(str(text)) if item != ""))
        if turn.role == "user"
        else turn
        for turn in turns
    ]


def _in_texts(turns: Sequence[Turn]) -> list[object]:
    """The images that the user's texts name where they stand, each by its path, as the first Qwen-VL has it."""
    if _count_placeholders(turns):
        return []
    return [
        found[2]
        for turn in turns
        if turn.role == "user"
        for item in turn.content
        if isinstance(item, str)
        for found in _OTHER_MARKS.finditer(item)
        if found[2]
    ]


def _by_index(listed: list[object], indexes: Sequence[int | None]) -> list[object]:
    """The images in the order in which typed contents name them by their number, where that is plain."""
    if {*indexes} != {*range(len(listed))}:
        return listed
    return [listed[index] for index in indexes if index is not None]


def _check_for_images(
    turns: Sequence[Turn], listed: Sequence[object], record: Mapping[Any, Any], reading: _Reading
) -> None:
    """That a sample without images has none that was not read: it would go for one of text alone."""
    if listed or _count_placeholders(turns):
        return
    texts = [item for turn in turns if turn.role == "user" for item in turn.content if isinstance(item, str)]
    marks = [found[0] for text in texts if (found := _OTHER_MARKS.search(text))]
    read = {*FIELDS, *reading.columns.values()}
    others = [str(name) for name, value in record.items() if name not in read and _is_image(value)]
    if not any(name in record for name in IMAGES):  # a table in which it is another column
        pictures = pictures_of(record)
        others += [name for name in unread_of(record) if name in pictures or _IMAGE_COLUMN.fullmatch(name)]
    if marks or reading.unused or others:
        seen = marks[:1] or reading.unused or others
        raise SampleRejectedError(
            Reason.PLACEHOLDER_MISMATCH, f"no image of the row is read, though it has {_names(seen)}"
        )


def _is_image(value: object) -> bool:
    """Whether it names or holds a picture, by what is plainly seen of it."""
    if isinstance(value, Mapping):
        value = image_in(value)
    if isinstance(value, Mapping):  # with bytes
        value = value.get("bytes")
    if _is_list(value) and len(value):
        return _is_image(value[0])
    if isinstance(value, (bytes, bytearray)):
        return len(value) > 0
    return isinstance(value, str) and (IMAGE_NAME.fullmatch(value) is not None or value.startswith("data:image"))


def rows_in(record: object, columns: Columns = MappingProxyType({})) -> int:
    """How many rows there are where one should be: in a list, or in an object by their names or in columns, as pandas
    writes tables. None where it is a row, or the turns of one."""
    if isinstance(record, list):
        turns = (isinstance(item, Mapping) and any(name in item for name in TURNS) for item in record)
        return len(record) if all(turns) else 0
    if not isinstance(record, Mapping) or not record:
        return 0
    known = {*FIELDS, *columns.values()}
    names, rows = record.get("columns"), record.get("data")
    if isinstance(names, list) and _are_lists(rows) and not known.isdisjoint(map(str, names)):
        return len(rows)
    values = list(record.values())
    first = values[0]
    if all(isinstance(value, Mapping) for value in values):
        if known.isdisjoint(record):
            return len(values) if not any(known.isdisjoint(value) for value in values) else 0
        is_table = all(value.keys() == first.keys() for value in values) and all(str(key).isdecimal() for key in first)
        return len(first) if is_table else 0
    is_table = _are_lists(values) and all(len(value) == len(first) for value in values)
    return len(first) if is_table and any(_are_lists(record.get(name)) for name in TURNS) else 0


def _are_lists(values: object) -> TypeGuard[list[list[Any]]]:
    return isinstance(values, list) and bool(values) and all(isinstance(value, list) for value in values)


def _image_fields(record: Mapping[str, Any]) -> tuple[str, list[object], dict[str, object]]:
    """The field with the images of the row, and these; and by the placeholder that stands for each, where the row names
    them so."""
    for name in IMAGES:
        fields, marked = _images_of(record.get(name))
        if fields:
            return name, fields, marked
    return "", [], {}


def _images_of(value: object) -> tuple[list[object], dict[str, object]]:
    """The images that a field has, and by the placeholder that stands for each."""
    if _is_null(value):
        return [], {}
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list as a text of JSON; else it is a path
        found = parse_row(value.encode(errors="replace"))
        value = found if isinstance(found, list) else value
    if isinstance(value, Mapping) and all(isinstance(key, str) and _MARK.fullmatch(key) for key in value):
        marked = {key: image for key, image in value.items() if not _is_null(image)}
        return list(marked.values()), marked
    return [field for field in (value if _is_list(value) else [value]) if not _is_null(field)], {}


def _meant(
    record: Mapping[str, Any], name: str, listed: list[object], turns: Sequence[Turn]
) -> tuple[str, list[object]]:
    """Of a row with `images` and with `image` those for which it has placeholders; where one has nothing that the other
    lacks, the other."""
    others = {other: _images_of(record.get(other))[0] for other in IMAGES if other != name} if listed else {}
    for other, found in others.items():
        placeholders = _count_placeholders(turns)
        if not found or _all_in(found, listed):
            continue
        if _all_in(listed, found):
            return (name, listed) if placeholders == len(listed) else (other, found)
        if (placeholders == len(found)) == (placeholders == len(listed)):
            raise SampleRejectedError(
                Reason.PLACEHOLDER_MISMATCH,
                f"the row has {len(listed):,} in {name} and others, {len(found):,}, in {other}, and {placeholders:,} "
                f"image "
                "placeholders: which of them it means is not plain",
            )
        if placeholders == len(found):
            return other, found
    return name, listed


def _all_in(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether each of some images is one of the others, or is called like one."""
    names = {name for other in others if (name := _image_name(other))}
    return all(image in others or _image_name(image) in names for image in some)


def _image_name(image: object) -> str:
    """The path that an image is known by; empty where it has none."""
    value = image.get("path") if isinstance(image, Mapping) and image.get("bytes") is not None else image
    value = image_in(value) if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else ""


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
    return f" (the turn has {_names(said.turn)})" if said.turn else ""


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
    return _ROLES.get(str(name).strip(" \t\r\n<|>:").lower())


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
