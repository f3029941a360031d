"""Who knows what every worker of a run is at. Imports little: it is a process of its own."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle

from scalselect_ray.corpus.slices import SliceId


class Witness:
    """Is told what is begun and ended: of a worker that is gone nobody else can tell what it was at."""

    def __init__(self) -> None:
        self._begun: Counter[SliceId] = Counter()

    def begin(self, slice_id: SliceId) -> None:
        self._begun[slice_id] += 1

    def end(self, slice_id: SliceId) -> None:
        del self._begun[slice_id]

    def suspects(self) -> list[SliceId]:
        """What was begun more than once, and never ended."""
        return [slice_id for slice_id, times in self._begun.items() if times > 1]


def new_witness() -> Any:
    """An actor that is a `Witness`, for one pass over slices. Where its node goes away another goes on with what it is
    told from then on: the run must not depend on it."""
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Witness).remote()


@contextmanager
def witnessed(witness: ActorHandle[Witness] | None, slice_id: SliceId) -> Iterator[None]:
    """The block works at a slice, and `witness` knows it; nobody need watch."""
    if witness is not None:
        ray.get(witness.begin.remote(slice_id))
    yield
    if witness is not None:
        witness.end.remote(slice_id)
