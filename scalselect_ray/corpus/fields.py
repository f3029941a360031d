"""The fields of a row that are read: what the ecosystems call them, and what a corpus that calls them otherwise maps to
them."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from scalselect_ray.corpus.sample import Record

TURNS = ("messages", "conversations", "texts", "conversation")
"""Lists of turns, or of pairs of what is asked and what is answered."""
ASKED = (("prompt", "query"), ("instruction", "input"), ("question",))
"""What is asked, where question and answer are fields of the row; of one group what is there is joined by a line
break."""
ANSWERED = ("completion", "response", "output", "answer")
CAPTIONS = ("caption", "txt")
LAYOUTS = (
    *TURNS,
    "prompt with completion",
    "query with response",
    "instruction with output",
    "question with answer",
    "caption",
)
"""What makes a conversation, in words."""
SYSTEM = ("system", "system_prompt")
IMAGES = ("images", "image")
CONVERSATION = frozenset({*TURNS, *CAPTIONS, *(name for names in ASKED for name in names), *ANSWERED, "history"})
"""The fields of which a conversation is made."""
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a turn with what was thought before its answer."""
MEDIA = ("video", "videos", "audio", "audios")  # that no sample here has
FIELDS = (
    "id",
    "uid",
    *TURNS,
    *CAPTIONS,
    *(name for names in ASKED for name in names),
    *ANSWERED,
    "history",
    *SYSTEM,
    *IMAGES,
    *MEDIA,
)
"""The fields that are read; a corpus may have others."""


TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
COLUMNS = ("id", "messages", "prompt", "query", "response", "history", "caption", "system", "images", *TAGS)
"""What `corpus.sources[].columns` maps, in the words of LLaMA-Factory's dataset_info.json: fields of a row, then the
fields of a turn and the roles in it."""

Columns = Mapping[str, str]
_KIN = (CONVERSATION, {*IMAGES}, {*SYSTEM}, {"id"})  # of which a row has one


class _Names(Collection[str]):
    """Names of fields that are read, of which it lists those that are a corpus's own."""

    def __init__(self, own: Collection[str], holds: Callable[[str], bool]) -> None:
        self._own, self._holds = own, holds

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._holds(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def wanted(columns: Columns, also: Callable[[str], bool] = lambda name: False) -> Collection[str]:
    """The names of the fields that are read of a corpus with such columns, and of those that are wanted for something
    `also`."""
    own = _own(columns)
    read = frozenset(FIELDS).union(own)
    return _Names(own, lambda name: name in read or also(name))


def every_field(columns: Columns) -> Collection[str]:
    """For readers of rows as they stand in their files, with what no sample is made of."""
    return _Names(_own(columns), lambda name: True)


def only(is_read: Callable[[str], bool]) -> Collection[str]:
    """For readers that make no samples."""
    return _Names((), is_read)


def _own(columns: Columns) -> list[str]:
    return [name for ours, name in columns.items() if is_field(ours)]


def is_field(ours: str) -> bool:
    """Whether a key of `columns` maps a field of the row, and not what stands in a turn."""
    return ours not in TAGS


def renamed(record: Any, columns: Columns) -> Any:
    """A row with the fields that `columns` maps under our names. A field that a mapped one stands for is left out: the
    mapping says which one counts."""
    mapped = {ours: name for ours, name in columns.items() if is_field(ours)}
    if not mapped or not isinstance(record, Mapping):
        return record
    replaced = set().union(*(kin for kin in _KIN if kin.intersection(mapped)))
    made = Record({name: value for name, value in record.items() if name not in replaced})
    made.update({ours: record[name] for ours, name in mapped.items() if name in record})
    made.unread, made.pictures = unread_of(record), pictures_of(record)
    return made


def unread_of(record: Any) -> tuple[str, ...]:
    """What stands beside a row in its file and was not read, as its format says."""
    return record.unread if isinstance(record, Record) else ()


def pictures_of(record: Any) -> tuple[str, ...]:
    """Those of `unread_of` that hold pictures, as its format says."""
    return record.pictures if isinstance(record, Record) else ()


IMAGE_NAME = re.compile(r"\S{1,500}\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)", re.IGNORECASE)
"""A text that plainly names a picture."""
IMAGE_KEYS = (
    "image_url",
    "image",
    "path",
    "url",
    "base64",
    "data",
    "source",
    "value",
    "content",
    "file",
    "file_name",
    "image_path",
    "uri",
)
"""Where an object has its image, the first that it has; but `bytes` come before all."""


def image_in(item: Mapping[str, Any]) -> object:
    """The image that an object has: a path, a text of base64, bytes, or a struct with these; None where there is
    none."""
    if item.get("bytes") is not None:
        return item
    for key in IMAGE_KEYS:
        value = item.get(key)
        if isinstance(value, Mapping):
            value = image_in(value)
        if value is not None and value != "":
            return value
    return None
