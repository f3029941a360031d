"""Rows of any layout to one schema: who says what, and where the images stand.

Layouts: `messages[{role, content}]` (content a text or a typed list), `conversations[{from, value}]`, `texts[{user,
assistant}]`, `conversation[{human, assistant}]`, and a bare list of such turns. Images: `images` or `image`, one or
several."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

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
COLUMNS = (
    "id",
    "uid",
    "messages",
    "conversations",
    "texts",
    "conversation",
    "caption",
    "images",
    "image",
    "video",
    "videos",
    "audio",
    "audios",
)
"""The fields that are read; a corpus may have others."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
}
_NO_IMAGE = {"", "none", "nan", "null"}

ImageResolver = Callable[[object], ImageRef]


def normalise(row: int, record: object, resolve_image: ImageResolver, verbatim: bool = False) -> Sample:
    """The sample a row holds. `resolve_image` turns an image field (path, bytes, struct) to a reference.

    User texts are split at each `<image>`, the pieces stripped; an assistant turn stays as it stands. Images without
    any placeholder stand before the first user text. `verbatim`, for exports: nothing is stripped, and a sample without
    images is a sample. Raises SampleRejectedError, and nothing else whatever the row holds."""
    if isinstance(record, list):
        record = {"conversations": record}
    if not isinstance(record, Mapping):
        raise SampleRejectedError(Reason.BROKEN_ROW, f"a row must be an object, found {type(record).__name__}")
    for name in ("video", "videos", "audio", "audios"):
        if not _is_null(record.get(name)):
            raise SampleRejectedError(Reason.UNSUPPORTED_MEDIA, f"the row has {name}: only images are supported")
    fields: list[object] = []
    turns = [_turn(role, content, fields, verbatim) for role, content in _said(record)]
    inline = bool(fields)
    listed = _image_fields(record)
    if inline and len(fields) != len(
        [item for turn in turns for item in turn.content if isinstance(item, ImagePlaceholder)]
    ):
        raise SampleRejectedError(
            Reason.PLACEHOLDER_MISMATCH, "the row has images inside its turns, and other placeholders beside them"
        )
    if not inline:
        fields = listed
    return Sample(
        row,
        known_id(record),
        tuple(_numbered(turns, len(fields), verbatim)),
        tuple(resolve_image(field) for field in fields),
    )


def _said(record: Mapping[str, Any]) -> list[tuple[object, object]]:
    """(role, content) of each turn, not yet checked."""
    for name, role_key, text_key in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = record.get(name)
        if _is_null(turns):
            continue
        if not _is_list(turns):
            raise SampleRejectedError(
                Reason.BAD_CONVERSATION, f"{name} must be a list of turns, found {type(turns).__name__}"
            )
        said = []
        for number, turn in enumerate(turns):
            if not isinstance(turn, Mapping):
                raise SampleRejectedError(
                    Reason.BAD_CONVERSATION, f"{name}[{number}] must be an object, found {type(turn).__name__}"
                )
            role = turn.get(role_key, turn.get("role", turn.get("from")))
            said.append((role, turn.get(text_key, turn.get("content", turn.get("value")))))
        return said
    for name, user_key in (("texts", "user"), ("conversation", "human")):
        pairs = record.get(name)
        if _is_null(pairs):
            continue
        if not _is_list(pairs) or not all(
            isinstance(pair, Mapping) and user_key in pair and "assistant" in pair for pair in pairs
        ):
            raise SampleRejectedError(
                Reason.BAD_CONVERSATION, f"{name} must be a list of objects with '{user_key}' and 'assistant'"
            )
        return [turn for pair in pairs for turn in (("user", pair[user_key]), ("assistant", pair["assistant"]))]
    if isinstance(record.get("caption"), str):
        return [("user", PLACEHOLDER), ("assistant", record["caption"])]
    raise SampleRejectedError(
        Reason.BAD_CONVERSATION,
        f"no conversation: none of messages, conversations, texts, conversation among {sorted(map(str, record))[:12]}",
    )


def _turn(role: object, content: object, fields: list[object], verbatim: bool) -> Turn:
    """One turn; images that stand inside it are appended to `fields`. Placeholders have the index -1 until `_numbered`
    numbers them."""
    known = _ROLES.get(str(role).strip().lower())
    if known is None:
        raise SampleRejectedError(
            Reason.BAD_CONVERSATION, f"unknown role {str(role)[:40]!r}; known: {', '.join(sorted(_ROLES))}"
        )
    items: list[Content] = []
    for piece in [content] if isinstance(content, str) else content if _is_list(content) else [content]:
        kind = piece.get("type") if isinstance(piece, Mapping) else None
        if kind in ("image", "image_url") and isinstance(piece, Mapping):
            url = piece.get("image_url")
            field = (
                url.get("url")
                if isinstance(url, Mapping)
                else url
                if url is not None
                else piece.get("image", piece.get("path"))
            )
            items.append(ImagePlaceholder(-1, written=False))
            if not _is_null(field):
                fields.append(field)
            continue
        text = piece.get("text") if kind == "text" and isinstance(piece, Mapping) else piece
        if not isinstance(text, str):
            what = f"content of type {kind}" if kind else type(piece).__name__
            raise SampleRejectedError(
                Reason.BAD_CONVERSATION, f"a {known} turn must hold text and images, found {what}"
            )
        if what := _not_text(text):
            raise SampleRejectedError(Reason.BAD_CONVERSATION, f"a {known} turn holds {what}")
        items += _split(text, verbatim) if known == "user" else [text]
    return Turn(known, tuple(item for item in items if item != ""))


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


def _numbered(turns: Sequence[Turn], images: int, verbatim: bool) -> list[Turn]:
    """The turns with each placeholder pointing to its image."""
    users = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not users or not any(turn.role == "assistant" and turn.content for turn in turns):
        raise SampleRejectedError(
            Reason.BAD_CONVERSATION, "the conversation needs a user turn and an assistant turn with text"
        )
    placeholders = sum(isinstance(item, ImagePlaceholder) for turn in turns for item in turn.content)
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


def _image_fields(record: Mapping[str, Any]) -> list[object]:
    for name in ("images", "image"):
        value = record.get(name)
        if _is_null(value):
            continue
        fields = [field for field in (value if _is_list(value) else [value]) if not _is_null(field)]
        if fields:
            return fields
    return []


def known_id(record: object) -> str | None:
    """The id a row has, as text."""
    value = record.get("id") if isinstance(record, Mapping) else None
    if _is_null(value) or isinstance(value, (list, dict, bytes)):
        return None
    return str(value)[:MAX_TEXT].encode(errors="replace").decode()


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_null(value: object) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return value.strip().lower() in _NO_IMAGE
    if isinstance(value, Mapping):  # Parquet's empty image struct
        return all(item is None for item in value.values())
    return _is_list(value) and len(value) == 0
