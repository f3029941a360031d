"""Feature files to moments to the subspace: leaf tasks, a tree of merges, one task that decomposes. No d x d matrix
meets the driver."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from scalselect_ray.cluster.tasks import Damage, completed, one_thread
from scalselect_ray.config import SubspaceConfig
from scalselect_ray.corpus import SliceId
from scalselect_ray.io import storage
from scalselect_ray.stages.context import Job, Run, grouped
from scalselect_ray.store import moments as stored_moments
from scalselect_ray.store.features import FeatureStore, features_of
from scalselect_ray.store.moments import StoredMoments
from scalselect_ray.store.subspace import write_subspace
from scalselect_ray.subspace import (
    MergeTree,
    Moments,
    Subspace,
    Transform,
    accumulate,
    dominant_subspace,
    fit_transform,
    merge,
)

Groups = Sequence[Sequence[SliceId]]


@dataclass(frozen=True)
class Reduced:
    """The subspace of a run, and what people want to know of it."""

    subspace: ObjectRef[Subspace]  # stored with the run as well
    set_id: str  # of the slices whose moments it is made of
    slices_reused: int  # whose moments an earlier run had merged
    k: int
    dim: int
    captured: float  # share of the energy


def reduce(job: Job, run: Run) -> Reduced:
    """The dominant subspace of all features of a run. Raises DamagedObjectError, StorageError, OutputError."""
    stored = stored_moments.find_stored(job.store, run.plan.slice_ids)
    reused = set(stored.slice_ids) if stored else set()
    new = [slice_id for slice_id in run.plan.slice_ids if slice_id not in reused]
    fan_in = job.config.reduce.fan_in
    with job.stages("reduce", len(new), "slices") as stage:
        groups = grouped(new, run.leaf_rows)
        moments, set_id = moments_of(job.store, groups, fan_in, stored, stage.advance)

        def second_pass(transform: ObjectRef[Transform]) -> ObjectRef[Moments]:
            return reduce_moments(job.store, run.groups, fan_in, transform)

        subspace, facts = solve(job.config.subspace, moments, second_pass, run.folder.subspace)
    return Reduced(subspace, set_id, len(reused), **facts)


def reduce_moments(
    store: FeatureStore,
    groups: Groups,
    fan_in: int,
    transform: ObjectRef[Transform] | None = None,
    done: Callable[[int], None] = lambda slices: None,
) -> ObjectRef[Moments]:
    """The moments of all groups of slices, of their rows as they are or transformed.

    The shape of the tree follows from the groups alone, so that the sum does not depend on what ended first; merges
    start as soon as their inputs are there. Raises DamagedObjectError once all damage is known.
    """
    tree = MergeTree(len(groups), fan_in)
    held: dict[tuple[int, int], ObjectRef[Moments]] = {}
    merging: list[ObjectRef[Moments]] = []
    damage = Damage()
    tasks = [(store, list(group), transform) for group in groups]
    for index, (ref, rows) in completed(_leaf.options(num_returns=2), tasks):
        done(len(groups[index]))
        if damage.among(rows):
            continue
        node = (0, index)
        held[node] = ref
        while (parent := tree.arrive(node)) is not None:
            node, children = parent
            if len(children) == 1:
                held[node] = held.pop(children[0])
                continue
            if merging:  # one at a time: bounds the matrices alive, while leaves go on
                ray.wait([merging.pop()], fetch_local=False)
            held[node] = _merge.remote(*(held.pop(child) for child in children))
            merging.append(held[node])
    damage.check()
    return held[tree.root]


def moments_of(
    store: FeatureStore,
    groups: Groups,
    fan_in: int,
    stored: StoredMoments | None,
    done: Callable[[int], None],
) -> tuple[ObjectRef[Moments], str]:
    """The moments of the groups of slices merged with the stored ones, and the id of the set of slices they are of.

    They are kept under that id for the runs to come. A file that left the corpus is left out of the merge: nothing is
    ever subtracted.
    """
    merged = reduce_moments(store, groups, fan_in, done=done) if groups else None
    if stored:
        merged = _merge_stored.remote(stored.uri, merged)
    slice_ids = {slice_id for group in groups for slice_id in group}.union(stored.slice_ids if stored else ())
    set_id = stored_moments.set_id(slice_ids)
    uri = store.output.moments_file(store.extractor_id, set_id)
    if stored is None or stored.uri != uri:
        ray.get(_save_moments.remote(uri, merged, sorted(slice_ids)))
    return merged, set_id


def solve(
    config: SubspaceConfig,
    merged: ObjectRef[Moments],
    second_pass: Callable[[ObjectRef[Transform]], ObjectRef[Moments]],
    uri: str,
) -> tuple[ObjectRef[Subspace], dict[str, Any]]:
    """The subspace, which is also stored at `uri`, and its k, dim and captured energy. `second_pass` gives the moments
    of the transformed rows, where these cannot be had from the moments of the rows."""
    transform = _fit.remote(merged, config.standardize, config.l2_normalize)
    gram = second_pass(transform) if config.l2_normalize else None
    subspace, facts = _solve.options(num_returns=2).remote(merged, transform, gram, config.energy, uri)
    return subspace, ray.get(facts)


@ray.remote
def _leaf(store: FeatureStore, slice_ids: list[SliceId], transform: Transform | None) -> tuple[Moments, int]:
    blocks = map(features_of, store.read_all(slice_ids, ["feature"]))
    first = next(blocks)
    rows = itertools.chain([first], blocks)
    with one_thread():
        moments = accumulate(map(transform, rows) if transform is not None else rows, first.shape[1])
    return moments, moments.count


@ray.remote
def _merge(*moments: Moments) -> Moments:
    with one_thread():
        return merge(*moments)


@ray.remote
def _merge_stored(uri: str, new: Moments | None) -> Moments:
    stored = stored_moments.read_moments(uri)
    with one_thread():
        return stored if new is None else merge(stored, new)


@ray.remote
def _save_moments(uri: str, merged: Moments, slice_ids: list[SliceId]) -> None:
    storage.write(uri, stored_moments.to_bytes(merged, slice_ids))


@ray.remote
def _fit(merged: Moments, standardize: bool, l2_normalize: bool) -> Transform:
    return fit_transform(merged, standardize=standardize, l2_normalize=l2_normalize)


@ray.remote
def _solve(
    merged: Moments, transform: Transform, gram: Moments | None, energy: float, uri: str
) -> tuple[Subspace, dict[str, Any]]:
    with one_thread():
        subspace = dominant_subspace(merged, transform, gram.gram_DD if gram is not None else None, energy)
    write_subspace(uri, subspace)
    return subspace, {"k": subspace.k, "dim": int(np.size(subspace.spectrum_D)), "captured": subspace.captured}
