"""Arrow arrays to Python objects: what they would take is known before they are made, and equal values are shared."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scalselect_ray.corpus.formats.base import MAX_ROW_BYTES, MAX_ROW_VALUES, Broken
from scalselect_ray.corpus.sample import Reason, Record

_VALUE_BYTES = MAX_ROW_BYTES // MAX_ROW_VALUES  # what a value counts for beside its own bytes
Sizes = npt.NDArray[np.int64]


def row_sizes(batch: pa.RecordBatch) -> Sizes:
    """What each row counts for against `MAX_ROW_BYTES`: the bytes of its texts and images, and 1024 for each value in
    it."""
    return sum((_sizes(column) for column in batch.columns), np.zeros(len(batch), dtype=np.int64))


def rows(batch: pa.RecordBatch) -> list[Record]:
    """The rows as `to_pylist` gives them, but values of a dictionary that are equal are one object. Raises ValueError
    or OverflowError where a value is none of Python's."""
    return [Record(zip(batch.schema.names, row, strict=True)) for row in _zipped(batch.columns, len(batch))]


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column of this type has bytes in it, alone or in structs and lists, as nothing else in a corpus."""
    if pa.types.is_dictionary(kind) or _is_list(kind) or pa.types.is_fixed_size_list(kind):
        return not pa.types.is_map(kind) and holds_pictures(kind.value_type)
    if pa.types.is_struct(kind):
        return any(holds_pictures(kind.field(index).type) for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type has texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def records(batch: pa.RecordBatch, unread: tuple[str, ...], pictures: tuple[str, ...] = ()) -> Iterator[object]:
    """The rows, with the names of what stands beside them, and of those that hold `pictures`; `Broken` where one is too
    large, or has a value that is none, such as a text in another encoding."""
    if not batch.num_columns:
        for _ in range(len(batch)):
            yield _with_unread(Record(), unread, pictures)
        return
    sizes = row_sizes(batch)
    if len(batch) and sizes.max() <= MAX_ROW_BYTES:
        with contextlib.suppress(ValueError, OverflowError):
            yield from [_with_unread(record, unread, pictures) for record in rows(batch)]
            return
    for index, size in enumerate(sizes.tolist()):
        if size > MAX_ROW_BYTES:
            yield Broken(
                f"the row takes {size:,} bytes (1,024 for each value in it), above the limit of {MAX_ROW_BYTES:,}",
                Reason.TOO_COSTLY,
            )
            continue
        try:
            yield _with_unread(rows(batch.slice(index, 1))[0], unread, pictures)
        except (ValueError, OverflowError) as error:
            yield Broken(f"a value cannot be read: {error}")


def _with_unread(record: Record, unread: tuple[str, ...], pictures: tuple[str, ...]) -> Record:
    record.unread, record.pictures = unread, pictures
    return record


def _sizes(array: pa.Array) -> Sizes:
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if pa.types.is_dictionary(kind):
        of_value = np.append(_sizes(array.dictionary), _VALUE_BYTES)  # the last one: of null
        found: Sizes = of_value[_integers(array.indices, len(of_value) - 1)]
        return found
    if pa.types.is_fixed_size_list(kind):
        return _sizes(array.cast(pa.list_(kind.value_type)))
    if _is_list(kind):
        children = (array.keys, array.items) if pa.types.is_map(kind) else (array.values,)
        ends = np.concatenate([[0], np.cumsum(sum(_sizes(child) for child in children))])
        offsets = _integers(array.offsets, 0)
        return np.asarray(ends[offsets[1:]] - ends[offsets[:-1]] + _VALUE_BYTES, dtype=np.int64)
    if pa.types.is_struct(kind):
        none = np.full(len(array), _VALUE_BYTES, dtype=np.int64)
        return sum((_sizes(array.field(index)) for index in range(kind.num_fields)), none)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _sizes(array.cast(pa.large_binary()))
    if _is_text(kind):
        return _integers(pc.binary_length(array), 0) + _VALUE_BYTES
    return np.full(len(array), _VALUE_BYTES, dtype=np.int64)


def _values(array: pa.Array) -> list[Any]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        used, index = np.unique(_integers(array.indices, -1), return_inverse=True)
        known = array.dictionary.take(pa.array(used[used >= 0])).to_pylist()
        known = [None, *known] if len(used) and used[0] < 0 else known
        return [known[number] for number in index.tolist()]
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        if len(set(names)) < len(names):
            raise ValueError(f"two fields of one name among {names[:12]}")
        fields = [array.field(index) for index in range(kind.num_fields)]
        made = (dict(zip(names, values, strict=True)) for values in _zipped(fields, len(array)))
        return _where_valid(array, made)
    if _is_list(kind) and not pa.types.is_map(kind):
        offsets = _integers(array.offsets, 0).tolist()
        first = offsets[0] if offsets else 0
        values = _values(array.values.slice(first, offsets[-1] - first if offsets else 0))
        ranges = itertools.pairwise(offsets)
        return _where_valid(array, (values[start - first : stop - first] for start, stop in ranges))
    return list(array.to_pylist())


def _zipped(arrays: list[pa.Array], length: int) -> Iterator[tuple[Any, ...]]:
    if not arrays:
        return iter([()] * length)
    return zip(*(_values(array) for array in arrays), strict=True)


def _where_valid(array: pa.Array, values: Iterator[Any]) -> list[Any]:
    if not array.null_count:
        return list(values)
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def _integers(array: pa.Array, null: int) -> Sizes:
    return np.asarray(array.cast(pa.int64()).fill_null(null).to_numpy(zero_copy_only=False), dtype=np.int64)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind))


def _is_text(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )
