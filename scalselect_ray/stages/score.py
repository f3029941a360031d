"""Feature files to scores, the second map pass: a task for each group of slices; the driver sees counts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray import ObjectRef

from scalselect_ray.cluster.tasks import Damage, completed, one_thread
from scalselect_ray.corpus import LostRows, Plan, Reason, Rest, SliceId, lost_rows
from scalselect_ray.errors import CorpusError
from scalselect_ray.stages.context import Job, Run
from scalselect_ray.stages.reduce import Reduced
from scalselect_ray.stages.rejects import check_rejects, examples
from scalselect_ray.store.features import LOST_BYTES, FeatureStore, features_of
from scalselect_ray.store.layout import RunFolder
from scalselect_ray.store.tables import KEYS, REJECTS, SCORES, value_counts, write_part
from scalselect_ray.subspace import Subspace, leverage


@dataclass(frozen=True)
class ScoredPart:
    """What a task tells of the score file that it has written."""

    rows: int  # scored samples
    sources: dict[str, int]  # scored samples by source
    reasons: dict[str, int]  # rejects by reason
    rests: dict[str, Rest]  # of files that could not be read to their end, by the key of the file
    filtered: dict[str, int]  # rows that a filter left out, by the key of the file
    total: float  # sum of the scores
    best: float  # highest score


@dataclass(frozen=True)
class Scores:
    """What the driver keeps of the scoring pass: nothing that grows with the number of samples but a few bytes a
    file."""

    uris: list[str]  # of the score files, in the order of (shard, row)
    parts: list[ScoredPart]
    rejects: list[ObjectRef[pa.Table]]  # of each score file's slices
    lost: list[LostRows]

    @property
    def rows(self) -> list[int]:
        """Scored samples in each file."""
        return [part.rows for part in self.parts]

    @property
    def count(self) -> int:
        """All scored samples."""
        return sum(self.rows)

    @property
    def sources(self) -> Counter[str]:
        """Scored samples by source."""
        return sum((Counter(part.sources) for part in self.parts), Counter[str]())

    @property
    def reasons(self) -> Counter[str]:
        """Rejects by reason."""
        return sum((Counter(part.reasons) for part in self.parts), Counter[str]())

    def filtered_out(self, plan: Plan) -> dict[str, int]:
        """Rows that a filter left out, by source."""
        of_files = sum((Counter(part.filtered) for part in self.parts), Counter[str]())
        of_sources = Counter[str]()
        for file in plan.files:
            of_sources[file.source] += of_files[file.key]
        return {source: count for source, count in sorted(of_sources.items()) if count}

    @property
    def total(self) -> float:
        """Sum of all scores."""
        return sum(part.total for part in self.parts)

    @property
    def best(self) -> float:
        """The highest score, 0 at least."""
        return max((part.best for part in self.parts), default=0.0)


def score(job: Job, run: Run, reduced: Reduced) -> Scores:
    """The leverage of every sample, in a score file for each group of slices.

    Raises DamagedObjectError, TooManyRejectsError, CorpusError where nothing can be scored.
    """
    with job.stages("score", len(run.plan.slice_ids), "slices") as stage:
        scores = score_groups(job.store, run.groups, reduced.subspace, run.folder, stage.advance)
    rests: dict[str, Rest] = {}
    for part in scores.parts:
        for key, rest in part.rests.items():
            _note(rests, key, rest)
    scores = replace(scores, lost=lost_rows(run.plan.files, run.plan.slice_ids, rests))
    rejected = sum(count for reason, count in scores.reasons.items() if reason != Reason.TEXT_ONLY)
    filtered = sum(scores.filtered_out(run.plan).values())
    check_rejects(job, run.plan, rejected, scores.lost, filtered)
    if not scores.count:
        counts = [*scores.reasons.most_common(), *([("filtered out", filtered)] if filtered else [])]
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts)
        raise CorpusError(
            f"none of the {run.plan.rows:,} samples could be scored: {reasons}",
            *examples(job, run.plan),
        )
    return scores


def score_groups(
    store: FeatureStore,
    groups: Sequence[Sequence[SliceId]],
    subspace: ObjectRef[Subspace],
    folder: RunFolder,
    done: Callable[[int], None],
) -> Scores:
    """Writes a score file for each group of slices; `done` hears of each group's slices. Raises DamagedObjectError once
    all damage is known."""
    uris = [folder.part("scores", index) for index in range(len(groups))]
    tasks = [(store, list(group), subspace, uri) for group, uri in zip(groups, uris, strict=True)]
    parts: list[Any] = [None] * len(uris)
    rejects: list[Any] = [None] * len(uris)
    damage = Damage()
    for index, (part, rejected) in completed(_score_group.options(num_returns=2), tasks):
        done(len(groups[index]))
        if not damage.among(part):
            parts[index], rejects[index] = ray.get(part), rejected
    damage.check()
    return Scores(uris, parts, rejects, lost=[])


def _note(rests: dict[str, Rest], key: str, rest: Rest) -> None:
    """Adds a rest to those of its file."""
    rests[key] = rests[key].with_another(rest) if key in rests else rest


@ray.remote
def _score_group(
    store: FeatureStore, slice_ids: list[SliceId], subspace: Subspace, uri: str
) -> tuple[ScoredPart, pa.Table]:
    names = [name for name, _ in KEYS]
    scored, rejected, rests, filtered = [], [], dict[str, Rest](), Counter[str]()
    tables = store.read_all(slice_ids, [*REJECTS.names, LOST_BYTES, "feature"])
    for slice_id, table in zip(slice_ids, tables, strict=True):
        kept = table.filter(pc.is_null(table["reason"]))
        with one_thread():
            values = leverage(features_of(kept), subspace) if len(kept) else np.empty(0)
        scored.append(kept.select(names).append_column("score", pa.array(values)))
        filtered[slice_id.file_key] += slice_id.rows - len(table)
        rejected.append(table.filter(pc.is_valid(table["reason"])).select(REJECTS.names))
        for lost in table.filter(pc.is_valid(table[LOST_BYTES])).select(["row", LOST_BYTES]).to_pylist():
            _note(rests, slice_id.file_key, Rest(lost["row"], lost[LOST_BYTES]))
    scores = pa.concat_tables(scored).cast(SCORES)
    write_part(uri, scores)
    values = scores["score"].to_numpy()
    rejects = pa.concat_tables(rejected).cast(REJECTS)
    part = ScoredPart(
        rows=len(values),
        sources=value_counts(scores["source"]),
        reasons=value_counts(rejects["reason"]),
        rests=rests,
        filtered={key: count for key, count in filtered.items() if count},
        total=float(values.sum()),
        best=float(values.max(initial=0.0)),
    )
    return part, rejects
