"""Feature files to moments to the subspace: leaf tasks, a tree of merges, one task that decomposes. No d x d matrix
meets the driver."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from scalselect_ray.cluster.tasks import completed
from scalselect_ray.config import SubspaceConfig
from scalselect_ray.errors import DamagedObjectError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore, features_of
from scalselect_ray.subspace import (
    MergeTree,
    Moments,
    Subspace,
    Transform,
    accumulate,
    decomposition,
    dominant_subspace,
    fit_transform,
    merge,
    moments,
)


def reduce_moments(
    store: FeatureStore,
    groups: Sequence[Sequence[str]],
    fan_in: int,
    transform: Any = None,
    done: Callable[[int], None] = lambda slices: None,
) -> Any:
    """A reference to the moments of all groups of slices, of their rows as they are or transformed (`transform` is a
    reference).

    The shape of the tree follows from the groups alone, so that the sum does not depend on what ended first; merges
    start as soon as their inputs are there."""
    tree = MergeTree(len(groups), fan_in)
    held: dict[tuple[int, int], Any] = {}
    merging: list[Any] = []
    for place, ref in completed(_leaf, [(store, list(group), transform) for group in groups]):
        node = (0, place)
        held[node] = ref
        while (parent := tree.arrive(node)) is not None:
            node, children = parent
            if len(children) == 1:
                held[node] = held.pop(children[0])
                continue
            if merging:
                ray.wait(
                    [merging.pop()], fetch_local=False
                )  # one at a time: bounds the matrices alive, while leaves go on
            held[node] = _merge.remote(*(held.pop(child) for child in children))
            merging.append(held[node])
        done(len(groups[place]))
    return held[tree.root]


@dataclass(frozen=True, slots=True)
class Stored:
    """Moments of an earlier run: where they lie, and the slices they are of."""

    uri: str
    slice_ids: list[str]


def find_stored(store: FeatureStore, slice_ids: Sequence[str]) -> Stored | None:
    """The stored moments that cover most of these slices and nothing else. Raises DamagedObjectError."""
    folder = _moments_folder(store)
    wanted, best = set(slice_ids), None
    for name in storage.list_names(folder):
        uri = storage.join(folder, name)
        try:
            covered = moments.stored_slices(lambda start, stop, uri=uri: storage.read_bytes(uri, start, stop))  # type: ignore[misc]
        except (ValueError, FileNotFoundError) as error:
            raise DamagedObjectError(uri, str(error)) from error
        if name != f"{moments.set_id(covered)}.safetensors":
            raise DamagedObjectError(uri, "it is not of the slices that its name tells")
        if covered and wanted.issuperset(covered) and (best is None or len(covered) > len(best.slice_ids)):
            best = Stored(uri, covered)
    return best


def moments_of(
    store: FeatureStore,
    groups: Sequence[Sequence[str]],
    fan_in: int,
    stored: Stored | None,
    done: Callable[[int], None],
) -> tuple[Any, str]:
    """A reference to the moments of the groups of slices merged with the stored ones, and the id of the set of slices
    they are of.

    They are kept under that id for the runs to come. A file that left the corpus is left out of the merge: nothing is
    ever subtracted."""
    merged = reduce_moments(store, groups, fan_in, done=done) if groups else None
    if stored:
        merged = _merge_stored.remote(stored.uri, merged)
    slice_ids = sorted({slice_id for group in groups for slice_id in group}.union(stored.slice_ids if stored else ()))
    set_id = moments.set_id(slice_ids)
    uri = storage.join(_moments_folder(store), f"{set_id}.safetensors")
    if not storage.exists(uri):
        ray.get(_save_moments.remote(uri, merged, slice_ids))
    return merged, set_id


def solve(
    config: SubspaceConfig, merged: Any, second_pass: Callable[[Any], Any], uri: str
) -> tuple[Any, dict[str, Any]]:
    """A reference to the subspace, which is also stored at `uri`, and what people want to know of it."""
    transform = _fit.remote(merged, config.standardize, config.l2_normalize)
    gram = second_pass(transform) if config.l2_normalize else None
    subspace, facts = _solve.options(num_returns=2).remote(merged, transform, gram, config.energy, uri)
    return subspace, ray.get(facts)


def _moments_folder(store: FeatureStore) -> str:
    return storage.join(store.output, "moments", store.extractor_id)


@ray.remote
def _leaf(store: FeatureStore, slice_ids: list[str], transform: Transform | None) -> Moments:
    blocks = (features_of(store.read(slice_id, ["feature"])) for slice_id in slice_ids)
    first = next(blocks)
    rows = itertools.chain([first], blocks)
    return accumulate(map(transform, rows) if transform is not None else rows, first.shape[1])


@ray.remote
def _merge(*parts: Moments) -> Moments:
    return merge(*parts)


@ray.remote
def _merge_stored(uri: str, new: Moments | None) -> Moments:
    try:
        stored = moments.from_bytes(storage.read_bytes(uri))
    except (ValueError, FileNotFoundError) as error:
        raise DamagedObjectError(uri, str(error)) from error
    return stored if new is None else merge(stored, new)


@ray.remote
def _save_moments(uri: str, merged: Moments, slice_ids: list[str]) -> None:
    storage.write(uri, moments.to_bytes(merged, slice_ids))


@ray.remote
def _fit(merged: Moments, standardize: bool, l2_normalize: bool) -> Transform:
    return fit_transform(merged, standardize=standardize, l2_normalize=l2_normalize)


@ray.remote
def _solve(
    merged: Moments, transform: Transform, gram: Moments | None, energy: float, uri: str
) -> tuple[Subspace, dict[str, Any]]:
    subspace = dominant_subspace(merged, transform, gram.gram_DD if gram is not None else None, energy)
    storage.write(uri, decomposition.to_bytes(subspace))
    facts = {
        "k": subspace.k,
        "dim": int(np.size(subspace.spectrum_D)),
        "captured": subspace.captured,
        "count": subspace.count,
    }
    return subspace, facts
