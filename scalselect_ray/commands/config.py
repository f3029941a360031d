"""`scalselect config`: every key of a config, and the JSON schema that editors check a YAML file with."""

import json
import typing
from dataclasses import Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal

from scalselect_ray.config import JobConfig, Key, Range, keys
from scalselect_ray.console import Console

_INTERPOLATION = {"type": "string", "pattern": r"\$\{"}  # of OmegaConf; what it stands for is checked when it is known
_TYPES: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    NoneType: {"type": "null"},
}


def show_keys(console: Console) -> list[dict[str, Any]]:
    """Prints all keys with what they mean; returns them: key, expected, default (absent where a key must be given),
    text."""
    shown = []
    for key in keys():
        console.note(
            f"{key.name}: {key.expected}; " + ("required" if key.required else f"default {json.dumps(key.default)}")
        )
        console.note(f"    {key.text}")
        default = {} if key.required else {"default": key.default}
        shown.append({"key": key.name, "expected": key.expected, **default, "text": key.text})
    return shown


def json_schema() -> dict[str, Any]:
    """The schema of a config file (JSON schema, draft 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config of scalselect_ray",
        **_schema_of(JobConfig),
    }


def _schema_of(kind: Any) -> dict[str, Any]:
    """Of a type alone."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return {
            "description": " ".join((kind.__doc__ or "").split()),
            "type": "object",
            "properties": {item.name: _schema_of_field(item) for item in _settings(kind)},
            "required": [item.name for item in _settings(kind) if _is_required(item)],
            "additionalProperties": False,
        }
    if kind is Any:  # its range says what it may be
        return {}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema_of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1])}
    return dict(_TYPES[kind])


def _schema_of_field(item: "Field[Any]") -> dict[str, Any]:
    if is_dataclass(item.type):
        return _schema_of(item.type)
    is_union = typing.get_origin(item.type) in (UnionType, typing.Union)
    kinds = set(typing.get_args(item.type) if is_union else [item.type])
    optional = [_TYPES[NoneType]] if NoneType in kinds else []
    known: Range | None = item.metadata["range"]
    of_type = _schema_of(kinds.pop()) if len(kinds := kinds - {NoneType}) == 1 else {}
    schema = {**of_type, **(known.schema if known else {})}
    if of_type.get("type") != "string":
        optional.append(_INTERPOLATION)
    key = Key(item.name, item)
    described = {"description": f"{key.text} ({key.expected})"}
    if not key.required:
        described["default"] = key.default
    return {**described, **({"anyOf": [schema, *optional]} if optional else schema)}


def _settings(section: Any) -> list["Field[Any]"]:
    return [item for item in fields(section) if "text" in item.metadata or is_dataclass(item.type)]


def _is_required(item: "Field[Any]") -> bool:
    return any(map(_is_required, _settings(item.type))) if is_dataclass(item.type) else Key(item.name, item).required
