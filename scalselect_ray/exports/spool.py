"""The corpus is read in the order of its files and written in the order of ranks: sorted runs of rows lie between the
two.

A run is one object: for each part file of the export an Arrow IPC stream of its rows, one after the other, so that a
part file has one range of the bytes of each run. It is the merge of these ranges, which are streamed: neither side ever
holds more than a window of what it works on."""

import heapq
import io
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from scalselect_ray.corpus import ImagePlaceholder, Turn
from scalselect_ray.errors import StorageError
from scalselect_ray.exports.base import ExportImage, ExportRow, part_is_gone
from scalselect_ray.exports.fields import Fields
from scalselect_ray.io import storage

SCHEMA = pa.schema(
    [
        ("key", pa.binary(16)),  # big-endian: rows are sorted by it
        ("facts", pa.large_binary()),  # all that is no bytes, as JSON: a corpus has half characters and ids of any size
        ("blobs", pa.list_(pa.large_binary())),  # the bytes of its images, then of its members
    ]
)
_PLAIN = ("rank", "source", "shard", "row", "id", "score", "uid", "problem", "images_digest")  # fields of a row
_BATCH_BYTES = 64 << 10  # in one record batch, unless one row has more
_WINDOW = 64 << 20  # bytes of all ranges that a merge holds


class StoredRow(NamedTuple):
    """A row as a run has it, by SCHEMA. Sorts by its key."""

    key: bytes
    facts: bytes
    blobs: list[bytes]

    @property
    def size(self) -> int:
        return len(self.key) + len(self.facts) + sum(map(len, self.blobs))


class Range(NamedTuple):
    """Bytes [start, stop) of an object."""

    uri: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SortedRun:
    """One written run; the rows of part file n are its bytes [edges[n], edges[n + 1])."""

    uri: str
    edges: np.ndarray  # int64

    def range(self, part: int) -> Range:
        return Range(self.uri, int(self.edges[part]), int(self.edges[part + 1]))


class SortedRunWriter:
    """Collects rows and writes them as sorted runs, each when it has become large."""

    def __init__(self, uri: str, first_keys: Sequence[int], run_bytes: int) -> None:
        """`uri` is the beginning of the names of the runs; `first_keys` are the smallest keys of the second part file
        and of those after it."""
        self._uri, self._run_bytes = uri, run_bytes
        self._first_keys = [_key_bytes(key) for key in first_keys]
        self._rows: list[StoredRow] = []
        self._size = 0
        self.runs: list[SortedRun] = []

    def add(self, key: int, row: ExportRow) -> None:
        stored = to_stored(key, row)
        self._rows.append(stored)
        self._size += stored.size
        if self._size >= self._run_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes what is held, if anything is."""
        if not self._rows:
            return
        self._rows.sort()
        uri = f"{self._uri}-{len(self.runs):04d}"
        firsts = [bisect_left(self._rows, first, key=lambda row: row.key) for first in self._first_keys]
        edges = [0]
        with storage.open_write(uri) as stream:
            for first, stop in pairwise([0, *firsts, len(self._rows)]):
                data = _stream_of(self._rows[first:stop])
                stream.write(data)
                edges.append(edges[-1] + len(data))
        self.runs.append(SortedRun(uri, np.array(edges, dtype=np.int64)))
        self._rows, self._size = [], 0


def merged(ranges: Sequence[Range]) -> Iterator[ExportRow]:
    """The rows of all ranges in the order of their keys. Raises StorageError."""
    filled = [item for item in ranges if item.stop > item.start]
    window = min(8 << 20, max(64 << 10, _WINDOW // max(1, len(filled))))
    for row in heapq.merge(*(_stored_rows(item, window) for item in filled), key=lambda row: row.key):
        yield from_stored(row)


def _stream_of(rows: Sequence[StoredRow]) -> memoryview:
    """Rows as an Arrow IPC stream; nothing where there are none."""
    sink = pa.BufferOutputStream()
    if not rows:
        return memoryview(sink.getvalue())
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        for batch in _batches(rows):
            columns = [
                pa.array(column, field.type) for column, field in zip(zip(*batch, strict=True), SCHEMA, strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    return memoryview(sink.getvalue())


def _batches(rows: Sequence[StoredRow]) -> Iterator[list[StoredRow]]:
    """Neighbouring rows in groups of _BATCH_BYTES."""
    batch: list[StoredRow] = []
    size = 0
    for row in rows:
        if batch and size + row.size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row.size
    yield batch


def _stored_rows(item: Range, window: int) -> Iterator[StoredRow]:
    """The rows of one range, read `window` bytes at a time."""
    with pa.ipc.open_stream(io.BufferedReader(_RangeReader(item), window)) as batches:
        for batch in batches:
            for row in batch.to_pylist():
                yield StoredRow(**row)


class _RangeReader(io.RawIOBase):
    """The bytes of a range from its first to its last."""

    def __init__(self, item: Range) -> None:
        self._item, self._at = item, item.start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._item.stop, self._at + len(buffer))
        try:
            data = storage.read_bytes(self._item.uri, self._at, stop)
        except FileNotFoundError as error:
            raise part_is_gone(self._item.uri) from error
        if len(data) < stop - self._at:
            raise StorageError(f"{self._item.uri} ends before the rows that were written to it")
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


def to_stored(key: int, row: ExportRow) -> StoredRow:
    """A row and its key as a run has them."""
    facts = {
        **{name: getattr(row, name) for name in _PLAIN},
        "turns": [
            [turn.role, [piece if isinstance(piece, str) else [piece.index, piece.written] for piece in turn.content]]
            for turn in row.turns
        ],
        "images": [[image.name, image.root, image.uri, image.copy, image.data is not None] for image in row.images],
        "members": [name for name, _ in row.members],
        "fields": [row.fields.record, row.fields.images, row.fields.unread, row.fields.no_json],
    }
    images = [image.data for image in row.images if image.data is not None]
    return StoredRow(_key_bytes(key), json.dumps(facts).encode(), [*images, *(content for _, content in row.members)])


def from_stored(stored: StoredRow) -> ExportRow:
    """The row that `to_stored` was given."""
    facts = json.loads(stored.facts)
    blobs = iter(stored.blobs)
    turns = [
        Turn(role, tuple(piece if isinstance(piece, str) else ImagePlaceholder(*piece) for piece in content))
        for role, content in facts.pop("turns")
    ]
    images = [
        ExportImage(name, root, uri, copy, next(blobs) if has_data else None)
        for name, root, uri, copy, has_data in facts.pop("images")
    ]
    members = [(name, next(blobs)) for name in facts.pop("members")]
    record, places, unread, no_json = facts.pop("fields")
    fields = Fields(record, tuple(map(tuple, places)), tuple(unread), tuple(no_json))
    return ExportRow(**facts, turns=tuple(turns), images=tuple(images), members=tuple(members), fields=fields)


def _key_bytes(key: int) -> bytes:
    return key.to_bytes(16, "big")
