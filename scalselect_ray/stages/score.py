"""Feature files to scores, the second map pass: a task for each group of slices; the driver sees counts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from scalselect_ray.cluster.tasks import completed
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore, features_of
from scalselect_ray.store.tables import KEYS, REJECTS, SCORES, value_counts, write_part
from scalselect_ray.subspace import Subspace, leverage


@dataclass
class Scored:
    """What the driver keeps of the scoring pass: nothing that grows with the number of samples but a few bytes a
    file."""

    uris: list[str]  # of the score files, in the order of (shard, row)
    rows: list[int]  # scored samples in each
    counts: Counter[str] = field(default_factory=Counter)  # scored samples by source
    reasons: Counter[str] = field(default_factory=Counter)  # rejects by reason
    total: float = 0.0  # sum of all scores
    best: float = 0.0  # highest score
    rejects: list[Any] = field(default_factory=list)  # references to tables of rejects, in order

    @property
    def count(self) -> int:
        return sum(self.rows)


def score(
    store: FeatureStore, groups: Sequence[Sequence[str]], subspace: Any, folder: str, done: Callable[[int], None]
) -> Scored:
    """Writes `folder`/NNNNN.parquet for each group of slices; `subspace` is a reference, `done` hears of each group's
    slices."""
    uris = [storage.join(folder, f"{place:05d}.parquet") for place in range(len(groups))]
    scored = Scored(uris, [0] * len(groups), rejects=[None] * len(groups))
    tasks = [(store, list(group), subspace, uri) for group, uri in zip(groups, uris, strict=True)]
    for place, refs in completed(_score_group.options(num_returns=2), tasks):
        facts = ray.get(refs[0])
        scored.counts.update(facts["counts"])
        scored.reasons.update(facts["reasons"])
        scored.rows[place] = facts["rows"]
        scored.total += facts["total"]
        scored.best = max(scored.best, facts["best"])
        scored.rejects[place] = refs[1]
        done(len(groups[place]))
    return scored


@ray.remote
def _score_group(
    store: FeatureStore, slice_ids: list[str], subspace: Subspace, uri: str
) -> tuple[dict[str, Any], pa.Table]:
    names = [name for name, _ in KEYS]
    scored, rejected = [], []
    for slice_id in slice_ids:
        table = store.read(slice_id, [*REJECTS.names, "feature"])
        kept = table.filter(pc.is_null(table["reason"]))
        values = leverage(features_of(kept), subspace) if len(kept) else np.empty(0)
        scored.append(kept.select(names).append_column("score", pa.array(values)))
        rejected.append(table.filter(pc.is_valid(table["reason"])).select(REJECTS.names))
    scores = pa.concat_tables(scored).cast(SCORES)
    write_part(uri, scores)
    values = scores["score"].to_numpy()
    rejects = pa.concat_tables(rejected).cast(REJECTS)
    facts = {
        "rows": len(values),
        "counts": value_counts(scores["source"]),
        "reasons": value_counts(rejects["reason"]),
        "total": float(values.sum()),
        "best": float(values.max(initial=0.0)),
    }
    return facts, rejects
