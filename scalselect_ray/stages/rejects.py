"""The rejects of a run to their one file, and the text-only samples that are kept to the end of its manifest."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from scalselect_ray.io import storage
from scalselect_ray.store.tables import KEYS, MANIFEST, REJECTS, write_part


def write_rejects(rejects: Sequence[Any], keep_share: float, uri: str) -> None:
    """Writes the rejects of all tables (references, in order) but the text-only samples that `keep_text_only` keeps."""
    ray.get(_write_rejects.remote(list(rejects), keep_share, uri))


def keep_text_only(rejects: Sequence[Any], keep_share: float, uri: str, first_rank: int) -> int:
    """Writes `keep_share` of the text-only samples as a part of the manifest, score null, ranks from `first_rank` on;
    none where it is 0. How many these are."""
    return int(ray.get(_keep_text_only.remote(list(rejects), keep_share, uri, first_rank))) if keep_share else 0


@ray.remote
def _write_rejects(refs: list[Any], keep_share: float, uri: str) -> None:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, REJECTS, compression="zstd") as writer:
        for ref in refs:
            table = ray.get(ref)
            writer.write_table(table.filter(pa.array(~_kept(table, keep_share))))
    storage.write(uri, sink.getvalue())


@ray.remote
def _keep_text_only(refs: list[Any], keep_share: float, uri: str, first_rank: int) -> int:
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
        reason == "text_only" and _uniform(f"{source}\0{shard}\0{row}") < share for source, shard, row, reason in keys
    ]
    return np.array(kept, dtype=bool)


def _uniform(key: str) -> float:
    """A number in [0, 1) that only depends on `key`: a sample that is kept stays kept as the corpus grows."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / (1 << 56)
