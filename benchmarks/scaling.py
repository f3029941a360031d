"""Reduce, solve, score and select on made-up features as N grows, and with one worker instead of all: seconds, and peak
memory of a worker and of the driver.

python benchmarks/scaling.py [--dim 1024] [--rows 10000 30000 100000 300000 1000000] [--speedup-rows 100000]

Features are written slice by slice as a run would commit them, then the job's own stages run over them. The time that
depends on N (reduce and score) is given apart from that of the eigendecomposition, which is O(d^3) whatever N. `spread`
is how far the time a row is from flat, the first step aside, which also pays for what is imported. The last line of
stdout is one JSON record."""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from memory import memory_of, peak_of
from record import print_record

from scalselect_ray.cluster.session import session
from scalselect_ray.cluster.tasks import in_order
from scalselect_ray.config import SubspaceConfig
from scalselect_ray.console import Console
from scalselect_ray.corpus import SliceId
from scalselect_ray.stages import reduce, score, select
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output
from scalselect_ray.subspace import consecutive_groups

SLICE_ROWS = 500
LEAF_ROWS = 16_384
MARK = "SCALSELECT_BENCHMARK"
os.environ[MARK] = str(os.getpid())  # Ray and its workers inherit it


def decaying(number: int, rows: int, dim: int, decay: float = 0.01) -> np.ndarray:
    """Made-up features with a large mean and a spectrum that decays to `decay`. (rows, dim) float32"""
    scale_D = np.geomspace(1, decay, dim).astype(np.float32)
    return np.random.default_rng(number).standard_normal((rows, dim), dtype=np.float32) * scale_D + 3


def make_slices(store: FeatureStore, first: int, stop: int, dim: int) -> list[SliceId]:
    """Commits slices [first, stop)."""
    names = []
    for number in range(first, stop):
        x = decaying(number, SLICE_ROWS, dim)
        rows = np.arange(SLICE_ROWS) + number * SLICE_ROWS
        names.append(SliceId("0" * 16, int(rows[0]), int(rows[-1]) + 1, 10**8))
        empty = pa.nulls(SLICE_ROWS, pa.string())
        table = pa.table(
            {
                "source": pa.array(["made"] * SLICE_ROWS),
                "shard": pa.array(["/made"] * SLICE_ROWS),
                "row": rows,
                "id": rows.astype(str),
                "reason": empty,
                "message": empty,
                "feature": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), dim),
            }
        )
        store.commit(names[-1], table)
    return names


def workers() -> Iterator[Path]:
    """Folders below /proc of the Ray workers that this benchmark started; others may run on the machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::") and f"{MARK}={os.getpid()}\0".encode() in (
                folder / "environ"
            ).read_bytes():
                yield folder
        except OSError:
            continue


def worker_memory(field: str) -> int:
    """Largest of the workers' memory (see `memory_of`), in bytes."""
    found = [0]
    for folder in workers():
        with suppress(OSError):
            found.append(memory_of(folder, field))
    return max(found)


def worker_cpu() -> float:
    """CPU seconds that the workers which are there have used so far: of what a row costs, all that others on the
    machine hardly change."""
    ticks = 0
    for folder in workers():
        with suppress(OSError):
            ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def machine(cpus: int) -> Iterator[None]:
    """A local Ray of `cpus` CPUs, it and this process pinned to as many cores. A task of one CPU has one BLAS thread:
    Ray sees to it."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:cpus])
    kept = {"idle_worker_killing_time_threshold_ms": 60_000}  # as `session` sets it
    try:
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            _system_config=kept,
        )
        with session(Console()):
            yield
    finally:
        ray.shutdown()
        os.sched_setaffinity(0, cores)


def make(store: FeatureStore, first: int, stop: int, dim: int) -> None:
    """Slices [first, stop), made by tasks: the driver's memory is what a run's would be."""
    runs = range(first, stop, 20)
    in_order(ray.remote(make_slices), [(store, run, min(run + 20, stop), dim) for run in runs])


def measure(store: FeatureStore, rows: int, dim: int, name: str) -> dict[str, float]:
    """The job's own stages over `rows` rows of features that are there."""
    run = store.output.run(name)
    names = [SliceId("0" * 16, first, first + SLICE_ROWS, 10**8) for first in range(0, rows, SLICE_ROWS)]
    groups = [names[group.start : group.stop] for group in consecutive_groups([SLICE_ROWS] * len(names), LEAF_ROWS)]
    with peak_of(lambda: worker_memory("RssAnon"), seconds=0.2) as own:
        cpu, started = [worker_cpu()], time.perf_counter()
        merged = reduce.reduce_moments(store, groups, fan_in=8)
        ray.wait([merged])
        reduced = time.perf_counter()
        cpu.append(worker_cpu())
        subspace, facts = reduce.solve(SubspaceConfig(), merged, lambda transform: None, run.subspace)
        solved = time.perf_counter()
        cpu.append(worker_cpu())
        scored = score.score_groups(store, groups, subspace, run, lambda slices: None)
        ended = time.perf_counter()
        cpu.append(worker_cpu())
        select.choose(scored, scored.count // 6, {}, run)
        selected = time.perf_counter()
    return {
        "rows": scored.count,
        "reduce_s": reduced - started,
        "solve_s": solved - reduced,
        "score_s": ended - solved,
        "select_s": selected - ended,
        "us_per_row": 1e6 * (reduced - started + ended - solved) / scored.count,
        "cpu_us_per_row": 1e6 * (cpu[1] - cpu[0] + cpu[3] - cpu[2]) / scored.count,
        "k": facts["k"],
        "worker_peak_mib": worker_memory("VmHWM") >> 20,
        "worker_own_peak_mib": own["bytes"] >> 20,
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--speedup-rows", type=int, default=100_000)
    options = parser.parse_args()
    many = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Output(folder), "made")
        with machine(many):
            results, made = [], 0
            for rows in options.rows:
                make(store, made, rows // SLICE_ROWS, options.dim)
                made = rows // SLICE_ROWS
                results.append(told(measure(store, rows, options.dim, str(rows))))
        fewer = []
        for cpus in sorted({1, many}):
            with machine(cpus):
                make(store, made, options.speedup_rows // SLICE_ROWS, options.dim)
                made = max(made, options.speedup_rows // SLICE_ROWS)
                measure(store, min(options.speedup_rows, 4 * LEAF_ROWS), options.dim, f"warm-{cpus}")
                fewer.append({"cpus": cpus} | told(measure(store, options.speedup_rows, options.dim, f"fewer-{cpus}")))
    spread = {name: [result[name] for result in results[1:]] for name in ("us_per_row", "cpu_us_per_row")}
    print_record(
        "scaling",
        ("ray", "numpy", "scipy", "pyarrow"),
        load=os.getloadavg(),
        dim=options.dim,
        results=results,
        spread={name: round(max(values) / max(min(values), 1e-9) - 1, 3) for name, values in spread.items() if values},
        workers=fewer,
        speedup={name: round(fewer[0][name] / fewer[-1][name], 2) for name in ("reduce_s", "score_s", "us_per_row")},
    )


def told(result: dict[str, float]) -> dict[str, float]:
    rounded = {key: round(value, 3) for key, value in result.items()}
    print(rounded, flush=True)
    return rounded


if __name__ == "__main__":
    main()
