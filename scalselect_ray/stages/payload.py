"""Prepared rows on their way from a prepare worker to an extractor of the same run.

They travel as a pickle, whose arrays stand beside it as they are in memory (protocol 5). A pickle can run code when it
is opened: this one is made and opened by workers of one cluster, which hand each other pickles anyway, and it is never
read from storage or written there."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from scalselect_ray.corpus import SampleRejectedError, Slice
from scalselect_ray.vlm import Prepared, share_images

PreparedRow = tuple[dict[str, Any], Prepared | SampleRejectedError]
"""A row's key columns, and what was made of it."""

MAX_BYTES = 128 << 20
"""Of the images in a payload, about."""

_ALIGNMENT = 8  # bytes; of every array, so that it can be used where it lies


def payloads(slice_: Slice, rows: Iterable[PreparedRow]) -> Iterator[tuple[Slice, memoryview]]:
    """The rows of a slice as payloads of bounded size: the slice as it was planned, or where its pictures are large
    several smaller ones, each of which is a slice of its own from here on.

    Where it is cut depends on the rows alone. A single row may be larger than a payload should be.
    """
    held: list[PreparedRow] = []
    first, size = slice_.first_row, 0
    for key, outcome in rows:
        held.append((key, outcome))
        size += sum(array.nbytes for array in outcome.images.values()) if isinstance(outcome, Prepared) else 0
        following = key["row"] + 1
        if size >= MAX_BYTES and following < slice_.stop_row:
            yield replace(slice_, first_row=first, stop_row=following, digest=""), pack(_drained(held))
            first, size = following, 0
    yield (
        replace(slice_, first_row=first, digest=slice_.digest if first == slice_.first_row else ""),
        pack(_drained(held)),
    )


def _drained(held: list[PreparedRow]) -> Iterator[PreparedRow]:
    """The rows, which are no longer in the list once they are had: `pack` lets go of each as it is copied."""
    rows = iter(held.copy())
    held.clear()
    return rows


def pack(rows: Iterable[PreparedRow]) -> memoryview:
    """The rows as one payload, never an empty one. Equal images travel once. Rows that nobody else holds are let go one
    by one: a payload is large, and would be there twice."""
    held = list(rows)
    del rows
    shared = iter(share_images(outcome for _, outcome in held if isinstance(outcome, Prepared)))
    held = [(key, next(shared) if isinstance(outcome, Prepared) else outcome) for key, outcome in held]
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(held, protocol=5, buffer_callback=buffers.append)
    del held, shared
    lengths = [len(pickled), *(len(buffer.raw()) for buffer in buffers)]
    head = np.array([len(lengths), *lengths], dtype=np.int64).tobytes()
    ends = list(accumulate((-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths), initial=len(head)))
    payload = np.zeros(ends[-1], np.uint8)  # memory is taken only as it is written to
    view = payload.data
    view[: len(head)] = head
    buffers.reverse()
    for start, length in zip(ends[:-1], lengths, strict=True):
        view[start : start + length] = buffers.pop().raw() if start > len(head) else pickled
    return view


def unpack(payload: Any) -> list[PreparedRow]:
    """The rows of a payload (any buffer), of which the arrays are views: read-only where the buffer is.

    Rows with equal images hold the same object."""
    pickled, *buffers = _pieces(memoryview(payload).cast("B"))
    # Made by `pack` in a worker of this run and handed on by Ray, which unpickles all that its workers send each other.
    rows: list[PreparedRow] = pickle.loads(pickled, buffers=buffers)
    return rows


def _pieces(view: memoryview) -> Iterator[memoryview]:
    (count,) = np.frombuffer(view, np.int64, 1)
    lengths = np.frombuffer(view, np.int64, count, offset=8)
    starts = accumulate((-(-length // _ALIGNMENT) * _ALIGNMENT for length in lengths), initial=8 + 8 * count)
    for start, length in zip(starts, lengths, strict=False):
        yield view[start : start + length]
