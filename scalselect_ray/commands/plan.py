"""What a run would read and do, and about how long it would take."""

import time
from dataclasses import asdict
from typing import Any

from scalselect_ray.commands.verify import verify
from scalselect_ray.config import ExtractorConfig, JobConfig
from scalselect_ray.console import Console, duration
from scalselect_ray.corpus import (
    Plan,
    Reject,
    Slice,
    check_filters,
    list_corpus,
    lost_rows,
    make_plan,
    plan_here,
    read_slices,
    rests_of,
)
from scalselect_ray.corpus.location import check_links, check_told
from scalselect_ray.corpus.planning import passed_over_text
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.runs import Runs

_PROBED = 8  # samples that a guess of the time is made of
_PROBE_SECONDS = 30.0  # after which no more of them is begun
_COLUMNS = ("files", "bytes", "slices", "rows", "rows to do")


def plan(config: JobConfig, console: Console, verified_share: float | None = None) -> dict[str, Any]:
    """Prints and returns what a run would do; with `verified_share` also whether the pictures of that share of the
    committed slices are still the same. Nothing is written but the extractor's description."""
    from scalselect_ray.job import open_store
    from scalselect_ray.stages.extract import extractor_bytes
    from scalselect_ray.vlm.representer import checkpoint_of, slow_on_cpu

    check_told(config.corpus)
    corpus = list_corpus(config.corpus)
    check_links(config.output, corpus)
    filtered = check_filters(corpus.files)
    store = open_store(config, console)
    plan = make_plan(corpus.files, store.committed(), plan_here, corpus.passed_over)
    sources = _by_source(plan)
    console.table(
        ("source", *_COLUMNS), [(name, *(counts[column] for column in _COLUMNS)) for name, counts in sources.items()]
    )
    for source, passed_over in plan.passed_over.items():
        console.note(f"{source}: {passed_over_text(passed_over)}")
    for source, kept in filtered.items():
        console.note(f"{source}: {kept}; the others are filtered out")
    problems = [slice_ for slice_ in plan.todo if slice_.problem]
    lost = lost_rows(plan.files, plan.slice_ids, rests_of(problems))
    for slice_, rest in zip(problems, lost, strict=True):
        console.warn(f"{rest}: {slice_.problem}")
    console.note(f"extractor {store.extractor_id}: {plan.todo_rows:,} of {plan.rows:,} samples are to be extracted")
    memory = extractor_bytes(config.extractor)
    console.note(
        f"each extractor takes about {memory / (1 << 30):.1f} GiB: the front of the model, and a batch of samples"
    )
    if layer := checkpoint_of(config.extractor, weights=False).layer:
        console.note(f"decoder layer {layer} is read: {layer + 1} layers run for every token, one sample at a time")
    slow = slow_on_cpu(config.extractor)
    if slow and plan.todo_rows and not (_gpu_here() or config.workers.gpus_per_extractor):
        console.warn(slow)
    rate, basis = _rate(config, plan, store, console)
    verified = {} if verified_share is None else {"verified": verify(plan, store, verified_share, console)}
    return {
        "extractor": store.extractor_id,
        "extractor_bytes": memory,
        "rows": plan.rows,
        "todo_rows": plan.todo_rows,
        "lost": [asdict(rest) for rest in lost],
        "seconds": plan.todo_rows / rate if rate else None,
        "seconds_by": basis,
        "sources": sources,
        "filters": {source: kept._asdict() for source, kept in filtered.items()},
        "passed_over": {source: dict(passed_over) for source, passed_over in plan.passed_over.items()},
        **verified,
    }


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _by_source(plan: Plan) -> dict[str, dict[str, int]]:
    sources: dict[str, dict[str, int]] = {}
    source_of = {file.key: file.source for file in plan.files}
    todo = {part.id for part in plan.todo}
    for file in plan.files:
        counts = sources.setdefault(file.source, dict.fromkeys(_COLUMNS, 0))
        counts["files"] += 1
        counts["bytes"] += file.file.size
    for slice_id in plan.slice_ids:
        counts = sources[source_of[slice_id.file_key]]
        counts["slices"] += 1
        counts["rows"] += slice_id.rows
        counts["rows to do"] += slice_id.rows * (slice_id in todo)
    return sources


def _rate(config: JobConfig, plan: Plan, store: FeatureStore, console: Console) -> tuple[float | None, str | None]:
    """Samples a second, and what tells so: `run` (the last one with this extractor), `probe` (a few samples, here), or
    nothing."""
    todo = [part for part in plan.todo if part.problem is None]
    if not todo:
        return None, None
    if rate := _measured_rate(store):
        console.note(
            f"about {duration(plan.todo_rows / rate)} at the {rate:,.1f} samples/s of the last run with this extractor"
        )
        return rate, "run"
    try:
        count, seconds, device = _probe(todo[0], config.extractor, config.workers.cpus_per_extractor)
    except ScalSelectError as error:
        console.warn(f"no guess of the time: a few samples could not be tried: {error}")
        return None, None
    if not count:
        console.note(
            "no guess of the time: the first samples are all rejects; try one file first: what it extracts is kept"
        )
        return None, None
    rate = count / seconds
    console.note(
        f"about {duration(plan.todo_rows / rate)} with one extractor like {device}: a guess from {count} samples "
        f"tried here ({rate:,.2f} samples/s); n extractors take about an n-th of it, another machine another time"
    )
    return rate, "probe"


def _measured_rate(store: FeatureStore) -> float | None:
    """Samples a second of the newest run that extracted with this extractor."""
    runs = Runs(store.output)
    for name in reversed(runs.names()):
        record = runs.record(name)
        if record is not None and record.extractor == store.extractor_id and record.samples_per_second:
            return record.samples_per_second
    return None


def _probe(part: Slice, extractor: ExtractorConfig, cpus: int) -> tuple[int, float, str]:
    """(samples, seconds, device): a few samples of a slice prepared and extracted in this process, one by one. The
    first one, which also warms everything up, is counted only when it stays alone. Nothing is kept."""
    import torch

    from scalselect_ray.vlm.representer import Representer

    threads = torch.get_num_threads()
    torch.set_num_threads(cpus)
    try:
        began = time.monotonic()
        represent = Representer(extractor)
        samples = [row for _, rows in read_slices([part]) for row in rows if not isinstance(row, Reject)][: _PROBED + 1]
        took: list[float] = []
        for sample in samples:
            if took and time.monotonic() - began > _PROBE_SECONDS:
                break
            started = time.monotonic()
            if not isinstance(represent([sample])[0], Exception):
                took.append(time.monotonic() - started)
    finally:
        torch.set_num_threads(threads)
    counted = took[1:] or took
    device = (
        "the GPU of this machine"
        if represent.device.type == "cuda"
        else f"{cpus} CPU core{'s' * (cpus > 1)} of this machine"
    )
    return len(counted), max(sum(counted), 1e-9), device
