"""Slices to feature files with Ray Data: read and prepare (CPU tasks), extract and commit (actors). One row is one
slice."""

import functools
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError

from scalselect_ray.cluster import metrics
from scalselect_ray.cluster.session import ATTEMPTS, cluster_cpus, cluster_gpus, is_lost_worker, node_memories
from scalselect_ray.cluster.waiting import EVERY_S, missing_resources, told_while
from scalselect_ray.cluster.witness import Witness, new_witness, witnessed
from scalselect_ray.config import ExtractorConfig, WorkersConfig
from scalselect_ray.console import Stage, counted
from scalselect_ray.corpus import (
    Plan,
    Reject,
    SampleRejectedError,
    Slice,
    SliceId,
    lost_rows,
    reading_units,
    rests_of,
    shard_name,
)
from scalselect_ray.errors import ClusterError, CorpusChangedError, ModelError
from scalselect_ray.io.ahead import ahead
from scalselect_ray.stages import plan as plan_stage
from scalselect_ray.stages.context import Job, Run, begin
from scalselect_ray.stages.isolation import MOST_SLICES, Deadly, find_deadly, read_without
from scalselect_ray.stages.payload import PreparedRow, payloads, unpack
from scalselect_ray.stages.rejects import check_rejects, too_many
from scalselect_ray.store import moments
from scalselect_ray.store.features import IMAGES_DIGEST, LOST_BYTES, FeatureStore, feature_table
from scalselect_ray.vlm import (
    DeviceLostError,
    Prepared,
    Preparer,
    Representation,
    front_bytes,
)
from scalselect_ray.vlm.representer import (
    FetchedSample,
    checkpoint_of,
    description_of,
    fetch_sample,
    id_of,
    make_extractor,
    make_preparer,
    prepare_fetched,
    preparing_of,
)

_FETCH_THREADS = 8  # of one task; the images of JSON corpora are fetched one by one
_PREPARE_THREADS = 2  # of one task, which has one CPU: what they make waits in memory
_PREPARE_BYTES = 1152 << 20  # of one prepare task: half is libraries, half a photo, a payload and what is made of them
_BESIDE_BYTES = 1 << 30  # of the node of an extractor: what that one takes, at least
_ACTIVATION_BYTES = 2 << 30  # of one extractor beside its weights: the pixels and activations of a batch
_SHOWN_ROWS = 5  # of a slice, in a warning
_CHANGED = b""  # instead of a payload: the file is no longer the one that was planned


@dataclass(frozen=True, slots=True)
class Committed:
    """What is heard of a slice once its object is written."""

    rows: int
    rejected: int  # without the text-only samples
    changed: str | None = None  # the URI of its file, where that has changed since it was planned: nothing is committed


def extract(job: Job, plan: Plan) -> Run:
    """Extracts and commits what is still to do. A file that changes meanwhile is planned and extracted anew, once.

    Raises CorpusChangedError, TooManyRejectsError, and what `extract_slices` raises.
    """
    extracted, rows = len(plan.todo), plan.todo_rows
    if changed := _extract(job, plan):
        job.console.warn(f"{min(changed)} changed while it was read: the corpus is listed anew")
        plan = plan_stage.plan(job)
        extracted, rows = extracted + len(plan.todo), rows + plan.todo_rows
        if changed := _extract(job, plan):
            raise CorpusChangedError(sorted(changed))
    committed = job.store.committed() if plan.todo else set()
    if any(slice_.id not in committed for slice_ in plan.todo):  # some were cut: see `payloads`
        plan = plan_stage.replan(plan, committed)
    return begin(job, plan, extracted, rows)


def _extract(job: Job, plan: Plan) -> set[str]:
    """Extracts what is to do of a plan; returns the files that have changed since, of which something is left to do."""
    changed: set[str] = set()
    if not plan.todo:
        return changed
    moments.forget(job.store, [slice_.id for slice_ in plan.todo])  # before anything of these is committed again
    todo, deadly, fruitless = plan.todo, dict[SliceId, frozenset[int]](), 0
    lost = lost_rows(plan.files, plan.slice_ids, rests_of(plan.todo))
    with job.stages("extract", plan.todo_rows, "samples") as stage, told_while(_waits(job, stage), job.console):
        while todo:
            witness = new_witness()
            try:
                for committed in extract_slices(
                    todo, job.store, job.config.extractor, job.config.workers, witness, deadly
                ):
                    stage.advance(committed.rows, committed.rejected)
                    if committed.changed is not None:
                        changed.add(committed.changed)
                    if too_many(job, plan, stage.rejects, lost):
                        break  # it cannot come back below the limit: no more is paid for
                todo = []
            except RayError as error:
                found = _isolate(job, todo, witness) if is_lost_worker(error) else {}
                fruitless = 0 if found else fruitless + 1
                deadly |= found
                if not is_lost_worker(error) or fruitless > 1 or len(deadly) > MOST_SLICES:
                    raise
                done = job.store.committed()
                todo = [slice_ for slice_ in todo if slice_.id not in done]
    check_rejects(job, plan, stage.rejects, lost)
    return changed


def _isolate(job: Job, todo: Sequence[Slice], witness: ActorHandle[Witness]) -> dict[SliceId, frozenset[int]]:
    """The deadly rows of the slices that were begun again and again."""
    suspects = set(ray.get(witness.suspects.remote()))
    if suspects:
        job.console.warn(
            f"{counted(len(suspects), 'slice')} took the worker along again and again: tried sample by sample"
        )
    gpus = pool_size(job.config.workers, cluster_cpus(), cluster_gpus()).gpus_each
    deadly = {}
    for unit in reading_units(todo):
        if not any(_overlap(slice_.id, suspect) for slice_ in unit for suspect in suspects):
            continue
        for slice_ in unit:
            if rows := find_deadly(slice_, job.config.extractor, gpus):
                deadly[slice_.id] = rows
                shown = ", ".join(f"{row:,}" for row in sorted(rows)[:_SHOWN_ROWS])
                job.console.warn(f"{slice_.shard} row {shown}: ends the process that works at it, and is rejected")
    return deadly


def _overlap(one: SliceId, other: SliceId) -> bool:
    return one.file_key == other.file_key and one.first_row < other.stop_row and other.first_row < one.stop_row


def _waits(job: Job, stage: Stage) -> Callable[[], str | None]:
    """What is said of an extraction that has committed nothing since this was asked last."""
    seen = -1

    def waits() -> str | None:
        nonlocal seen
        before, seen = seen, stage.done
        if stage.done > before:
            return None
        if missing := missing_resources(job.config.workers):
            return f"extract waits for {' and '.join(missing)}: the cluster has none now"
        return (
            f"extract has committed nothing for {EVERY_S:,.0f} s: other runs hold what it needs, or a slice takes long"
        )

    return waits


def extract_slices(
    slices: Sequence[Slice],
    store: FeatureStore,
    extractor: ExtractorConfig,
    workers: WorkersConfig,
    witness: ActorHandle[Witness] | None = None,
    deadly: Deadly = MappingProxyType({}),
) -> Iterator[Committed]:
    """Extracts and commits every slice, its `deadly` rows as rejects; yields one by one as they are committed, in any
    order. `witness` is told what is begun and ended.

    Raises ModelError, CorpusError, StorageError, ClusterError.
    """
    size = pool_size(workers, cluster_cpus(), cluster_gpus())
    committed = prepared_slices(
        slices, extractor, preparing_of(extractor), workers, size.readers, witness, deadly
    ).map_batches(
        ExtractSlices,
        fn_constructor_args=(extractor, workers.cpus_per_extractor, store, witness),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=size.least, max_size=size.most, max_concurrent_calls_per_actor=2),
        num_cpus=0,  # see `PoolSize`
        num_gpus=size.gpus_each,
        label_selector=workers.extractor_labels or None,
        max_task_retries=ATTEMPTS,
    )
    for batch in committed.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            yield Committed(**row)


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many extractors there are, and how many tasks read for them.

    A cluster is shared. An extractor holds what it has until its run ends, a task gives it back: so an extractor holds
    nothing that the tasks of any run wait for, neither CPUs nor memory, only GPUs. Else two runs could each hold what
    the other's readers need, and both would wait for ever. How many CPUs are left to extractors is told by the number
    of readers."""

    least: int  # extractors
    most: int
    gpus_each: float
    readers: int | None  # tasks at a time; None: as many as fit, where the cluster grows


def pool_size(workers: WorkersConfig, cpus: int, gpus: int) -> PoolSize:
    """For a cluster that has so many CPUs and GPUs now."""
    gpus_each = workers.gpus_per_extractor if workers.gpus_per_extractor is not None else float(gpus > 0)
    room = int(gpus / gpus_each) if gpus_each else (cpus - 1) // workers.cpus_per_extractor
    most = workers.max_extractors or max(1, room, workers.min_extractors)
    readers = None if workers.max_extractors else max(1, cpus - most * workers.cpus_per_extractor)
    return PoolSize(min(workers.min_extractors, most), most, gpus_each, readers)


def prepared_slices(
    slices: Sequence[Slice],
    extractor: ExtractorConfig,
    preparing: str,
    workers: WorkersConfig,
    readers: int | None,
    witness: ActorHandle[Witness] | None = None,
    deadly: Deadly = MappingProxyType({}),
) -> ray.data.Dataset:
    """Every slice read and prepared, a row each: (slice, payload); `readers` at a time. `preparing`: see
    `preparing_of`."""
    units = [{"unit": json.dumps([slice_.to_dict() for slice_ in unit])} for unit in reading_units(slices)]
    return ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        prepare_unit,
        fn_kwargs={"extractor": extractor, "preparing": preparing, "witness": witness, "deadly": dict(deadly)},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(readers),
        num_cpus=1,
        max_retries=ATTEMPTS,
        memory=prepare_bytes(node_memories()),
        label_selector=workers.prepare_labels or None,
    )


def prepare_bytes(nodes: Sequence[int]) -> int:
    """What a prepare task asks of the memory that a node lends, given what the nodes of the cluster lend: as many run
    at once as find room, one at least; where there is but one node, beside what else a run has on it."""
    largest = max(nodes)
    at_once = max(1, (largest - (_BESIDE_BYTES if len(nodes) == 1 else 0)) // _PREPARE_BYTES)
    return min(largest, largest // (at_once + 1) + 1)


def extractor_bytes(extractor: ExtractorConfig) -> int:
    """Memory that one extraction actor takes, about: Ray is not asked for it, see `PoolSize`."""
    return front_bytes(checkpoint_of(extractor), getattr(torch, extractor.dtype)) + _ACTIVATION_BYTES


def prepare_unit(
    batch: pa.Table,
    extractor: ExtractorConfig,
    preparing: str,
    witness: ActorHandle[Witness] | None = None,
    deadly: Deadly = MappingProxyType({}),
) -> Iterator[pa.Table]:
    """One unit of slices to one row a slice: (slice, payload); a slice of large pictures becomes several, see
    `payloads`. Raises ModelError where the model, by `preparing_of`, is not the run's."""
    slices = [Slice(**fields) for fields in json.loads(batch["unit"][0].as_py())]
    preparer = _preparer(extractor, preparing)
    with (
        witnessed(witness, slices[0].id),
        ThreadPoolExecutor(_FETCH_THREADS) as fetching,
        ThreadPoolExecutor(_PREPARE_THREADS) as preparing_threads,
    ):
        started = time.perf_counter()
        try:
            for slice_, samples in read_without(slices, deadly):
                prepare = functools.partial(_prepare_row, preparer, slice_.source)
                fetched = ahead(fetching, fetch_sample, samples, _FETCH_THREADS)
                prepared = ahead(preparing_threads, prepare, fetched, _PREPARE_THREADS)
                for row in itertools.starmap(_one_row, payloads(slice_, prepared)):
                    metrics.step_done("prepare", slice_.source, time.perf_counter() - started)
                    yield row
                    del row  # the next one is made without it
                    started = time.perf_counter()
        except CorpusChangedError:  # what was yielded before is of the planned version; nothing after it is
            yield _one_row(slices[0], _CHANGED)


class ExtractSlices:
    """The actor: holds the model, commits the features of a prepared slice.

    Commits stay here: a stage of their own would start more processes, each of which first imports what this one has.
    """

    def __init__(
        self,
        extractor: ExtractorConfig,
        cpus: int,
        store: FeatureStore,
        witness: ActorHandle[Witness] | None = None,
    ) -> None:
        self._store, self._witness = store, witness
        self._turn = threading.Lock()
        torch.set_num_threads(cpus)
        self._refused: ModelError | None = None
        try:
            self._extractor = make_extractor(extractor)
            if not store.is_of(id_of(description_of(extractor))):
                self._refused = _another_model(extractor)
        except ModelError as error:
            self._refused = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._refused:  # not when the actor is made: Ray would make it again and again
            raise self._refused
        slice_ = Slice(**json.loads(batch["slice"][0].as_py()))
        payload = _payload_of(batch)
        if payload.size == len(_CHANGED):
            return _answer(Committed(0, 0, slice_.shard))
        with witnessed(self._witness, slice_.id):
            return self._commit(slice_, self._represented(slice_, unpack(payload)))

    def _represented(self, slice_: Slice, rows: Sequence[PreparedRow]) -> pa.Table:
        """The table of a slice."""
        with self._turn:
            started = time.perf_counter()
            answers = iter(self._extract(slice_, [prepared for _, prepared in rows if isinstance(prepared, Prepared)]))
            metrics.step_done("extract", slice_.source, time.perf_counter() - started)
        shard = shard_name(slice_.shard)  # from here on a name, and no longer a place to read
        records = [
            {
                "source": slice_.source,
                "shard": shard,
                **key,
                **_outcome(next(answers) if isinstance(prepared, Prepared) else prepared),
            }
            for key, prepared in rows
        ]
        return feature_table(records, self._extractor.dim)

    def _extract(self, slice_: Slice, samples: list[Prepared]) -> list[Representation | SampleRejectedError]:
        try:
            return self._extractor(samples)
        except DeviceLostError as error:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                os._exit(1)  # the process is of no more use: Ray starts another and hands it the slice again
            raise ClusterError(
                f"the device of an extractor was lost again, on {slice_.shard} rows "
                f"{slice_.first_row}-{slice_.stop_row - 1}: {error}",
                "Next: look at that machine's device; run again: what is committed stays and is not paid for again",
            ) from error

    def _commit(self, slice_: Slice, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        size = self._store.commit(slice_.id, table, slice_.digest)
        metrics.committed(slice_.source, table, size)
        metrics.step_done("commit", slice_.source, time.perf_counter() - started)
        reasons = table["reason"].to_pylist()
        rejected = sum(reason not in (None, "text_only") for reason in reasons)
        return _answer(Committed(slice_.rows, rejected))


def _answer(committed: Committed) -> pa.Table:
    schema = pa.schema([("rows", pa.int64()), ("rejected", pa.int64()), ("changed", pa.string())])
    return pa.Table.from_pylist([asdict(committed)], schema)


def _prepare_row(preparer: Preparer, source: str, fetched: FetchedSample) -> PreparedRow:
    made, sample = prepare_fetched(preparer, fetched), fetched.sample
    metrics.images_read(source, made.image_bytes)
    lost = (sample.lost_bytes or None) if isinstance(sample, Reject) else None
    return {"row": sample.row, "id": sample.id, IMAGES_DIGEST: made.images_digest, LOST_BYTES: lost}, made.outcome


def _outcome(answer: Representation | SampleRejectedError) -> dict[str, Any]:
    if isinstance(answer, SampleRejectedError):
        return {"reason": str(answer.reason), "message": answer.message[:2000]}
    return {item.name: getattr(answer, item.name) for item in fields(answer)}


@functools.lru_cache(maxsize=1)
def _preparer(extractor: ExtractorConfig, preparing: str) -> Preparer:
    """One a worker process, which may serve several runs: kept by what it was made of, beside its settings."""
    torch.set_num_threads(1)
    preparer = make_preparer(extractor)
    if preparing_of(extractor) != preparing:  # looked at after it was read: what changes meanwhile is seen
        raise _another_model(extractor)
    return preparer


def _another_model(extractor: ExtractorConfig) -> ModelError:
    return ModelError(
        f"extractor.model: {extractor.model} is not the same in every place, or has changed since the "
        "run began: give a folder that nobody writes to, or a hub id with the commit as extractor.revision"
    )


def _payload_of(batch: pa.Table) -> pa.Buffer:
    """The payload of a batch of one row, where it lies: a scalar of it would be a copy."""
    (column,) = (chunk for chunk in batch["payload"].chunks if len(chunk))
    _, ends, data = column.buffers()
    start, stop = np.frombuffer(ends, np.int64)[column.offset : column.offset + 2].tolist()
    return data.slice(start, stop - start)


def _one_row(slice_: Slice, payload: bytes | memoryview) -> pa.Table:
    ends = pa.py_buffer(np.array([0, len(payload)], dtype=np.int64))
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(payload)])  # not a copy of it
    return pa.table({"slice": [json.dumps(slice_.to_dict())], "payload": column})
