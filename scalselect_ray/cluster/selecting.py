"""Feature files to scores, and scores to the manifest: tasks over parts, the driver sees counts and histograms."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from scalselect_ray import storage
from scalselect_ray.cluster.tasks import bounded_map, dealt, in_order, summed
from scalselect_ray.errors import ConfigError
from scalselect_ray.features import FeatureStore, features_of
from scalselect_ray.selection import (
    ROUNDS,
    Cut,
    Line,
    Parts,
    Scale,
    chosen,
    cut_parts,
    histogram,
    leverage,
    lower,
    narrow,
    resolve_bounds,
    share_out,
    sortable,
    take_ties,
)
from scalselect_ray.subspace import Subspace, consecutive_groups

Quotas = Mapping[str, tuple[float | None, float | None]]  # (floor, cap) by source
Cuts = Mapping[str | None, Cut]  # by group: sources, or None for everything
Ties = Mapping[str | None, int]  # by group: how many samples right on its cut one score file sends
_PART_ROWS, _MOST_PARTS = 1_000_000, 64  # in one part of a manifest; more where there would be too many parts
_DEAL_ROWS = 4_000_000  # scores of which one task deals out the chosen
_KEYS = [("source", pa.string()), ("shard", pa.string()), ("row", pa.int64()), ("id", pa.string())]
SCORES = pa.schema([*_KEYS, ("score", pa.float64())], metadata={"format": "scalselect.scores/1"})
MANIFEST = pa.schema([*_KEYS, ("score", pa.float64()), ("rank", pa.int64())], metadata={"format": "scalselect.manifest/1"})
REJECTS = pa.schema([*_KEYS, ("reason", pa.string()), ("message", pa.string())], metadata={"format": "scalselect.rejects/1"})


@dataclass
class Scored:
    """What the driver keeps of the scoring pass: nothing that grows with the number of samples but a few bytes a part."""

    parts: list[str]  # URIs of the score files, in the order of (shard, row)
    rows: list[int]  # scored samples in each
    counts: dict[str, int] = field(default_factory=dict)  # scored samples by source
    reasons: dict[str, int] = field(default_factory=dict)  # rejects by reason
    total: float = 0.0  # sum of all scores
    best: float = 0.0
    rejects: list[Any] = field(default_factory=list)  # references to tables of rejects, in order

    @property
    def count(self) -> int:
        return sum(self.counts.values())


def score(store: FeatureStore, groups: Sequence[Sequence[str]], subspace: Any, folder: str, done: Callable[[int], None]) -> Scored:
    """The second map pass: writes `folder`/NNNNN.parquet for each group of slices."""
    parts = [storage.join(folder, f"{place:05d}.parquet") for place in range(len(groups))]
    scored = Scored(parts, [0] * len(groups), rejects=[None] * len(groups))

    def arrived(place: int, refs: Any) -> None:
        facts = ray.get(refs[0])
        for source, count in facts["counts"].items():
            scored.counts[source] = scored.counts.get(source, 0) + count
        for reason, count in facts["reasons"].items():
            scored.reasons[reason] = scored.reasons.get(reason, 0) + count
        scored.rows[place] = facts["rows"]
        scored.total += facts["total"]
        scored.best = max(scored.best, facts["best"])
        scored.rejects[place] = refs[1]
        done(len(groups[place]))

    task = _score_part.options(num_returns=2)
    bounded_map(task, [(store, list(group), subspace, uri) for group, uri in zip(groups, parts, strict=True)], arrived)
    return scored


def select(scored: Scored, budget: int, quotas: Quotas, folder: str) -> dict[str, int]:
    """Writes the best samples to `folder`/NNNNN.parquet in rank order, `budget` of them unless caps forbid it; answers the count chosen
    of each source. With quotas each source is a group with a cut of its own; without, everything is one group, named None.
    """
    cuts = _cuts(scored, _shares(scored, budget, quotas) if quotas else {None: budget})
    scores = list(zip(scored.parts, _kept_ties(scored, cuts), strict=True))
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
        found = summed(_histograms, [(uri, cuts) for uri in scored.parts])
        cuts = {group: narrow(cut, found[group]) for group, cut in cuts.items()}
    return cuts


def _kept_ties(scored: Scored, cuts: Cuts) -> list[Ties]:
    """How many of its samples right on the cut each score file sends."""
    ties = in_order(_ties, [(uri, cuts) for uri in scored.parts])
    kept = {group: take_ties([part[group] for part in ties], cut.remaining) for group, cut in cuts.items()}
    return [{group: kept[group][place] for group in cuts} for place in range(len(ties))]


def _manifest_parts(scored: Scored, cuts: Cuts, scores: Sequence[tuple[str, Ties]]) -> Parts:
    """Where one part of the manifest ends and the next begins."""
    scale = Scale.between(min(cut.prefix for cut in cuts.values()), int(sortable(np.array([scored.best]))[0]))
    counts = summed(_chosen_steps, [(uri, cuts, ties, scale) for uri, ties in scores])[None]
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
        line = lower(line, summed(_histograms, [(uri, cuts) for uri in scored.parts]), bounds, budget)
    runs = in_order(_tied_runs, [(uri, line.prefix) for uri in scored.parts])
    return share_out(line, [run for part in runs for run in part], bounds, budget)


def write_rejects(scored: Scored, uri: str, keep_share: float | None, manifest: str, first_rank: int) -> int:
    """Writes the one file of rejects. With `keep_share`, that share of the text-only samples goes to a manifest part of its own instead
    (score null, ranks behind the scored ones); answers how many."""
    refs = [ref for ref in scored.rejects if ref is not None]
    return int(ray.get(_write_rejects.remote(refs, uri, keep_share, manifest, first_rank)))


@ray.remote
def _score_part(store: FeatureStore, slice_ids: list[str], subspace: Subspace, uri: str) -> tuple[dict[str, Any], pa.Table]:
    columns = ["source", "shard", "row", "id", "reason", "message", "feature"]
    scored, rejected = [], []
    for slice_id in slice_ids:
        table = store.read(slice_id, columns)
        kept = table.filter(pc.is_null(table["reason"]))
        values = leverage(features_of(kept), subspace) if len(kept) else np.empty(0)
        scored.append(kept.select(["source", "shard", "row", "id"]).append_column("score", pa.array(values)))
        rejected.append(table.filter(pc.is_valid(table["reason"])).select([name for name in REJECTS.names]))
    scores = pa.concat_tables(scored).cast(SCORES)
    _write(uri, scores)
    values = scores["score"].to_numpy()
    rejects = pa.concat_tables(rejected).cast(REJECTS)
    facts = {
        "rows": len(values),
        "counts": _value_counts(scores["source"]),
        "reasons": _value_counts(rejects["reason"]),
        "total": float(values.sum()),
        "best": float(values.max(initial=0.0)),
    }
    return facts, rejects


@ray.remote
def _histograms(uri: str, cuts: Cuts) -> dict[str | None, np.ndarray]:
    keys, groups = _keys(uri, cuts)
    return {group: histogram(keys[groups[group]], cut) for group, cut in cuts.items()}


@ray.remote
def _ties(uri: str, cuts: Cuts) -> Ties:
    keys, groups = _keys(uri, cuts)
    return {group: int((keys[groups[group]] == np.uint64(cut.prefix)).sum()) for group, cut in cuts.items()}


@ray.remote
def _tied_runs(uri: str, prefix: int) -> list[tuple[str, int]]:
    """(source, number of scores on the line) of neighbouring rows, in order."""
    table = _scores(uri, ["score", "source"])
    sources = table["source"].filter(pa.array(sortable(table["score"].to_numpy()) == np.uint64(prefix))).combine_chunks()
    runs = pc.run_end_encode(sources)
    ends = runs.run_ends.to_pylist()
    return [(source, end - start) for source, start, end in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False)]


@ray.remote
def _chosen_steps(uri: str, cuts: Cuts, ties: Ties, scale: Scale) -> dict[None, np.ndarray]:
    keys, groups = _keys(uri, cuts)
    return {None: scale.histogram(keys[_chosen(keys, groups, cuts, ties)])}


@ray.remote
def _deal_chosen(scores: list[tuple[str, Ties]], cuts: Cuts, parts: Parts) -> tuple[Any, ...]:
    """The chosen of some score files: their counts by source, and a table for each part of the manifest."""
    tables = []
    for uri, ties in scores:
        table = _scores(uri)
        tables.append(table.filter(pa.array(_chosen(*_grouped(table, cuts), cuts, ties))))
    table = pa.concat_tables(tables)
    part = parts.of(sortable(table["score"].to_numpy()))
    return _value_counts(table["source"]), *(table.take(pa.array(np.flatnonzero(part == place))) for place in range(len(parts)))


@ray.remote
def _write_manifest(dealt: list[Any], above: int, uri: str) -> None:
    """One part of the manifest; `above` samples rank before it."""
    table = pa.concat_tables(ray.get(dealt))
    order = np.argsort(~sortable(table["score"].to_numpy()), kind="stable")  # best first; ties stay in the order of (shard, row)
    table = table.take(pa.array(order)).append_column("rank", pa.array(np.arange(above + 1, above + 1 + len(order))))
    _write(uri, table.cast(MANIFEST))


@ray.remote
def _write_rejects(refs: list[Any], uri: str, keep_share: float | None, manifest: str, first_rank: int) -> int:
    sink, kept = io.BytesIO(), 0
    kept_tables = []
    with pq.ParquetWriter(sink, REJECTS, compression="zstd") as writer:
        for ref in refs:
            table = ray.get(ref)
            if keep_share is not None:
                keys = zip(*(table[name].to_pylist() for name in ("source", "shard", "row", "reason")), strict=True)
                keep = [reason == "text_only" and _uniform(f"{source}\0{shard}\0{row}") < keep_share for source, shard, row, reason in keys]
                kept_tables.append(table.filter(pa.array(keep, pa.bool_())).select(["source", "shard", "row", "id"]))
                table = table.filter(pa.array([not flag for flag in keep], pa.bool_()))
            writer.write_table(table)
    storage.write(uri, sink.getvalue())
    if kept_tables and (kept := sum(map(len, kept_tables))):
        table = pa.concat_tables(kept_tables).append_column("score", pa.nulls(kept, pa.float64()))
        _write(manifest, table.append_column("rank", pa.array(np.arange(first_rank, first_rank + kept))).cast(MANIFEST))
    return kept


def _uniform(key: str) -> float:
    """A number in [0, 1) that only depends on `key`: a sample that is kept stays kept as the corpus grows."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / (1 << 56)


def _scores(uri: str, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=columns)


def _keys(uri: str, cuts: Cuts) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    return _grouped(_scores(uri, ["score"] if None in cuts else ["score", "source"]), cuts)


def _grouped(table: pa.Table, cuts: Cuts) -> tuple[np.ndarray, dict[str | None, np.ndarray]]:
    """Sortable scores of a part, and which of its rows belong to each group (N,) bool."""
    rows = {
        group: np.ones(len(table), bool) if group is None else pc.equal(table["source"], group).to_numpy().astype(bool) for group in cuts
    }
    return sortable(table["score"].to_numpy()), rows


def _chosen(keys: np.ndarray, groups: dict[str | None, np.ndarray], cuts: Cuts, ties: Ties) -> np.ndarray:
    inside = np.zeros(len(keys), dtype=bool)
    for group, cut in cuts.items():
        inside[groups[group]] = chosen(keys[groups[group]], cut, ties[group])
    return inside


def _value_counts(column: Any) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}


def _write(uri: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["source", "shard"], write_page_checksum=True)
    storage.write(uri, sink.getvalue())
