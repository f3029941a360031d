"""JSON lines that `datasets` reads to a table. It settles the columns and their types by the first 10 MiB, and fails at
a later row that has others: a field that comes later, or in another type, cannot go along."""

import math
import re
from typing import Any

FIRST_BYTES = 8 << 20  # of the lines that settle the columns; fewer than it takes, for its blocks end where they end
_HALF = re.compile("[\ud800-\udfff]")  # of a character
_MIXED = "mixed"  # of values of several types, which are no column
_NUMBERS = ("int", "float")
_MAX_KEYS = 512  # of an object: more are no fields but names of things

Shape = Any
"""None of nothing but nulls; the name of a type; [shape] of a list; {name: shape} of an object."""


def shape_of(value: Any) -> Shape:
    """What a value is."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()} if len(value) <= _MAX_KEYS else _MIXED
    if isinstance(value, list):
        inner: Shape = None
        for item in value:
            inner = merged(inner, shape_of(item))
        return _MIXED if inner == _MIXED else [inner]
    if value is None or not _fits_json(value):
        return None
    return type(value).__name__


def merged(first: Shape, second: Shape) -> Shape:
    """What two values both are."""
    if first is None or second is None:
        return second if first is None else first
    if isinstance(first, dict) and isinstance(second, dict):
        union = {key: merged(first.get(key), second.get(key)) for key in (*first, *second)}
        return union if len(union) <= _MAX_KEYS else _MIXED
    if isinstance(first, list) and isinstance(second, list):
        inner = merged(first[0], second[0])
        return _MIXED if inner == _MIXED else [inner]
    if first in _NUMBERS and second in _NUMBERS:
        return first if first == second else "float"
    return first if first == second else _MIXED


def fitted(value: Any, shape: Shape, name: str, lost: set[str]) -> Any:
    """The value without what does not fit, the names of which are added to `lost`."""
    if isinstance(value, dict) and isinstance(shape, dict):
        kept: dict[str, Any] = {}
        for key, item in value.items():
            inner = f"{name}.{key}" if name else key
            if item is None:
                kept[key] = None
            elif shape.get(key) in (None, _MIXED):
                lost.add(inner)
            else:
                kept[key] = fitted(item, shape[key], inner, lost)
        return kept
    if isinstance(value, list) and isinstance(shape, list):
        return [fitted(item, shape[0], f"{name}[]", lost) for item in value]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if shape == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if shape == type(value).__name__ and _fits_json(value):
        return value
    lost.add(name)
    return None


def _fits_json(value: Any) -> bool:
    """Whether Arrow reads the value from JSON."""
    if isinstance(value, str):
        return value.isascii() or not _HALF.search(value)
    return bool(-(1 << 63) <= value < 1 << 63)  # neither an infinity nor NaN is
