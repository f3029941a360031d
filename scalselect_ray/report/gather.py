"""A finished run to the numbers and pictures of its report: tasks over part files, the driver sees
counts and a few rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from scalselect_ray.cluster.tasks import completed
from scalselect_ray.config_files import parse_config
from scalselect_ray.corpus import SliceId
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.report.data import (
    TOKEN_COLUMNS,
    Cutoff,
    Limits,
    RejectExample,
    Report,
    SampleRow,
    Strata,
    count_scores,
    evenly,
    keys_of,
    score_histogram,
    spectrum_of,
    strata_of,
    token_statistics,
)
from scalselect_ray.report.samples import show
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.files import RunFile, read_files
from scalselect_ray.store.layout import Output, RunFolder
from scalselect_ray.store.record import RunRecord
from scalselect_ray.store.subspace import read_spectrum
from scalselect_ray.store.tables import Key, read_batches, read_part

_STAT_SLICES = 256  # the token counts of so many slices are read: they stand for the corpus
_STAT_ROWS = 256  # of one slice
_SLICES_A_TASK = 16
_EXAMPLES = 3  # rejects shown of each reason


def gather(output: Output, record: RunRecord, limits: Limits = Limits()) -> Report:  # noqa: B008
    """The report of the run that `record` (its `run.json`) tells of. Reads what is stored, and the corpus for a few
    samples."""
    folder = output.run(record.run_id)
    limits = limits.of(record.scored)
    config = storage.read_bytes(folder.config).decode()
    chosen = _chosen(folder, sorted({*record.budgets.values(), record.chosen}), limits.cutoff)
    cutoffs = dict.fromkeys(record.sources, min(chosen.lowest.values(), default=float("inf"))) | chosen.lowest
    scored = _scored(folder, cutoffs, limits)

    kept = read_files(folder) if storage.exists(folder.files) else None
    files = _Files(FeatureStore(output, record.extractor), kept or [])
    stats, tokens = files.tokens([row.key for row in scored.rows(chosen.last)])
    keys = [
        *(row.key for row in scored.rows(chosen.last)),
        *zip(*(stats[name].to_pylist() for name in Key._fields), strict=True),
    ]
    ranks = _ranks(folder, keys)
    rows = [
        replace(row, rank=ranks.get(row.key), tokens=tokens.get(row.key))
        for row in scored.rows(chosen.last, ranks, limits.cutoff)
    ]
    report = Report(
        record=record,
        config=config,
        scores=score_histogram(scored.counts, chosen.counts),
        cutoffs=[
            Cutoff(name, count, chosen.at_rank.get(min(count, record.chosen))) for name, count in record.budgets.items()
        ],
        source_cutoffs=chosen.lowest,
        quotas=_quotas(config),
        spectrum=spectrum_of(read_spectrum(folder.subspace), record.k),
        tokens=token_statistics(
            stats, np.array([Key(*key) in ranks for key in keys[len(keys) - len(stats) :]], dtype=bool)
        ),
        tokens_of=len(stats),
        rejects=ray.get(_reject_examples.remote(folder.rejects)),
        rows=rows,
    )
    if kept is None:
        made_by = f"scalselect {record.versions.get('scalselect', '0.1')}"
        return replace(
            report,
            note=f"This run was made by {made_by}, which did not keep of which files it was made: its samples are not "
            "shown, and their tokens not counted. A new run shows them, and extracts nothing again.",
        )
    return replace(report, galleries=show(config, rows, files.keys))


def _quotas(config: str) -> dict[str, str]:
    """The bounds of each source that has any."""
    try:
        bounds = parse_config(config).selection.per_source
    except ScalSelectError:  # the kept config lacks secrets, and need not be usable
        return {}
    return {
        name: ", ".join(
            f"{bound} {value:g}" for bound in ("share", "floor", "cap") if (value := getattr(quota, bound)) is not None
        )
        for name, quota in bounds.items()
    }


@dataclass
class _ManifestSummary:
    """What the manifest tells, text-only samples apart."""

    counts: Counter[int]
    lowest: dict[str, float]  # score by source
    at_rank: dict[int, float]
    last: pa.Table  # the last rows in rank order


def _chosen(folder: RunFolder, ranks: list[int], last: int) -> _ManifestSummary:
    found = _ManifestSummary(Counter(), {}, {}, pa.table({}))
    for _, ref in completed(_manifest_part, [(uri, ranks, last) for uri in folder.parts("manifest")]):
        summary: _ManifestSummary = ray.get(ref)
        found.counts += summary.counts
        found.at_rank |= summary.at_rank
        for source, score in summary.lowest.items():
            found.lowest[source] = min(score, found.lowest.get(source, score))
        tail = pa.concat_tables([found.last, summary.last]) if found.last.num_columns else summary.last
        found.last = tail.sort_by("rank").slice(max(0, len(tail) - last))
    return found


@ray.remote
def _manifest_part(uri: str, ranks: list[int], last: int) -> _ManifestSummary:
    table = read_part(uri)
    table = table.filter(pc.is_valid(table["score"]))  # text-only samples have none
    lowest = table.group_by("source").aggregate([("score", "min")])
    at_rank = table.filter(pc.is_in(table["rank"], value_set=pa.array(ranks, pa.int64())))
    return _ManifestSummary(
        count_scores(table["score"].to_numpy()),
        dict(zip(lowest["source"].to_pylist(), lowest["score_min"].to_pylist(), strict=True)),
        dict(zip(at_rank["rank"].to_pylist(), at_rank["score"].to_pylist(), strict=True)),
        table.sort_by("rank").slice(max(0, len(table) - last)),
    )


@dataclass
class _ScoreSummary:
    """What the scores tell: their histogram, and the rows for the table."""

    counts: Counter[int]
    strata: Strata

    def rows(self, last: pa.Table, ranks: Mapping[Key, int] | None = None, outside: int = 0) -> list[SampleRow]:
        """The rows of the table, each once. With `ranks`, no chosen sample stands just outside the cutoff, and at
        most `outside` others do."""
        named = {"best": "best", "last": "just in", "below": "just out", "worst": "worst", "random": "random"}
        rows: dict[Key, SampleRow] = {}
        for name, stratum in named.items():
            table = last if name == "last" else self.strata.tables.get(name)
            if table is None or not table.num_columns:
                continue
            columns = (*Key._fields, "id", "score")
            found = [
                SampleRow(Key(*key), name, score, stratum)
                for *key, name, score in zip(*(table[column].to_pylist() for column in columns), strict=True)
            ]
            if stratum == "just out" and ranks is not None:
                found = [row for row in found if row.key not in ranks][:outside]
            for row in found:
                rows.setdefault(row.key, row)
        return list(rows.values())


def _scored(folder: RunFolder, cutoffs: Mapping[str, float], limits: Limits) -> _ScoreSummary:
    found = _ScoreSummary(Counter(), Strata(limits))
    parts = enumerate(folder.parts("scores"))
    for _, ref in completed(_score_part, [(uri, part, cutoffs, limits) for part, uri in parts]):
        counts, strata = ray.get(ref)
        found.counts += counts
        found.strata.add(strata)
    return found


@ray.remote
def _score_part(
    uri: str, part: int, cutoffs: Mapping[str, float], limits: Limits
) -> tuple[Counter[int], dict[str, pa.Table]]:
    table = read_part(uri)
    return count_scores(table["score"].to_numpy()), strata_of(table, part, cutoffs, limits)


def _ranks(folder: RunFolder, keys: Sequence[tuple[Any, ...]]) -> dict[Key, int]:
    """The rank of each of the keys that is in the manifest."""
    ranks: dict[Key, int] = {}
    wanted = ray.put(pa.table({name: [key[index] for key in keys] for index, name in enumerate(Key._fields)}, _KEYS))
    for _, ref in completed(_ranks_in, [(uri, wanted) for uri in folder.parts("manifest")]):
        ranks.update((Key(*keys[index]), rank) for index, rank in ray.get(ref))
    return ranks


_KEYS = pa.schema([("source", pa.string()), ("shard", pa.string()), ("row", pa.int64())])


@ray.remote
def _ranks_in(uri: str, wanted: pa.Table) -> list[tuple[int, int]]:
    table = read_part(uri, [*Key._fields, "rank"])
    at = pc.index_in(keys_of(wanted), value_set=keys_of(table))
    return [(index, table["rank"][found].as_py()) for index, found in enumerate(at.to_pylist()) if found is not None]


class _Files:
    """The feature files of a run."""

    def __init__(self, store: FeatureStore, files: Sequence[RunFile]) -> None:
        self._store = store
        self._files = {(file.source, file.shard): file for file in files}

    @property
    def keys(self) -> dict[tuple[str, str], str]:
        """The file key of each (source, shard)."""
        return {name: file.file_key for name, file in self._files.items()}

    def tokens(self, keys: Sequence[Key]) -> tuple[pa.Table, dict[Key, tuple[int, ...]]]:
        """Token counts of samples spread over the run, all of them where it is small, and those of the given
        samples."""
        every = [slice_id for _, file in sorted(self._files.items()) for slice_id in file.slices]
        spread = set(evenly(every, _STAT_SLICES))
        wanted: dict[SliceId, list[int]] = {}
        for key in keys:
            file = self._files.get((key.source, key.shard))
            if file and (slice_id := file.slice_of(key.row)):
                wanted.setdefault(slice_id, []).append(key.row)
        read = [slice_id for slice_id in every if slice_id in spread or slice_id in wanted]
        chunks = [read[at : at + _SLICES_A_TASK] for at in range(0, len(read), _SLICES_A_TASK)]
        schema = pa.schema([*_KEYS, *((name, pa.int32()) for name in TOKEN_COLUMNS)])
        tables = [schema.empty_table()] * len(chunks)
        found: dict[Key, tuple[int, ...]] = {}
        tasks = [(self._store, [(item, item in spread, wanted.get(item, [])) for item in chunk]) for chunk in chunks]
        for index, ref in completed(_tokens_of, tasks):
            tables[index], rows = ray.get(ref)
            found.update((Key(*row[:3]), tuple(row[3:])) for row in rows)
        return pa.concat_tables([schema.empty_table(), *tables]), found


@ray.remote
def _tokens_of(
    store: FeatureStore, slices: list[tuple[SliceId, bool, list[int]]]
) -> tuple[pa.Table, list[tuple[Any, ...]]]:
    columns = [*Key._fields, *TOKEN_COLUMNS]
    schema = pa.schema([*_KEYS, *((name, pa.int32()) for name in TOKEN_COLUMNS)])
    tables, rows = [schema.empty_table()], []
    for slice_id, in_spread, wanted in slices:
        table = store.peek(slice_id, columns)
        if table is None:
            continue
        table = table.cast(schema).filter(pc.is_valid(table["num_tokens"]))
        shown = table.filter(pc.is_in(table["row"], value_set=pa.array(wanted, pa.int64())))
        rows += list(zip(*(shown[name].to_pylist() for name in columns), strict=True))
        if in_spread:
            tables.append(table.take(pa.array(evenly(range(len(table)), _STAT_ROWS), pa.int64())))
    return pa.concat_tables(tables), rows


@ray.remote
def _reject_examples(uri: str) -> list[RejectExample]:
    """The first few rejects of each reason."""
    found: dict[str, list[RejectExample]] = {}
    for table in read_batches(uri, ["reason", "shard", "row", "id", "message"]):
        for reason in table["reason"].unique().to_pylist():
            held = found.setdefault(reason, [])
            some = table.filter(pc.equal(table["reason"], reason)).slice(0, _EXAMPLES - len(held)).to_pylist()
            held += [RejectExample(**row) for row in some]
    return [example for reason in sorted(found) for example in found[reason]]
