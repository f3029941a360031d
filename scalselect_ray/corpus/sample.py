"""One schema for every corpus: what a sample is, whatever file it came from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from scalselect_ray.redaction import redact

Role = Literal["system", "user", "assistant"]
MAX_TEXT = 1000  # characters of an id or a message; a longer one is cut
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Reason(StrEnum):
    """Why a sample was rejected: the `reason` column of `rejects.parquet`."""

    TEXT_ONLY = "text_only"  # no image at all: nothing for this method to represent
    BROKEN_ROW = "broken_row"  # not valid JSON, or not an object
    BAD_CONVERSATION = "bad_conversation"  # no turns, unknown role, a turn without text, no user turn
    PLACEHOLDER_MISMATCH = "placeholder_mismatch"  # numbers of image placeholders and images differ
    SPECIAL_TOKEN = "special_token"  # the text holds a token the model keeps for images or for whose turn it is
    UNSUPPORTED_MEDIA = "unsupported_media"  # video or audio
    IMAGE_MISSING = "image_missing"  # no such file, object or tar member
    IMAGE_UNREADABLE = "image_unreadable"  # empty, truncated, or not an image
    IMAGE_TOO_LARGE = "image_too_large"  # more bytes or pixels than we agree to read or decode
    TOO_COSTLY = (
        "too_costly"  # far more work or memory than its size allows: hundreds of scans, overlapping strips, ...
    )
    IMAGE_REFUSED = "image_refused"  # outside the image root, a URL, or a size that the model's own processor refuses
    TOO_LONG = "too_long"  # more tokens than `extractor.max_length`
    NO_QUERY_TOKENS = "no_query_tokens"  # nothing in the sample asks about the image
    NON_FINITE = "non_finite"  # the feature has a NaN or an infinity
    UNREADABLE_FILE = "unreadable_file"  # a whole file, or the rest of one, could not be read
    EXTRACTION_FAILED = "extraction_failed"  # the model failed on this sample alone


class SampleRejectedError(Exception):
    """Raised anywhere on a sample's way to say that it cannot be used, and why."""

    def __init__(self, reason: Reason, message: str) -> None:
        self.reason = reason
        self.message = plain(message)
        super().__init__(reason, self.message)

    def __str__(self) -> str:
        return self.message


class Record(dict[str, Any]):
    """A row as its format read it. `unread` names what stands beside it in its file and was not read (columns, members
    of a tar): what a message of a reject should name."""

    unread: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()  # those of `unread` that hold pictures, by their type or by what they name


@dataclass(frozen=True, slots=True)
class ImagePlaceholder:
    """Where an image stands inside a turn; `index` points into `Sample.images`.

    `written`: the row's own text has a placeholder there. Else the image stands in a typed list, or the row does not
    say where it stands, and then it comes first."""

    index: int
    written: bool = field(default=True, compare=False)


Content = str | ImagePlaceholder


@dataclass(frozen=True, slots=True)
class Turn:
    """What one role says: texts and images in their order, texts with the blanks that the row has around them.
    Assistant turns hold text only."""

    role: Role
    content: tuple[Content, ...]

    def stripped(self) -> "Turn":
        """A user's turn without the blanks around its texts; that of another role as it stands."""
        if self.role != "user":
            return self
        parts = (part.strip() if isinstance(part, str) else part for part in self.content)
        return replace(self, content=tuple(part for part in parts if part != ""))


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of a sample, still encoded: its bytes, or where they lie.

    `name` is for messages and exports (the path as the corpus gives it); exactly one of `data` and `uri` is set.
    `uri` has already been checked to lie inside the image root; a file of this machine is checked once more when it is
    open: it must lie in one of `folders`.
    """

    name: str
    data: bytes | None = None
    uri: str | None = None
    folders: Sequence[str] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that can be used. It is known by (source, shard, row), never by `id` alone."""

    row: int  # position in its file, from 0
    id: str | None
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """A sample that cannot be used. Also stands for a whole unreadable file (`row` is where reading stopped)."""

    row: int
    id: str | None
    reason: Reason
    message: str
    lost_bytes: int = 0  # of the file, that could not be read


def plain(message: str) -> str:
    """A message that quotes a corpus, fit for a table and a terminal: bounded, without secrets and without control
    characters."""
    return _CONTROL.sub(" ", redact(message[: 4 * MAX_TEXT])[:MAX_TEXT])
