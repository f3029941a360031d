"""What a Parquet footer says of its columns, read from its bytes (Thrift's compact protocol). The accessors of pyarrow
end the process where a column of a damaged footer is not what its C++ expects."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

_MAX_CHUNKS = 1 << 20
_MAX_DEPTH = 32
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12


class Chunk(NamedTuple):
    """One column of one row group. Sizes are bytes, offsets are those of the file."""

    path: str  # such as messages.list.element.content
    is_bytes: bool  # texts or binary
    values: int  # with those of lists, and nulls
    uncompressed: int
    compressed: int
    data_offset: int
    dictionary_offset: int | None
    least: bytes | None = None  # of its values, where the footer says it


@functools.lru_cache(maxsize=8)
def columns_of(footer: bytes) -> tuple[tuple[Chunk, ...], ...]:
    """The columns of each row group. Raises ValueError where the footer is broken."""
    try:
        reader, groups = _Reader(footer), []
        for field, kind in reader.fields():
            if (field, kind) == (4, _LIST):
                groups = [tuple(_columns(reader)) for _ in reader.items(_STRUCT)]
            else:
                reader.skip(kind)
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"the footer is cut or damaged: {error}") from error
    return tuple(groups)


def _columns(reader: "_Reader") -> Iterator[Chunk]:
    for field, kind in reader.fields():
        if (field, kind) != (1, _LIST):
            reader.skip(kind)
            continue
        for _ in reader.items(_STRUCT):
            for inner, inner_kind in reader.fields():
                if (inner, inner_kind) == (3, _STRUCT):
                    yield _chunk(reader)
                else:
                    reader.skip(inner_kind)


def _chunk(reader: "_Reader") -> Chunk:
    numbers: dict[int, int] = {}
    path: list[str] = []
    least: bytes | None = None
    for field, kind in reader.fields():
        if (field, kind) == (3, _LIST):
            path = [reader.binary().decode() for _ in reader.items(_BINARY)]
        elif field in (1, 5, 6, 7, 9, 11) and _BYTE < kind < _DOUBLE:
            numbers[field] = reader.integer()
        elif (field, kind) == (12, _STRUCT):
            for inner, inner_kind in reader.fields():
                if (inner, inner_kind) == (6, _BINARY):
                    least = reader.binary()
                else:
                    reader.skip(inner_kind)
        else:
            reader.skip(kind)
    reader.count_chunk()
    values, uncompressed, compressed, data_offset = (numbers.get(field, 0) for field in (5, 6, 7, 9))
    dictionary_offset = numbers.get(11)
    is_bytes = numbers.get(1) == 6
    return Chunk(".".join(path), is_bytes, values, uncompressed, compressed, data_offset, dictionary_offset, least)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._chunks = data, 0, 0

    def count_chunk(self) -> None:
        self._chunks += 1
        if self._chunks > _MAX_CHUNKS:
            raise ValueError(f"the footer has more than {_MAX_CHUNKS:,} columns in its row groups")

    def fields(self) -> Iterator[tuple[int, int]]:
        """(id, type) of each field of a struct; who asks reads its value, or skips it."""
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self.integer()
            yield field, head & 15

    def items(self, kind: int) -> range:
        """As many as a list has, which must be of this type."""
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count and head & 15 != kind:
            raise ValueError(f"a list of the footer has type {head & 15}, expected {kind}")
        return range(self._bounded(count))

    def integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def binary(self) -> bytes:
        size = self._bounded(self._varint())
        self._at += size
        return self._data[self._at - size : self._at]

    def skip(self, kind: int, depth: int = 0, in_list: bool = False) -> None:
        """Passes over a value."""
        if depth > _MAX_DEPTH:
            raise ValueError("the footer is nested too deep")
        if kind in (_TRUE, _FALSE):
            self._at += in_list
        elif kind == _BYTE:
            self._at += 1
        elif kind < _DOUBLE:
            self._varint()
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            self.binary()
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(self._bounded(head >> 4 if head >> 4 < 15 else self._varint())):
                self.skip(head & 15, depth + 1, in_list=True)
        elif kind == _MAP:
            if count := self._bounded(self._varint()):
                kinds = self._byte()
                for _ in range(count):
                    self.skip(kinds >> 4, depth + 1, in_list=True)
                    self.skip(kinds & 15, depth + 1, in_list=True)
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        else:
            raise ValueError(f"the footer has a value of type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of the footer does not end")

    def _bounded(self, count: int) -> int:
        """A count or size, of which each takes a byte at least."""
        if count > len(self._data) - self._at:
            raise ValueError(f"the footer claims {count:,} items or bytes where it ends")
        return count
