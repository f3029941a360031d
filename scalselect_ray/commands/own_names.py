"""A guess at what a corpus calls the fields that are read, from a few of its rows: `corpus.sources[].columns`."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scalselect_ray.corpus.conversation import known_role
from scalselect_ray.corpus.fields import FIELDS, image_in
from scalselect_ray.corpus.images import from_base64

_ASKED = re.compile(r"(?i)^(q|.*(question|prompt|query|instruction|problem|human|user).*)$")
_ANSWERED = re.compile(r"(?i)^(a|.*(answer|response|output|completion|solution|assistant|gpt|reply).*)$")
_CAPTION = re.compile(r"(?i)^(text|.*(caption|description|alt).*)$")
_SYSTEM = re.compile(r"(?i)^.*system.*$")
_IMAGE = re.compile(r"(?i)\.(jpe?g|png|webp|gif|bmp|tiff?|avif|jp2)$")
_ROLES = 4  # that a conversation has at most


def own_names(records: Sequence[Any]) -> dict[str, str]:
    """The mapping under which rows may be read; empty where nothing is recognised. Whether they are, the caller
    tries."""
    rows = [record for record in records if isinstance(record, Mapping)]
    names = list(dict.fromkeys(name for row in rows for name in row if isinstance(name, str)))
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    found: dict[str, str] = {}
    for name in names:
        if "images" not in found and name not in FIELDS and values[name] and all(map(_is_image, values[name])):
            found["images"] = name
        if "messages" not in found and (tags := _tags(values[name])) is not None:
            found |= {"messages": name, **tags}
    if "messages" not in found:
        found |= _asked_and_answered(values)
    system = next((name for name in names if name not in FIELDS and _SYSTEM.match(name)), None)
    if system is not None and all(isinstance(value, str) for value in values[system]):
        found["system"] = system
    return found


def _is_image(value: object) -> bool:
    if isinstance(value, Mapping):
        value = value if value.get("bytes") is not None else image_in(value)
        return value is not None
    if isinstance(value, list):
        return bool(value) and all(map(_is_image, value))
    return isinstance(value, str) and (_IMAGE.search(value) is not None or from_base64(value) is not None)


def _tags(values: Sequence[object]) -> dict[str, str] | None:
    """The names inside the turns of a field; None where it has no turns."""
    turns = [turn for value in values for turn in _turns_of(value)]
    if not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    keys = [key for key in turns[0] if all(isinstance(turn.get(key), str) for turn in turns)]
    roles = {key: Counter(turn[key] for turn in turns) for key in keys}
    role = next((key for key in keys if all(known_role(name) for name in roles[key])), None)
    role = role or next((key for key in keys if 2 <= len(roles[key]) <= _ROLES and len(turns) > len(roles[key])), None)
    texts = [key for key in keys if key != role]
    if role is None or not texts:
        return None
    content = max(texts, key=lambda key: sum(len(turn[key]) for turn in turns))
    tags = {"role_tag": role, "content_tag": content}
    if not all(known_role(name) for name in roles[role]):
        spoken = list(dict.fromkeys(turn[role] for turn in turns if "system" not in turn[role].lower()))[:2]
        tags |= dict(zip(("user_tag", "assistant_tag"), spoken, strict=False))
    known = {"role_tag": ("role", "from"), "content_tag": ("content", "value")}
    return {tag: name for tag, name in tags.items() if name not in known.get(tag, ())}


def _turns_of(value: object) -> Sequence[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    return value if isinstance(value, list) else ()


def _asked_and_answered(values: Mapping[str, Sequence[object]]) -> dict[str, str]:
    texts = [name for name, some in values.items() if some and all(isinstance(value, str) for value in some)]
    found: dict[str, str] = {}
    for ours, pattern in (("response", _ANSWERED), ("prompt", _ASKED)):
        name = next((name for name in texts if pattern.match(name) and name not in found.values()), None)
        if name is not None:
            found[ours] = name
    if len(found) == 2:
        return found
    caption = next((name for name in texts if _CAPTION.match(name)), None)
    return {"caption": caption} if caption else {}
