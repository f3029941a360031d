"""What a run shows to Prometheus by way of Ray; `deploy/grafana.json` draws it.

Only counters and one histogram: Ray shows a gauge to one scrape and forgets it, and knows a histogram's sum by its
buckets alone. Metrics are made in each process when they are first written, and sent by Ray now and then: the last
seconds of a process may be missing."""

import functools
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from ray.util.metrics import Counter, Histogram

from scalselect_ray.console import Console, Stage

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "samples": ("Samples whose feature is committed", ("source",)),
    "rejects": ("Rejected samples of committed slices", ("source", "reason")),
    "slices": ("Slices committed", ("source",)),
    "image_read_bytes": ("Encoded images read", ("source",)),
    "feature_written_bytes": ("Feature files written", ("source",)),
    "step_seconds": ("Time that tasks and actors spent in a step: prepare, extract, commit", ("source", "step")),
    "stage_seconds": ("Time of the stages of a run", ("stage",)),
}
_SLICE_SECONDS = "slice_seconds"


def names() -> set[str]:
    """Every metric as Prometheus sees it."""
    histogram = {f"ray_scalselect_{_SLICE_SECONDS}_{part}" for part in ("bucket", "count", "sum")}
    return {f"ray_scalselect_{name}_total" for name in _COUNTERS} | histogram


def step_done(step: str, source: str, seconds: float) -> None:
    """One slice left a step after so long."""
    _counter("step_seconds").inc(seconds, {"source": source, "step": step})
    _histogram().observe(seconds, {"step": step})


def images_read(source: str, size: int) -> None:
    """The encoded images of one slice were read."""
    if size:
        _counter("image_read_bytes").inc(size, {"source": source})


def committed(source: str, table: pa.Table, size: int) -> None:
    """The object of one slice is written: its table, its bytes."""
    _counter("slices").inc(1, {"source": source})
    _counter("feature_written_bytes").inc(size, {"source": source})
    for reason, count in Tally(table["reason"].to_pylist()).items():
        if reason is None:
            _counter("samples").inc(count, {"source": source})
        else:
            _counter("rejects").inc(count, {"source": source, "reason": reason})


class Stages:
    """The stages of a run: on a console while they last, their seconds here and in the metrics once they end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        with self._console.stage(name, total, unit) as stage:
            try:
                yield stage
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + stage.seconds  # a stage can be done again
                if stage.seconds > 0:
                    _counter("stage_seconds").inc(stage.seconds, {"stage": name})


@functools.cache
def _counter(name: str) -> Counter:
    description, tags = _COUNTERS[name]
    return Counter(f"scalselect_{name}", description, tags)


@functools.cache
def _histogram() -> Histogram:
    return Histogram(f"scalselect_{_SLICE_SECONDS}", "Time of one slice in a step", _SECONDS, ("step",))
