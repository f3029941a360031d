"""How one run's selection differs from another's: tasks over parts, the driver sees counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from scalselect_ray import storage
from scalselect_ray.cluster.session import bounded_map
from scalselect_ray.subspace import decomposition, principal_angles

_TASK_ROWS = 1_000_000  # about so many chosen samples of each run in one task


def compare(run: str, previous: str, chosen: int) -> dict[str, Any]:
    """What changed from the run in folder `previous` to the run in folder `run`, which chose `chosen` samples.

    kept, entered, left: counts of chosen samples by (source, shard, row). principal_angles_degrees: mean and largest angle between the
    two subspaces; null where they are of other dimensions or empty.
    """
    parts = max(1, -(-chosen // _TASK_ROWS))
    totals = np.zeros(3, dtype=np.int64)

    def arrived(_: int, ref: Any) -> None:
        nonlocal totals
        totals = totals + ray.get(ref)

    manifests = [_manifest(previous), _manifest(run)]
    bounded_map(_overlap, [(*manifests, part, parts) for part in range(parts)], arrived)
    before, after, both = totals.tolist()
    return {
        "kept": both,
        "entered": after - both,
        "left": before - both,
        "principal_angles_degrees": ray.get(_angles.remote(run, previous)),
    }


def _manifest(run: str) -> list[str]:
    folder = storage.join(run, "manifest")
    return [storage.join(folder, name) for name in storage.list_names(folder)]


@ray.remote
def _overlap(before: Sequence[str], after: Sequence[str], part: int, parts: int) -> np.ndarray:
    """(chosen before, chosen after, chosen both times) among the samples whose row number falls to this part."""
    old, new = _keys(before, part, parts), _keys(after, part, parts)
    return np.array([len(old), len(new), pc.sum(pc.is_in(new, value_set=old)).as_py() or 0])


def _keys(uris: Sequence[str], part: int, parts: int) -> pa.Array:
    keys = [pa.array([], pa.string())]
    for uri in uris:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=["source", "shard", "row"])
        table = table.filter(pa.array(table["row"].to_numpy() % parts == part))
        joined = pc.binary_join_element_wise(table["source"], table["shard"], table["row"].cast(pa.string()), "\0")
        keys += joined.chunks
    return pa.concat_arrays(keys)


@ray.remote
def _angles(run: str, previous: str) -> dict[str, float] | None:
    bases = []
    for folder in (run, previous):
        subspace = decomposition.from_bytes(storage.read_bytes(storage.join(folder, "subspace.safetensors")), l2_normalize=False)
        bases.append(subspace.basis_DK)
    if len({len(basis) for basis in bases}) > 1 or not all(basis.size for basis in bases):
        return None
    degrees = np.degrees(principal_angles(*bases))
    return {"mean": round(float(degrees.mean()), 4), "largest": round(float(degrees.max()), 4)}
