"""How one run's selection differs from another's: tasks over part files, the driver sees counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from scalselect_ray.cluster.tasks import in_order, shuffle
from scalselect_ray.console import Console
from scalselect_ray.errors import DamagedObjectError
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import RunFolder
from scalselect_ray.store.record import Angles, Change
from scalselect_ray.store.runs import Runs
from scalselect_ray.store.subspace import read_subspace
from scalselect_ray.store.tables import read_part
from scalselect_ray.subspace import principal_angles

_TASK_ROWS = 1_000_000  # chosen samples of each run that one task compares, or more where there would be
_MOST_TASKS = 64  # more tasks than this


def compare(run: RunFolder, previous: RunFolder, chosen: int) -> Change | None:
    """What changed from the run in folder `previous` to the run in folder `run`; each chose at most `chosen` samples.
    None where the results of the previous run are damaged."""
    try:
        partitions = min(max(1, -(-chosen // _TASK_ROWS)), _MOST_TASKS)
        before, after, both = _counts(previous.parts("manifest"), run.parts("manifest"), partitions)
        angles = ray.get(_angles.remote(run, previous))
    except RayTaskError as error:
        if isinstance(error.cause, DamagedObjectError):
            return None
        raise
    return Change(
        previous=previous.run_id, kept=both, entered=after - both, left=before - both, principal_angles_degrees=angles
    )


def change_since_last(store: FeatureStore, run: RunFolder, chosen: int, console: Console) -> Change | None:
    """What is other than in the newest run with this extractor; None where there is none, or its results are
    damaged."""
    runs = Runs(store.output)
    previous = runs.latest_with(store.extractor_id)
    if previous is None:
        return None
    change = compare(run, runs.folder(previous.run_id), max(chosen, previous.chosen))
    if change is None:
        console.warn(f"the results of run {previous.run_id} are damaged: what has changed since then cannot be told")
    return change


def _counts(before: Sequence[str], after: Sequence[str], partitions: int) -> tuple[int, int, int]:
    """How many samples are in one manifest, in the other, and in both."""
    (old, old_keys), (new, new_keys) = (
        shuffle(_partition_keys, [(uri, partitions) for uri in uris], partitions) for uris in (before, after)
    )
    return sum(old), sum(new), sum(in_order(_in_both, [*zip(old_keys, new_keys, strict=True)]))


@ray.remote
def _partition_keys(uri: str, partitions: int) -> tuple[Any, ...]:
    """How many samples a part file of a manifest has, and their keys in partitions by the row number."""
    table = read_part(uri, ["source", "shard", "row"])
    keys = pc.binary_join_element_wise(table["source"], table["shard"], table["row"].cast(pa.string()), "\0").cast(
        pa.large_string()
    )
    target_N = table["row"].to_numpy() % partitions
    return len(table), *(keys.take(pa.array(np.flatnonzero(target_N == index))) for index in range(partitions))


@ray.remote
def _in_both(before: list[ObjectRef[pa.ChunkedArray]], after: list[ObjectRef[pa.ChunkedArray]]) -> int:
    old, new = (
        pa.chunked_array([chunk for keys in ray.get(refs) for chunk in keys.chunks], pa.large_string())
        for refs in (before, after)
    )
    return pc.sum(pc.is_in(new, value_set=old)).as_py() or 0


@ray.remote
def _angles(run: RunFolder, previous: RunFolder) -> Angles | None:
    bases = [read_subspace(folder.subspace).basis_DK for folder in (run, previous)]
    if len({len(basis) for basis in bases}) > 1 or not all(basis.size for basis in bases):
        return None
    degrees = np.degrees(principal_angles(*bases))
    return Angles(mean=round(float(degrees.mean()), 4), largest=round(float(degrees.max()), 4))
