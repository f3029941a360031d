"""Reduce, solve, score and select on made-up features as N grows 1x, 2x, 4x, 8x: seconds, and peak memory of a worker and of the driver.

python benchmarks/scaling.py [--dim 4096] [--rows 25000] [--steps 4]

Features are written slice by slice as a run would commit them, then the job's own stages run over them. The time that depends on N
(reduce and score) is given apart from that of the eigendecomposition, which is O(d^3) whatever N. The last line of stdout is one JSON
record.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from record import print_record

from scalselect_ray.cluster import reduction, selecting
from scalselect_ray.cluster.session import session
from scalselect_ray.config import SubspaceConfig
from scalselect_ray.features import FeatureStore
from scalselect_ray.subspace import consecutive_groups

SLICE_ROWS = 500
MARK = "SCALSELECT_BENCHMARK"
os.environ[MARK] = str(os.getpid())  # Ray and its workers inherit it


def make_slices(store: FeatureStore, first: int, stop: int, dim: int) -> list[str]:
    """Commits slices [first, stop) of features with a large mean and a decaying spectrum."""
    scale = np.geomspace(1, 0.01, dim).astype(np.float32)
    names = []
    for number in range(first, stop):
        x = np.random.default_rng(number).standard_normal((SLICE_ROWS, dim), dtype=np.float32) * scale + 3
        rows = np.arange(SLICE_ROWS) + number * SLICE_ROWS
        names.append(f"{0:016x}-{rows[0]:09d}-{rows[-1] + 1:09d}-of-{10**8:09d}")
        empty = pa.nulls(SLICE_ROWS, pa.string())
        table = pa.table({
            "source": pa.array(["made"] * SLICE_ROWS), "shard": pa.array(["/made"] * SLICE_ROWS), "row": rows, "id": rows.astype(str),
            "reason": empty, "message": empty, "feature": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), dim),
        })  # fmt: skip
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


def worker_peak() -> int:
    """Largest peak resident memory of a worker, in bytes."""
    peaks = [0]
    for folder in workers():
        try:
            lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
            peaks.append(int(lines["VmHWM"].split()[0]) * 1024)
        except (OSError, KeyError):
            continue
    return max(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    results = []
    names: list[str] = []
    with tempfile.TemporaryDirectory() as folder, session():
        store = FeatureStore(folder, "made")
        for step in range(options.steps):
            names += make_slices(store, len(names), options.rows * 2**step // SLICE_ROWS, options.dim)
            groups = [names[run.start : run.stop] for run in consecutive_groups([SLICE_ROWS] * len(names), 5000)]
            started = time.perf_counter()
            merged = reduction.reduce_moments(store, groups, fan_in=8)
            ray.wait([merged])
            reduced = time.perf_counter()
            subspace, facts = reduction.solve(SubspaceConfig(), merged, lambda transform: None, f"{folder}/subspace-{step}")
            solved = time.perf_counter()
            scored = selecting.score(store, groups, subspace, f"{folder}/scores-{step}", lambda slices: None)
            selecting.select(scored, scored.count // 6, {}, f"{folder}/manifest-{step}")
            ended = time.perf_counter()
            results.append({
                "rows": scored.count, "reduce_s": reduced - started, "solve_s": solved - reduced, "score_s": ended - solved,
                "us_per_row": 1e6 * (reduced - started + ended - solved) / scored.count, "k": facts["k"],
                "worker_peak_mib": worker_peak() >> 20, "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            })  # fmt: skip
            print({key: round(value, 2) for key, value in results[-1].items()}, flush=True)
            del merged, subspace
    print_record("scaling", ("ray", "numpy", "scipy", "pyarrow"), dim=options.dim, results=results)


if __name__ == "__main__":
    main()
