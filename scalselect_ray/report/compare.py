"""How one run's selection differs from another's: tasks over parts, the driver sees counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayTaskError

from scalselect_ray.cluster.tasks import dealt, in_order
from scalselect_ray.errors import DamagedObjectError
from scalselect_ray.io import storage
from scalselect_ray.store.tables import part_uris, read_part
from scalselect_ray.subspace import decomposition, principal_angles

_TASK_ROWS, _MOST_TASKS = (
    1_000_000,
    64,
)  # chosen samples of each run that one task compares; more where there would be too many tasks


def compare(run: str, previous: str, chosen: int) -> dict[str, Any] | None:
    """What changed from the run in folder `previous` to the run in folder `run`; each chose at most `chosen` samples.
    None where the results of the previous run are damaged.

    kept, entered, left: counts of chosen samples by (source, shard, row). principal_angles_degrees: mean and largest
    angle between the two subspaces; null where they are of other dimensions or empty."""
    try:
        parts = min(max(1, -(-chosen // _TASK_ROWS)), _MOST_TASKS)
        before, after, both = _counts(part_uris(previous, "manifest"), part_uris(run, "manifest"), parts)
        angles = ray.get(_angles.remote(run, previous))
    except RayTaskError as error:
        if isinstance(error.cause, DamagedObjectError):
            return None
        raise
    return {"kept": both, "entered": after - both, "left": before - both, "principal_angles_degrees": angles}


def _counts(before: Sequence[str], after: Sequence[str], parts: int) -> tuple[int, int, int]:
    """How many samples are in one manifest, in the other, and in both."""
    (old, old_hands), (new, new_hands) = (
        dealt(_deal_keys, [(uri, parts) for uri in uris], parts) for uris in (before, after)
    )
    return sum(old), sum(new), sum(in_order(_in_both, [*zip(old_hands, new_hands, strict=True)]))


@ray.remote
def _deal_keys(uri: str, parts: int) -> tuple[Any, ...]:
    """How many samples a part of a manifest has, and their keys dealt by the row number."""
    table = read_part(uri, ["source", "shard", "row"])
    keys = pc.binary_join_element_wise(table["source"], table["shard"], table["row"].cast(pa.string()), "\0").cast(
        pa.large_string()
    )
    part = table["row"].to_numpy() % parts
    return len(table), *(keys.take(pa.array(np.flatnonzero(part == place))) for place in range(parts))


@ray.remote
def _in_both(before: list[Any], after: list[Any]) -> int:
    old, new = (
        pa.chunked_array([chunk for keys in ray.get(refs) for chunk in keys.chunks], pa.large_string())
        for refs in (before, after)
    )
    return pc.sum(pc.is_in(new, value_set=old)).as_py() or 0


@ray.remote
def _angles(run: str, previous: str) -> dict[str, float] | None:
    bases = []
    for folder in (run, previous):
        uri = storage.join(folder, "subspace.safetensors")
        try:
            bases.append(decomposition.from_bytes(storage.read_bytes(uri)).basis_DK)
        except (ValueError, FileNotFoundError) as error:
            raise DamagedObjectError(uri, str(error)) from error
    if len({len(basis) for basis in bases}) > 1 or not all(basis.size for basis in bases):
        return None
    degrees = np.degrees(principal_angles(*bases))
    return {"mean": round(float(degrees.mean()), 4), "largest": round(float(degrees.max()), 4)}
