"""The corpus is read in the order of its files and written in the order of ranks: sorted runs of rows lie between the
two.

A run is one object; the rows of one part of the export are one range of its bytes. A part is the merge of its ranges of
all runs, which are streamed, so that neither side ever holds more than a window of what it works on."""

import heapq
import json
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scalselect_ray.corpus import ImagePlaceholder, Turn
from scalselect_ray.errors import StorageError
from scalselect_ray.exports.base import ExportImage, ExportRow
from scalselect_ray.io import storage

_HEAD = struct.Struct(">16sI")  # key, blobs; then each blob behind its length
_LENGTH = struct.Struct(">I")
_WINDOW = 64 << 20  # bytes of all ranges that a merge holds


class Range(NamedTuple):
    """Bytes [start, stop) of an object."""

    uri: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class SortedRun:
    """One written run; part n lies in its bytes [edges[n], edges[n + 1])."""

    uri: str
    edges: np.ndarray  # int64

    def range(self, part: int) -> Range:
        return Range(self.uri, int(self.edges[part]), int(self.edges[part + 1]))


class SortedRunWriter:
    """Collects rows and writes them as sorted runs, each when it has become large."""

    def __init__(self, uri: str, first_keys: Sequence[int], run_bytes: int) -> None:
        """`uri` is the beginning of the runs' names; `first_keys` are the smallest keys of the second part and of those
        behind it."""
        self._uri, self._first_keys, self._run_bytes = uri, first_keys, run_bytes
        self._frames: list[tuple[int, bytes]] = []
        self._size = 0
        self.runs: list[SortedRun] = []

    def add(self, key: int, row: ExportRow) -> None:
        frame = to_frame(key, row)
        self._frames.append((key, frame))
        self._size += len(frame)
        if self._size >= self._run_bytes:
            self.flush()

    def flush(self) -> None:
        if not self._frames:
            return
        self._frames.sort()
        uri = f"{self._uri}-{len(self.runs):04d}"
        starts = [0]
        for _, frame in self._frames:
            starts.append(starts[-1] + len(frame))
        keys = [key for key, _ in self._frames]
        edges = [0, *(starts[bisect_left(keys, first)] for first in self._first_keys), starts[-1]]
        with storage.open_write(uri) as stream:
            for _, frame in self._frames:
                stream.write(frame)
        self.runs.append(SortedRun(uri, np.array(edges, dtype=np.int64)))
        self._frames, self._size = [], 0


def merged(ranges: Sequence[Range]) -> Iterator[ExportRow]:
    """The rows of all ranges in the order of their keys."""
    filled = [item for item in ranges if item.stop > item.start]
    window = min(8 << 20, max(64 << 10, _WINDOW // max(1, len(filled))))
    for _, _, blobs in heapq.merge(*(_frames(item, number, window) for number, item in enumerate(filled))):
        yield from_blobs(blobs)


def _frames(item: Range, number: int, window: int) -> Iterator[tuple[bytes, int, list[bytes]]]:
    data, at, fetched = b"", 0, item.start

    def need(count: int) -> None:
        nonlocal data, at, fetched
        if len(data) - at < count:
            stop = min(item.stop, fetched + max(window, count))
            data, at, fetched = data[at:] + storage.read_bytes(item.uri, fetched, stop), 0, stop
        if len(data) - at < count:
            raise StorageError(f"{storage.redact(item.uri)} is cut")

    while fetched < item.stop or at < len(data):
        need(_HEAD.size)
        key, count = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        blobs = []
        for _ in range(count):
            need(_LENGTH.size)
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            need(length)
            blobs.append(data[at : at + length])
            at += length
        yield key, number, blobs


def to_frame(key: int, row: ExportRow) -> bytes:
    """A row as bytes: its key, what is text as JSON, and what is not as it is."""
    facts = {
        **{name: getattr(row, name) for name in ("rank", "source", "shard", "row", "id", "score", "uid", "problem")},
        "turns": [
            [
                turn.role,
                [piece if isinstance(piece, str) else [piece.index, piece.written] for piece in turn.content],
            ]
            for turn in row.turns
        ],
        "images": [[image.name, image.root, image.uri, image.copy, image.data is not None] for image in row.images],
        "members": [name for name, _ in row.members],
    }
    data = [image.data for image in row.images if image.data is not None]
    blobs = [json.dumps(facts).encode(), *data, *(content for _, content in row.members)]
    framed = [piece for blob in blobs for piece in (_LENGTH.pack(len(blob)), blob)]
    return b"".join([_HEAD.pack(key.to_bytes(16, "big"), len(blobs)), *framed])


def from_blobs(blobs: Sequence[bytes]) -> ExportRow:
    """The row of a frame."""
    facts = json.loads(blobs[0])
    data = iter(blobs[1:])
    turns = [
        Turn(role, tuple(piece if isinstance(piece, str) else ImagePlaceholder(*piece) for piece in content))
        for role, content in facts.pop("turns")
    ]
    images = [
        ExportImage(name, root, uri, copy, next(data) if inside else None)
        for name, root, uri, copy, inside in facts.pop("images")
    ]
    members = [(name, next(data)) for name in facts.pop("members")]
    return ExportRow(**facts, turns=tuple(turns), images=tuple(images), members=tuple(members))
