"""All fields of a row as its file has them, and what a sample does not say of them.

Nothing here knows a layout: where an image stands is seen by what `normalise` asks the resolver for, and a field that
says nothing of the sample is one without which the sample is the same."""

import datetime
import functools
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from scalselect_ray.corpus import ImageRef, Sample, SampleRejectedError, normalise
from scalselect_ray.corpus.conversation import ImageResolver
from scalselect_ray.corpus.fields import Columns, unread_of, wanted
from scalselect_ray.corpus.sample import Record

Path = tuple[str | int, ...]  # keys and numbers that lead to a value
TURN_KEYS = frozenset({"role", "from", "content", "value"})  # what a turn itself says
TOO_DEEP = "(all, of rows with more than 100 lists and objects inside each other)"
_MOST_DEPTH = 100  # of lists and objects in a row: each is a few calls inside each other
_TURN_LISTS = ("messages", "conversations")


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a row, as JSON can hold them."""

    record: dict[str, Any] = field(default_factory=dict)  # images that are paths stay; those that are bytes are null
    images: tuple[Path, ...] = ()  # where each image of the sample stands in it; empty where that cannot be told
    unread: tuple[str, ...] = ()  # fields that say nothing of the sample
    no_json: tuple[str, ...] = ()  # fields that JSON cannot hold, such as bytes: the record is without them


NO_FIELDS = Fields()


def read_fields(
    row: int, record: object, resolve: ImageResolver, columns: Columns = MappingProxyType({})
) -> tuple[Sample, Fields]:
    """The sample of a row with its texts as they stand there, and all the fields of the row.

    Raises SampleRejectedError."""
    whole: object = {"conversations": record} if isinstance(record, list) else record
    places: dict[int, Path] = {}
    try:
        # A row of a table has the fields of all others, as nulls.
        own = _owned(_without_nulls(whole) if isinstance(record, Record) else whole, (), places)
    except RecursionError:
        return normalise(row, record, resolve, verbatim=True, columns=columns), Fields(no_json=(TOO_DEEP,))
    asked: list[Path | None] = []
    resolved = _once(resolve)

    def observed(image: object) -> ImageRef:
        asked.append(places.get(id(image)))
        return resolved(image)

    sample = normalise(row, own, observed, verbatim=True, columns=columns)
    if not isinstance(own, dict):
        return sample, NO_FIELDS
    known = tuple(place for place in asked if place is not None)
    known = known if len(known) == len(asked) == len(set(known)) else ()
    bytes_at = {place for place, image in zip(known, sample.images, strict=False) if image.data is not None}
    no_json = [_member(name) for name in unread_of(record)]
    kept = _as_json(own, (), bytes_at, set(known), no_json)
    read = wanted(columns)
    unread = tuple(
        name
        for name in kept
        if name not in read or _says_nothing(row, own, name, resolved, sample, columns)  # at most some forty times
    )
    return sample, Fields(kept, known, unread, tuple(dict.fromkeys(no_json)))


def own_turns(fields: Fields, turns: int) -> tuple[str, list[dict[str, Any]]] | None:
    """The field that holds the turns of a sample of so many `turns` as objects, and these. A system turn that the row
    has elsewhere is not among them. None where the row has no such field."""
    for name in _TURN_LISTS:
        said = fields.record.get(name)
        if name not in fields.unread and isinstance(said, list) and all(isinstance(turn, dict) for turn in said):
            return (name, said) if turns - len(said) in (0, 1) else None
    return None


def replaced(record: dict[str, Any], places: Mapping[Path, Any]) -> dict[str, Any]:
    """A copy of a record with other values at some places."""
    made: Any = _copied(record)
    for place, value in places.items():
        functools.reduce(lambda inner, key: inner[key], place[:-1], made)[place[-1]] = value
    return dict(made)


def without(record: dict[str, Any], places: Iterable[Path]) -> dict[str, Any]:
    """A copy of a record from which the fields at some places are gone."""
    made: Any = _copied(record)
    for place in sorted(places, reverse=True):  # of a list, from its end
        del functools.reduce(lambda inner, key: inner[key], place[:-1], made)[place[-1]]
    return dict(made)


def named(place: Path) -> str:
    """A place as people read it: the same for all elements of a list."""
    text = "".join("[]" if isinstance(key, int) else f".{key}" for key in place)
    return text.removeprefix(".")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _member(name: str) -> str:
    """A member of a tar by what it is in every sample: its suffix."""
    suffix = posixpath.basename(name).partition(".")[2]
    return f".{suffix}" if suffix else name


class _Text(str):
    """A text that is no other object: Python and Arrow share equal ones."""

    __slots__ = ()


def _owned(value: object, place: Path, places: dict[int, Path]) -> object:
    """A copy of which each object stands in one place, as `places` has it by `id`. Bytes are not copied."""
    made = value
    if len(place) > _MOST_DEPTH:
        raise RecursionError
    if isinstance(value, Mapping):
        made = {str(key): _owned(item, (*place, str(key)), places) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        made = [_owned(item, (*place, number), places) for number, item in enumerate(value)]
    elif isinstance(value, str):
        made = _Text(value)
    if not isinstance(made, (bool, int, float, type(None))):
        places[id(made)] = place
    return made


def _once(resolve: ImageResolver) -> ImageResolver:
    """The same, but what it was asked before is not worked out again. Holds what it was asked for."""
    known: dict[int, tuple[object, ImageRef]] = {}

    def resolved(image: object) -> ImageRef:
        if id(image) not in known:
            known[id(image)] = (image, resolve(image))
        return known[id(image)][1]

    return resolved


def _says_nothing(
    row: int, record: dict[str, Any], name: str, resolve: ImageResolver, sample: Sample, columns: Columns
) -> bool:
    rest = {key: value for key, value in record.items() if key != name}
    try:
        return normalise(row, rest, resolve, verbatim=True, columns=columns) == sample
    except SampleRejectedError:
        return False


def _as_json(value: Any, place: Path, bytes_at: set[Path], images: set[Path], no_json: list[str]) -> Any:
    """The value without what JSON cannot hold, which is named in `no_json`."""
    if place in bytes_at:
        return None
    if isinstance(value, dict):
        return dict(_held(value.items(), place, bytes_at, images, no_json))
    if isinstance(value, list):
        return [item for _, item in _held(enumerate(value), place, bytes_at, images, no_json)]
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return value


def _held(items: Any, place: Path, bytes_at: set[Path], images: set[Path], no_json: list[str]) -> Iterator[Any]:
    for key, value in items:
        if isinstance(value, (dict, list, str, int, float, datetime.date, datetime.time, type(None))) or (
            (*place, key) in images
        ):
            yield key, _as_json(value, (*place, key), bytes_at, images, no_json)
        else:
            no_json.append(named((*place, key)))
            if isinstance(key, int):
                yield key, None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
