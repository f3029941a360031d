"""The fields of a row that are read: what the ecosystems call them, and what a corpus that calls them otherwise maps to
them."""

from collections.abc import Collection, Iterator, Mapping
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
_SAID = {*TURNS, *CAPTIONS, *(name for names in ASKED for name in names), *ANSWERED, "history"}
_KIN = (_SAID, {*IMAGES}, {*SYSTEM}, {"id"})  # of which a row has one


def wanted(columns: Columns) -> frozenset[str]:
    """The names of the fields that are read of a corpus with such columns."""
    return frozenset(FIELDS).union(name for ours, name in columns.items() if is_field(ours))


class _Every(Collection[str]):
    """All names there are, of which it lists those that are a corpus's own."""

    def __init__(self, own: Collection[str] = ()) -> None:
        self._own = own

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def every_field(columns: Columns) -> Collection[str]:
    """For readers of rows as they stand in their files, with what no sample is made of."""
    return _Every([name for ours, name in columns.items() if is_field(ours)])


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
    made.unread = unread_of(record)
    return made


def unread_of(record: Any) -> tuple[str, ...]:
    """What stands beside a row in its file and was not read, as its format says."""
    return record.unread if isinstance(record, Record) else ()


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
