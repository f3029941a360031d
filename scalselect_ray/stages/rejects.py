"""The rejects of a run: how many may be, their one file, and the text-only samples that are kept at the manifest's
end."""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import ObjectRef

from scalselect_ray.config import SelectionConfig
from scalselect_ray.corpus import LostRows, Plan, Reason
from scalselect_ray.errors import TooManyRejectsError
from scalselect_ray.io import storage
from scalselect_ray.stages.context import Job
from scalselect_ray.store.tables import KEYS, MANIFEST, REJECTS, write_part

_SHOWN = 5  # rejects in an error
_SEARCHED = 200  # slices that are searched for them


def too_many(job: Job, plan: Plan, rejected: int, lost: Sequence[LostRows], filtered: int = 0) -> bool:
    """Whether more samples of a plan are rejected or lost than the config allows. One reject stands for each file that
    has lost rows: it counts as all that it stands for. `filtered`: rows that are known to be filtered out."""
    hidden = _hidden(lost)
    return rejected + hidden > job.config.rejects.max_fraction * (plan.rows - filtered + hidden)


def check_rejects(job: Job, plan: Plan, rejected: int, lost: Sequence[LostRows], filtered: int = 0) -> None:
    """Raises TooManyRejectsError with examples where there are `too_many`."""
    if too_many(job, plan, rejected, lost, filtered):
        hidden = _hidden(lost)
        raise TooManyRejectsError(
            f"{rejected + hidden:,} of {plan.rows - filtered + hidden:,} samples are "
            f"rejected{' or lost' if lost else ''}, above "
            f"rejects.max_fraction={job.config.rejects.max_fraction:g}",
            *(f"  {item}" for item in sorted(lost, key=lambda item: -item.rows)[:_SHOWN]),
            *examples(job, plan),
            "Fix the corpus, or raise rejects.max_fraction; extracted features are kept. A rejected row is tried "
            "again once",
            "the file that holds it has changed, or 'scalselect clean OUTPUT --rejected REASON' has removed what is "
            "committed with rejects of a reason.",
        )


def _hidden(lost: Sequence[LostRows]) -> int:
    """The lost rows for which no reject stands."""
    return sum(item.rows - item.rejects for item in lost)


def examples(job: Job, plan: Plan) -> list[str]:
    """The first few rejects, a line each, to see what is wrong."""
    lines: list[str] = []
    for slice_id in sorted(job.store.committed().intersection(plan.slice_ids))[:_SEARCHED]:
        for row in job.store.read(slice_id, ["shard", "row", "reason", "message"]).to_pylist():
            if row["reason"] not in (None, Reason.TEXT_ONLY):
                lines.append(f"  {row['reason']}: {row['shard']} row {row['row']}: {row['message']}")
            if len(lines) == _SHOWN:
                return lines
    return lines


def text_only_share(selection: SelectionConfig, chosen: int, scored: int) -> float:
    """Of the samples without an image, how large a share is kept."""
    if selection.text_only == "drop":
        return 0.0
    return selection.text_only_share if selection.text_only_share is not None else chosen / max(scored, 1)


def write_rejects(rejects: Sequence[ObjectRef[pa.Table]], keep_share: float, uri: str) -> None:
    """Writes the rejects of all tables (references, in order) but the text-only samples that `keep_text_only` keeps."""
    ray.get(_write_rejects.remote(list(rejects), keep_share, uri))


def keep_text_only(rejects: Sequence[ObjectRef[pa.Table]], keep_share: float, uri: str, first_rank: int) -> int:
    """Writes `keep_share` of the text-only samples as a part file of the manifest, score null, ranks from `first_rank`
    on; none where it is 0. How many these are."""
    return int(ray.get(_keep_text_only.remote(list(rejects), keep_share, uri, first_rank))) if keep_share else 0


@ray.remote
def _write_rejects(refs: list[ObjectRef[pa.Table]], keep_share: float, uri: str) -> None:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, REJECTS, compression="zstd") as writer:
        for ref in refs:
            table = ray.get(ref)
            writer.write_table(table.filter(pa.array(~_kept(table, keep_share))))
    storage.write(uri, sink.getvalue())


@ray.remote
def _keep_text_only(refs: list[ObjectRef[pa.Table]], keep_share: float, uri: str, first_rank: int) -> int:
    tables = []
    for ref in refs:
        table = ray.get(ref)
        tables.append(table.filter(pa.array(_kept(table, keep_share))).select([name for name, _ in KEYS]))
    table = pa.concat_tables(tables)
    if len(table):
        table = table.append_column("score", pa.nulls(len(table), pa.float64()))
        ranks = pa.array(np.arange(first_rank, first_rank + len(table)))
        write_part(uri, table.append_column("rank", ranks).cast(MANIFEST))
    return len(table)


def _kept(rejects: pa.Table, share: float) -> np.ndarray:
    """Which rows are text-only samples that are kept. (N,) bool"""
    keys = zip(*(rejects[name].to_pylist() for name in ("source", "shard", "row", "reason")), strict=True)
    kept = [
        reason == Reason.TEXT_ONLY and _uniform(f"{source}\0{shard}\0{row}") < share
        for source, shard, row, reason in keys
    ]
    return np.array(kept, dtype=bool)


def _uniform(key: str) -> float:
    """A number in [0, 1) that only depends on `key`: a sample that is kept stays kept as the corpus grows."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / (1 << 56)
