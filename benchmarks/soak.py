"""Thousands of tiny slices through the real extraction: what an hour of a real run does to memory, files and handles,
in minutes.

python benchmarks/soak.py [--slices 4000] [--seconds 300] [--every 15]

The demo's pictures and tiny model, two samples a slice. Sampled as the slices are committed: resident memory of the
driver, of the extraction actors and of the largest worker, object store in use, open file handles of the driver and of
the actors; and how often the driver asked for a listing or for the state of an object. `drift` compares the last
quarter of the samples with the second, when all workers were up. The last line of stdout is one JSON record."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import fsspec.implementations.local
import ray
from record import print_record
from scaling import workers

from scalselect_ray.cluster.session import session
from scalselect_ray.commands.demo import make_demo
from scalselect_ray.config_files import load_config
from scalselect_ray.console import Console
from scalselect_ray.corpus import list_files, make_plan, plan_here, planning
from scalselect_ray.io import storage
from scalselect_ray.job import open_store
from scalselect_ray.stages.extract import extract_slices

SLICE_ROWS = 2
HERE = Path("/proc/self")
COLUMNS = (
    "seconds",
    "slices",
    "driver_mib",
    "actors_mib",
    "worker_mib",
    "store_mib",
    "driver_handles",
    "actor_handles",
)


def make_corpus(folder: Path, slices: int) -> list[str]:
    """The demo in `folder`, its corpus repeated to `slices` slices; overrides for its config."""
    config = make_demo(str(folder))
    rows = json.loads((folder / "corpus" / "shapes.json").read_text())
    wanted = slices * SLICE_ROWS
    (folder / "corpus" / "shapes.json").write_text(json.dumps((rows * (wanted // len(rows) + 1))[:wanted]))
    return [config, f"corpus.slice_rows={SLICE_ROWS}", "workers.max_extractors=1"]


def measure(started: float, slices: int) -> dict[str, float]:
    """One sample, as whole numbers of MiB and handles."""
    started_here = list(workers())
    actors = [folder for folder in started_here if (folder / "cmdline").read_bytes().startswith(b"ray::MapWorker")]
    return dict(
        zip(
            COLUMNS,
            (
                round(time.perf_counter() - started, 1),
                slices,
                resident(HERE),
                sum(map(resident, actors)),
                max(map(resident, started_here), default=0),
                store_in_use(),
                handles(HERE),
                sum(map(handles, actors)),
            ),
            strict=True,
        )
    )


def resident(process: Path) -> int:
    try:
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0


def handles(process: Path) -> int:
    try:
        return len(os.listdir(process / "fd"))
    except OSError:
        return 0


def store_in_use() -> int:
    name = "object_store_memory"
    return int(ray.cluster_resources()[name] - ray.available_resources().get(name, 0)) >> 20


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How often this process asks for a listing, and for the state of an object."""
    counts = {"listings": 0, "states": 0}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **more)

        return call

    local = fsspec.implementations.local.LocalFileSystem
    with (
        mock.patch.object(storage, "_entries", counting("listings", storage._entries)),
        mock.patch.object(planning, "expand", counting("listings", planning.expand)),
        mock.patch.object(local, "info", counting("states", local.info)),
    ):
        yield counts


def drift(samples: list[dict[str, float]], column: str) -> float:
    """The mean of the last quarter less that of the second."""
    quarter = max(1, len(samples) // 4)
    return round(
        fmean(row[column] for row in samples[-quarter:]) - fmean(row[column] for row in samples[quarter:][:quarter]), 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=300, help="ends by then, done or not")
    parser.add_argument("--every", type=float, default=15, help="seconds between samples")
    options = parser.parse_args()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, counted() as counts:
        config = load_config(*_split(make_corpus(Path(folder), options.slices)))
        with session(Console()):
            started = time.perf_counter()
            store = open_store(config, Console())
            files = list_files(config.corpus)
            plan = make_plan(files, store.committed(), plan_here)
            print("  ".join(f"{name:>14}" for name in COLUMNS), flush=True)
            done = rejected = 0
            for committed in extract_slices(plan.todo, store, config.extractor, config.workers):
                done, rejected = done + 1, rejected + committed.rejected
                over = done == len(plan.todo) or time.perf_counter() - started >= options.seconds
                if over or time.perf_counter() - started >= (samples[-1]["seconds"] if samples else 0) + options.every:
                    samples.append(measure(started, done))
                    print("  ".join(f"{samples[-1][name]:>14,}" for name in COLUMNS), flush=True)
                if over:
                    break
            seconds = time.perf_counter() - started
            objects = sum(path.is_file() for path in Path(store.folder).iterdir())
    print_record(
        "soak",
        ("ray", "torch", "transformers", "pyarrow"),
        slices=done,
        rejected=rejected,
        objects=objects,
        driver_requests=counts,
        seconds=round(seconds, 1),
        slices_per_second=round(done / seconds, 2),
        drift={column: drift(samples, column) for column in COLUMNS[2:]},
        samples=samples,
    )


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    return arguments[0], arguments[1:]


if __name__ == "__main__":
    main()
