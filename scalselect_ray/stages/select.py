"""Scores to the manifest: tasks over score files, the driver sees counts and histograms."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from scalselect_ray.cluster.tasks import completed, dealt, in_order
from scalselect_ray.errors import ConfigError
from scalselect_ray.io import storage
from scalselect_ray.selection import (
    BINS,
    ROUNDS,
    Cut,
    Line,
    Parts,
    Scale,
    chosen,
    cut_parts,
    histogram,
    lower,
    narrow,
    resolve_bounds,
    share_out,
    sortable,
    take_ties,
)
from scalselect_ray.stages.score import Scored
from scalselect_ray.store.tables import MANIFEST, read_part, value_counts, write_part
from scalselect_ray.subspace import consecutive_groups

Quotas = Mapping[str, tuple[float | None, float | None]]  # (floor, cap) by source
Cuts = Mapping[str | None, Cut]  # by group: sources, or None for everything
Ties = Mapping[str | None, int]  # by group: how many samples right on its cut one score file sends
_PART_ROWS, _MOST_PARTS = 1_000_000, 64  # in one part of a manifest; more where there would be too many parts
_DEAL_ROWS = 4_000_000  # scores of which one task deals out the chosen


def select(scored: Scored, budget: int, quotas: Quotas, folder: str) -> dict[str, int]:
    """Writes the best samples to `folder`/NNNNN.parquet in rank order, `budget` of them unless caps forbid it; returns
    the count chosen of each source. With quotas each source is a group with a cut of its own; without, everything is
    one group, named None."""
    cuts = _cuts(scored, _shares(scored, budget, quotas) if quotas else {None: budget})
    scores = list(zip(scored.uris, _kept_ties(scored, cuts), strict=True))
    parts = _manifest_parts(scored, cuts, scores)
    runs = consecutive_groups(scored.rows, _DEAL_ROWS)
    counts, hands = dealt(_deal_chosen, [(scores[run.start : run.stop], cuts, parts) for run in runs], len(parts))
    uris = [storage.join(folder, f"{place:05d}.parquet") for place in range(len(parts))]
    in_order(_write_manifest, [*zip(hands, parts.above_P.tolist(), uris, strict=True)])
    return dict(sum(map(Counter, counts), Counter[str]()))


def _cuts(scored: Scored, sizes: Mapping[Any, int]) -> Cuts:
    """The cut of each group, of which `sizes` samples are to be chosen."""
    cuts: Cuts = {group: Cut(0, 0, size) for group, size in sizes.items()}
    for _ in range(ROUNDS):
        found = _summed(_histograms, [(uri, cuts) for uri in scored.uris], cuts)
        cuts = {group: narrow(cut, found[group]) for group, cut in cuts.items()}
    return cuts


def _kept_ties(scored: Scored, cuts: Cuts) -> list[Ties]:
    """How many of its samples right on the cut each score file sends."""
    ties = in_order(_ties, [(uri, cuts) for uri in scored.uris])
    kept = {group: take_ties([part[group] for part in ties], cut.remaining) for group, cut in cuts.items()}
    return [{group: kept[group][place] for group in cuts} for place in range(len(ties))]


def _manifest_parts(scored: Scored, cuts: Cuts, scores: Sequence[tuple[str, Ties]]) -> Parts:
    """Where one part of the manifest ends and the next begins."""
    scale = Scale.between(min(cut.prefix for cut in cuts.values()), int(sortable(np.array([scored.best]))[0]))
    counts = _summed(_chosen_steps, [(uri, cuts, ties, scale) for uri, ties in scores], [None])[None]
    return cut_parts(scale, counts, max(_PART_ROWS, -(-int(counts.sum()) // _MOST_PARTS)))


def _shares(scored: Scored, budget: int, quotas: Quotas) -> dict[str, int]:
    """How many samples each source sends."""
    try:
        bounds = resolve_bounds(quotas, scored.counts, budget)
    except ValueError as error:
        raise ConfigError(f"selection.per_source: {error}") from error
    line = Line(0, 0, dict.fromkeys(bounds, 0))
    for _ in range(ROUNDS):
        cuts = {source: Cut(line.prefix, line.rounds, 0) for source in bounds}
        line = lower(line, _summed(_histograms, [(uri, cuts) for uri in scored.uris], cuts), bounds, budget)
    runs = in_order(_tied_runs, [(uri, line.prefix) for uri in scored.uris])
    return share_out(line, [run for part in runs for run in part], bounds, budget)


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
def _histograms(uri: str, cuts: Cuts) -> Sparse:
    keys, groups = _keys(uri, cuts)
    return _sparse({group: histogram(keys[groups[group]], cut) for group, cut in cuts.items()})


@ray.remote
def _ties(uri: str, cuts: Cuts) -> Ties:
    keys, groups = _keys(uri, cuts)
    return {group: int((keys[groups[group]] == np.uint64(cut.prefix)).sum()) for group, cut in cuts.items()}


@ray.remote
def _tied_runs(uri: str, prefix: int) -> list[tuple[str, int]]:
    """(source, number of scores on the line) of neighbouring rows, in order."""
    table = read_part(uri, ["score", "source"])
    sources = (
        table["source"].filter(pa.array(sortable(table["score"].to_numpy()) == np.uint64(prefix))).combine_chunks()
    )
    runs = pc.run_end_encode(sources)
    ends = runs.run_ends.to_pylist()
    return [
        (source, end - start) for source, start, end in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False)
    ]


@ray.remote
def _chosen_steps(uri: str, cuts: Cuts, ties: Ties, scale: Scale) -> Sparse:
    keys, groups = _keys(uri, cuts)
    return _sparse({None: scale.histogram(keys[_chosen(keys, groups, cuts, ties)])})


@ray.remote
def _deal_chosen(scores: list[tuple[str, Ties]], cuts: Cuts, parts: Parts) -> tuple[Any, ...]:
    """The chosen of some score files: their counts by source, and a table for each part of the manifest."""
    tables = []
    for uri, ties in scores:
        table = read_part(uri)
        tables.append(table.filter(pa.array(_chosen(*_grouped(table, cuts), cuts, ties))))
    table = pa.concat_tables(tables)
    part = parts.of(sortable(table["score"].to_numpy()))
    return value_counts(table["source"]), *(
        table.take(pa.array(np.flatnonzero(part == place))) for place in range(len(parts))
    )


@ray.remote
def _write_manifest(dealt: list[Any], above: int, uri: str) -> None:
    """One part of the manifest; `above` samples rank before it."""
    table = pa.concat_tables(ray.get(dealt))
    order = np.argsort(
        ~sortable(table["score"].to_numpy()), kind="stable"
    )  # best first; ties stay in the order of (shard, row)
    table = table.take(pa.array(order)).append_column("rank", pa.array(np.arange(above + 1, above + 1 + len(order))))
    write_part(uri, table.cast(MANIFEST))


def _keys(uri: str, cuts: Cuts) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    return _grouped(read_part(uri, ["score"] if None in cuts else ["score", "source"]), cuts)


def _grouped(table: pa.Table, cuts: Cuts) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    """Sortable scores of a part, and which of its rows belong to each group (N,) bool."""
    rows = {
        group: np.ones(len(table), bool) if group is None else pc.equal(table["source"], group).to_numpy().astype(bool)
        for group in cuts
    }
    return sortable(table["score"].to_numpy()), rows


def _chosen(keys: np.ndarray, groups: dict[str | None, np.ndarray], cuts: Cuts, ties: Ties) -> np.ndarray:
    inside = np.zeros(len(keys), dtype=bool)
    for group, cut in cuts.items():
        inside[groups[group]] = chosen(keys[groups[group]], cut, ties[group])
    return inside
