"""Lists of data sets that trainers keep, as sources of a corpus: LLaMA-Factory's dataset_info.json, InternVL's meta
JSON."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from scalselect_ray.errors import ConfigError, StorageError
from scalselect_ray.io import storage

_COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "images")  # of dataset_info.json
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url")  # what lies in no file here
_HEAD, _MOST_BYTES = 1 << 12, 1 << 24


class SourceList(NamedTuple):
    """What a list holds."""

    sources: list[dict[str, Any]]  # as `corpus.sources` of a config has them
    left_out: dict[str, str]  # the others by name, with why they are


def read_source_list(uri: str) -> SourceList | None:
    """The sources that a list of data sets names; None where the file is no such list. Raises ConfigError where the
    list names none that could be read, StorageError."""
    uri = storage.absolute(uri)
    if not uri.lower().endswith(".json"):
        return None
    try:
        head = storage.read_start(uri, _HEAD)
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            head = storage.read_start(uri, _MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, StorageError) and not storage.is_local(uri):
            raise
        return None  # no file: a folder, a pattern, what can be no name
    if len(head) > _MOST_BYTES or not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return None
    try:
        entries = json.loads(head.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(entries, dict) or not entries or not all(isinstance(entry, dict) for entry in entries.values()):
        return None
    if all("annotation" in entry for entry in entries.values()):
        made = {name: _of_internvl(entry, uri) for name, entry in entries.items()}
    elif all(any(key in entry for key in ("file_name", "cloud_file_name", *_ELSEWHERE)) for entry in entries.values()):
        made = {name: _of_llama_factory(entry, uri) for name, entry in entries.items()}
    else:
        return None
    sources = [{"name": name, **source} for name, source in made.items() if isinstance(source, dict)]
    left_out = {name: why for name, why in made.items() if isinstance(why, str)}
    if not sources:
        first = next(iter(left_out.items()))
        raise ConfigError(f"{uri}: none of its {len(left_out):,} data sets can be read; {first[0]}: {first[1]}")
    return SourceList(sources, left_out)


def _of_llama_factory(entry: Mapping[str, Any], uri: str) -> dict[str, Any] | str:
    """A source, or why it is none. Paths of images are joined to the list's folder, the default of `media_dir`."""
    folder = uri.rpartition("/")[0]
    path = entry.get("cloud_file_name") or entry.get("file_name")
    if not isinstance(path, str):
        where = next((key for key in _ELSEWHERE if entry.get(key)), "no file_name")
        return f"it is in no file here ({where}: {str(entry.get(where))[:200]}): fetch it, and give it a file_name"
    if entry.get("ranking"):
        return "it ranks answers (ranking), and has no conversation to learn"
    columns = {**_texts(entry.get("columns"), _COLUMNS), **_texts(entry.get("tags"), _TAGS)}
    return {"paths": [_joined(folder, path)], "image_root": folder, "columns": columns}


def _of_internvl(entry: Mapping[str, Any], uri: str) -> dict[str, Any] | str:
    """A source, or why it is none. Paths are those of the folder where the trainer is started: they are looked for
    below the list's own folder and those above it."""
    paths = entry["annotation"] if isinstance(entry["annotation"], list) else [entry["annotation"]]
    root = entry.get("root")
    if not paths or not all(isinstance(path, str) for path in paths):
        return "its annotation is no path"
    found = {"paths": [_found(path, uri) for path in paths]}
    return {**found, "image_root": _found(root, uri)} if isinstance(root, str) and root else found


def _texts(mapping: object, names: tuple[str, ...]) -> dict[str, str]:
    """Those of a mapping that have these names and are texts."""
    known = mapping if isinstance(mapping, Mapping) else {}
    return {name: known[name] for name in names if isinstance(known.get(name), str) and known[name]}


def _joined(folder: str, path: str) -> str:
    return path if "://" in path or os.path.isabs(path) else storage.join(folder, path)


def _found(path: str, uri: str) -> str:
    folder = uri.rpartition("/")[0]
    first = _joined(folder, path)
    if first == path or not storage.is_local(folder):
        return first
    while folder and not os.path.exists(_joined(folder, path)):
        folder = folder.rpartition("/")[0]
    return _joined(folder, path) if folder else first
