"""How one run's selection differs from another's: tasks over parts, the driver sees counts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from scalselect_ray import storage
from scalselect_ray.cluster.session import bounded_map
from scalselect_ray.errors import DamagedObjectError, StorageError
from scalselect_ray.subspace import decomposition, principal_angles

_TASK_ROWS = 1_000_000  # about so many chosen samples of each run in one task


def compare(run: str, previous: str, chosen: int) -> dict[str, Any] | None:
    """What changed from the run in folder `previous` to the run in folder `run`, which chose `chosen` samples. None where the results of
    the previous run are damaged.

    kept, entered, left: counts of chosen samples by (source, shard, row). principal_angles_degrees: mean and largest angle between the
    two subspaces; null where they are of other dimensions or empty.
    """
    try:
        before, after, both = _counts(_manifest(previous), _manifest(run), max(1, -(-chosen // _TASK_ROWS)))
        angles = ray.get(_angles.remote(run, previous))
    except RayTaskError as error:
        if isinstance(error.cause, DamagedObjectError):
            return None
        raise
    return {"kept": both, "entered": after - both, "left": before - both, "principal_angles_degrees": angles}


def _counts(before: Sequence[str], after: Sequence[str], parts: int) -> list[int]:
    totals = np.zeros(3, dtype=np.int64)

    def arrived(_: int, ref: Any) -> None:
        nonlocal totals
        totals = totals + ray.get(ref)

    bounded_map(_overlap, [(before, after, part, parts) for part in range(parts)], arrived)
    return [int(total) for total in totals]


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
        try:
            data = pa.BufferReader(storage.read_bytes(uri))
            table = pq.read_table(data, columns=["source", "shard", "row"], page_checksum_verification=True)
        except StorageError:
            raise  # the store's trouble is no damage
        except (pa.ArrowException, OSError) as error:
            raise DamagedObjectError(uri, str(error)) from error
        table = table.filter(pa.array(table["row"].to_numpy() % parts == part))
        joined = pc.binary_join_element_wise(table["source"], table["shard"], table["row"].cast(pa.string()), "\0")
        keys += joined.chunks
    return pa.concat_arrays(keys)


@ray.remote
def _angles(run: str, previous: str) -> dict[str, float] | None:
    bases = []
    for folder in (run, previous):
        uri = storage.join(folder, "subspace.safetensors")
        try:
            bases.append(decomposition.from_bytes(storage.read_bytes(uri), l2_normalize=False).basis_DK)
        except (SafetensorError, KeyError, ValueError, FileNotFoundError) as error:
            raise DamagedObjectError(uri, str(error)) from error
    if len({len(basis) for basis in bases}) > 1 or not all(basis.size for basis in bases):
        return None
    degrees = np.degrees(principal_angles(*bases))
    return {"mean": round(float(degrees.mean()), 4), "largest": round(float(degrees.max()), 4)}
