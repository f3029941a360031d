"""What the stages of a run are given, and what they hand on to all that follow."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from scalselect_ray.cluster.metrics import Stages
from scalselect_ray.config import JobConfig
from scalselect_ray.console import Console
from scalselect_ray.corpus import Plan, SliceId
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output, RunFolder
from scalselect_ray.store.runs import Runs
from scalselect_ray.subspace import consecutive_groups


@dataclass(frozen=True)
class Job:
    """One call of `job.run`: the config, where features are, where people are told of it."""

    config: JobConfig
    store: FeatureStore  # of the config's extractor
    console: Console
    stages: Stages  # progress, seconds and metrics of the stages
    started: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> Output:
        return self.store.output


@dataclass(frozen=True)
class Run:
    """A selection whose slices are all committed: what is computed from them from here on belongs to it."""

    run_id: str
    folder: RunFolder
    plan: Plan
    extracted: int  # slices, in this run
    extracted_rows: int
    leaf_rows: int

    @cached_property
    def groups(self) -> list[list[SliceId]]:
        """The slices of each leaf of the reduce and of each score file, in the order of the corpus."""
        return grouped(self.plan.slice_ids, self.leaf_rows)


def begin(job: Job, plan: Plan, extracted: int, extracted_rows: int) -> Run:
    """A run with an id of its own, greater than that of every run before it."""
    identity = json.dumps([asdict(job.config), job.store.extractor_id, list(map(str, plan.slice_ids))], sort_keys=True)
    runs = Runs(job.output)
    run_id = runs.new_id(datetime.now(UTC), hashlib.sha256(identity.encode()).hexdigest()[:8])
    return Run(run_id, runs.folder(run_id), plan, extracted, extracted_rows, job.config.reduce.leaf_rows)


def grouped(slice_ids: list[SliceId], rows: int) -> list[list[SliceId]]:
    """Neighbouring slices in groups of about so many rows: how they are grouped depends on nothing else."""
    ranges = consecutive_groups([slice_id.rows for slice_id in slice_ids], rows)
    return [slice_ids[group.start : group.stop] for group in ranges]
