"""Scores to the manifest: tasks over score files, the driver sees counts and histograms."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray import ObjectRef

from scalselect_ray.cluster.tasks import completed, in_order, shuffle
from scalselect_ray.errors import ConfigError
from scalselect_ray.report.compare import change_since_last
from scalselect_ray.selection import (
    BINS,
    ROUNDS,
    CommonThreshold,
    Partition,
    Scale,
    Threshold,
    chosen,
    histogram,
    lower,
    narrow,
    partition_scores,
    resolve_bounds,
    resolve_budget,
    share_out,
    sortable,
    take_ties,
)
from scalselect_ray.stages.context import Job, Run
from scalselect_ray.stages.rejects import keep_text_only, text_only_share, write_rejects
from scalselect_ray.stages.score import Scores
from scalselect_ray.store.layout import RunFolder
from scalselect_ray.store.record import Change
from scalselect_ray.store.tables import MANIFEST, read_part, value_counts, write_part
from scalselect_ray.subspace import consecutive_groups

Quotas = Mapping[str, tuple[float | None, float | None]]  # (floor, cap) by source
Thresholds = Mapping[str | None, Threshold]  # by group: sources, or None for everything
Ties = Mapping[str | None, int]  # by group: how many samples right on its threshold one score file sends
_PART_ROWS, _MOST_PARTS = 1_000_000, 64  # in one part file of a manifest; more where there would be too many
_SHUFFLE_ROWS = 4_000_000  # scores that one task of the shuffle reads


@dataclass(frozen=True)
class Selection:
    """What was chosen."""

    budgets: dict[str, int]  # samples, by the budget as the config gives it
    by_source: dict[str, int]  # chosen samples
    text_only_kept: int  # samples without an image at the manifest's end
    change: Change | None  # from the run before; None: there is none to compare with

    @property
    def chosen(self) -> int:
        """Scores samples in the manifest."""
        return sum(self.by_source.values())


def select(job: Job, run: Run, scores: Scores) -> Selection:
    """Writes the manifest of the largest budget, and the rejects. Raises ConfigError, DamagedObjectError,
    StorageError."""
    selection = job.config.selection
    with job.stages("select", 1, "manifest") as stage:
        budgets = {str(budget): resolve_budget(budget, scores.count) for budget in selection.budgets}
        by_source = choose(scores, max(budgets.values()), selection.quotas, run.folder)
        chosen = sum(by_source.values())
        share = text_only_share(selection, chosen, scores.count)
        kept = keep_text_only(scores.rejects, share, run.folder.text_only, chosen + 1)
        write_rejects(scores.rejects, share, run.folder.rejects)
        change = change_since_last(job.store, run.folder, chosen, job.console)
        stage.advance(1)
    return Selection(budgets, by_source, kept, change)


def choose(scores: Scores, budget: int, quotas: Quotas, folder: RunFolder) -> dict[str, int]:
    """Writes the best samples as the manifest in rank order, `budget` of them unless caps forbid it; returns the count
    chosen of each source. With quotas each source is a group with a threshold of its own; without, everything is one
    group, named None."""
    thresholds = _thresholds(scores, _shares(scores, budget, quotas) if quotas else {None: budget})
    files = list(zip(scores.uris, _kept_ties(scores, thresholds), strict=True))
    partition = _partition(scores, thresholds, files)
    groups = consecutive_groups(scores.rows, _SHUFFLE_ROWS)
    tasks = [(files[group.start : group.stop], thresholds, partition) for group in groups]
    counts, tables = shuffle(_partition_chosen, tasks, len(partition))
    uris = [folder.part("manifest", index) for index in range(len(partition))]
    in_order(_write_manifest, [*zip(tables, partition.above_P.tolist(), uris, strict=True)])
    return dict(sum(map(Counter, counts), Counter[str]()))


def _thresholds(scores: Scores, sizes: Mapping[Any, int]) -> Thresholds:
    """The threshold of each group, of which `sizes` samples are to be chosen."""
    thresholds: Thresholds = {group: Threshold(0, 0, size) for group, size in sizes.items()}
    for _ in range(ROUNDS):
        found = _summed(_histograms, [(uri, thresholds) for uri in scores.uris], thresholds)
        thresholds = {group: narrow(threshold, found[group]) for group, threshold in thresholds.items()}
    return thresholds


def _kept_ties(scores: Scores, thresholds: Thresholds) -> list[Ties]:
    """How many of its samples right on the threshold each score file sends."""
    ties = in_order(_ties, [(uri, thresholds) for uri in scores.uris])
    kept = {
        group: take_ties([file[group] for file in ties], threshold.remaining) for group, threshold in thresholds.items()
    }
    return [{group: kept[group][index] for group in thresholds} for index in range(len(ties))]


def _partition(scores: Scores, thresholds: Thresholds, files: Sequence[tuple[str, Ties]]) -> Partition:
    """Where one part file of the manifest ends and the next begins."""
    lowest = min(threshold.prefix for threshold in thresholds.values())
    scale = Scale.between(lowest, int(sortable(np.array([scores.best]))[0]))
    counts = _summed(_chosen_steps, [(uri, thresholds, ties, scale) for uri, ties in files], [None])[None]
    return partition_scores(scale, counts, max(_PART_ROWS, -(-int(counts.sum()) // _MOST_PARTS)))


def _shares(scores: Scores, budget: int, quotas: Quotas) -> dict[str, int]:
    """How many samples each source sends."""
    try:
        bounds = resolve_bounds(quotas, scores.sources, budget)
    except ValueError as error:
        raise ConfigError(f"selection.per_source: {error}") from error
    common = CommonThreshold(0, 0, dict.fromkeys(bounds, 0))
    for _ in range(ROUNDS):
        thresholds = {source: Threshold(common.prefix, common.rounds, 0) for source in bounds}
        counts = _summed(_histograms, [(uri, thresholds) for uri in scores.uris], thresholds)
        common = lower(common, counts, bounds, budget)
    ties = in_order(_ties_in_order, [(uri, common.prefix) for uri in scores.uris])
    return share_out(common, [tied for file in ties for tied in file], bounds, budget)


def _summed(function: Any, arguments: Sequence[tuple[Any, ...]], groups: Iterable[Any]) -> dict[Any, np.ndarray]:
    """The histograms of all tasks by group, added as they arrive. (BINS,) each."""
    total = {group: np.zeros(BINS, dtype=np.int64) for group in groups}
    for _, ref in completed(function, arguments):
        for group, (steps, counts) in ray.get(ref).items():
            total[group][steps] += counts
    return total


Sparse = dict[str | None, tuple[np.ndarray, np.ndarray]]
"""Histograms by group, (steps, counts) of what is not zero: one score file holds few of many sources."""


def _sparse(histograms: Mapping[str | None, np.ndarray]) -> Sparse:
    found = {group: np.flatnonzero(counts) for group, counts in histograms.items()}
    return {group: (steps, histograms[group][steps]) for group, steps in found.items() if len(steps)}


@ray.remote
def _histograms(uri: str, thresholds: Thresholds) -> Sparse:
    keys, groups = _read_grouped(uri, thresholds)
    return _sparse({group: histogram(keys[groups[group]], threshold) for group, threshold in thresholds.items()})


@ray.remote
def _ties(uri: str, thresholds: Thresholds) -> Ties:
    keys, groups = _read_grouped(uri, thresholds)
    return {
        group: int((keys[groups[group]] == np.uint64(threshold.prefix)).sum())
        for group, threshold in thresholds.items()
    }


@ray.remote
def _ties_in_order(uri: str, prefix: int) -> list[tuple[str, int]]:
    """(source, number of keys right on the common threshold) of neighbouring rows, in the order of the corpus."""
    table = read_part(uri, [*_KEY_COLUMNS, "source"])
    tied = pc.run_end_encode(table["source"].filter(pa.array(_keys(table) == np.uint64(prefix))).combine_chunks())
    ends = tied.run_ends.to_pylist()
    return [
        (source, end - start) for source, start, end in zip(tied.values.to_pylist(), [0, *ends], ends, strict=False)
    ]


@ray.remote
def _chosen_steps(uri: str, thresholds: Thresholds, ties: Ties, scale: Scale) -> Sparse:
    keys, groups = _read_grouped(uri, thresholds)
    return _sparse({None: scale.histogram(keys[_chosen(keys, groups, thresholds, ties)])})


@ray.remote
def _partition_chosen(files: list[tuple[str, Ties]], thresholds: Thresholds, partition: Partition) -> tuple[Any, ...]:
    """The chosen of some score files: their counts by source, and a table for each part file of the manifest."""
    tables = []
    for uri, ties in files:
        table = read_part(uri)
        tables.append(table.filter(pa.array(_chosen(*_grouped(table, thresholds), thresholds, ties))))
    table = pa.concat_tables(tables)
    target_N = partition.of(_keys(table))
    parts = (table.take(pa.array(np.flatnonzero(target_N == index))) for index in range(len(partition)))
    return value_counts(table["source"]), *parts


@ray.remote
def _write_manifest(tables: list[ObjectRef[pa.Table]], above: int, uri: str) -> None:
    """One part file of the manifest; `above` samples rank before it."""
    table = pa.concat_tables(ray.get(tables))
    order = np.argsort(~_keys(table), kind="stable")  # best first; ties stay in the order of (shard, row)
    table = table.take(pa.array(order)).append_column("rank", pa.array(np.arange(above + 1, above + 1 + len(order))))
    write_part(uri, table.cast(MANIFEST))


_KEY_COLUMNS = ["score"]


def _keys(table: pa.Table) -> np.ndarray:
    """What the rows of a score file are ranked by, from `_KEY_COLUMNS`: a greater key is a better rank. (N,) uint64.

    The one seam for another order than the paper's, the highest leverage first.
    """
    return sortable(table["score"].to_numpy())


def _read_grouped(uri: str, thresholds: Thresholds) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    columns = _KEY_COLUMNS if None in thresholds else [*_KEY_COLUMNS, "source"]
    return _grouped(read_part(uri, columns), thresholds)


def _grouped(table: pa.Table, thresholds: Thresholds) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    """The keys of a score file, and which of its rows belong to each group (N,) bool."""
    rows = {
        group: np.ones(len(table), bool) if group is None else pc.equal(table["source"], group).to_numpy().astype(bool)
        for group in thresholds
    }
    return _keys(table), rows


def _chosen(keys: np.ndarray, groups: dict[str | None, np.ndarray], thresholds: Thresholds, ties: Ties) -> np.ndarray:
    inside = np.zeros(len(keys), dtype=bool)
    for group, threshold in thresholds.items():
        inside[groups[group]] = chosen(keys[groups[group]], threshold, ties[group])
    return inside
