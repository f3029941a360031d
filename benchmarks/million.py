"""A million made-up samples reduced, scored and selected, and a ledger of 100,000 feature files listed and planned:
seconds, peak memory.

python benchmarks/million.py [--rows 1000000] [--dim 64] [--ledger 100000]

Features are written as a run would commit them, 500 rows a slice, then the job's own stages run over them. The ledger
is planned twice: as a run finds it that has nothing to do, and as one does that died when half was committed. The last
line of stdout is one JSON record; `within` says which of the bounds below held."""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from record import print_record
from scaling import SLICE_ROWS, make_slices, worker_memory

from scalselect_ray.cluster.session import session
from scalselect_ray.config import SubspaceConfig
from scalselect_ray.console import Console
from scalselect_ray.corpus import CorpusFile, Slice, make_plan
from scalselect_ray.corpus.planning import OpenFile
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo
from scalselect_ray.stages import reduce, score, select
from scalselect_ray.store import moments
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output
from scalselect_ray.subspace import consecutive_groups, of_rows

BOUNDS = {"total_s": 120, "worker_peak_mib": 1024, "driver_peak_mib": 1024, "ledger_s": 15}
SLICES_A_FILE = 100


def timed(seconds: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    answer = call()
    seconds[name] = round(time.perf_counter() - started, 3)
    return answer


def run_stages(store: FeatureStore, rows: int, dim: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The stages behind the extraction, over `rows` rows."""
    seconds: dict[str, float] = {}
    folder_of_run = store.output.run("made")
    names = timed(seconds, "make", lambda: make_slices(store, 0, rows // SLICE_ROWS, dim))
    groups = [names[run.start : run.stop] for run in consecutive_groups([SLICE_ROWS] * len(names), 16_384)]
    merged, _ = timed(seconds, "reduce", lambda: reduce.moments_of(store, groups, 8, None, lambda slices: None))
    subspace, facts = timed(
        seconds,
        "solve",
        lambda: reduce.solve(SubspaceConfig(), merged, lambda transform: None, folder_of_run.subspace),
    )
    scored = timed(
        seconds, "score", lambda: score.score_groups(store, groups, subspace, folder_of_run, lambda slices: None)
    )
    chosen = timed(seconds, "select", lambda: select.choose(scored, scored.count * 16 // 100, {}, folder_of_run))
    return seconds, {"rows": scored.count, "k": facts["k"], "chosen": sum(chosen.values())}


def ledger(folder: str, slices: int) -> tuple[dict[str, float], dict[str, Any]]:
    """What a run does with the names of its feature files, `slices` of them."""
    files = [
        CorpusFile("made", FileInfo(f"/made/{number:06d}.parquet", 1 << 20, "1"), "/made", SLICE_ROWS, 1 << 26)
        for number in range(-(-slices // SLICES_A_FILE))
    ]

    def plan_files(some: Sequence[OpenFile]) -> list[list[Slice]]:
        rows = SLICES_A_FILE * SLICE_ROWS
        return [
            [
                Slice(
                    "made", file.file.uri, 1 << 20, "1", "/made", file.key, first, first + SLICE_ROWS, rows, 0, 1 << 20
                )
                for first in range(0, rows, SLICE_ROWS)
            ]
            for file, _ in some
        ]

    seconds: dict[str, float] = {}
    store = FeatureStore(Output(folder), "ledger")
    names = [part.id for planned in plan_files([(file, []) for file in files]) for part in planned]
    os.makedirs(store.folder)
    for name in names:
        open(f"{store.folder}/{name}.parquet", "xb").close()
    data = moments.to_bytes(of_rows(np.random.default_rng(0).normal(size=(9, 4))), names)
    storage.write(store.output.moments_file("ledger", moments.set_id(names)), data)
    committed = timed(seconds, "list", store.committed)
    plan = timed(seconds, "plan", lambda: make_plan(files, committed, plan_files))
    half = timed(seconds, "plan_half", lambda: make_plan(files, set(names[::2]), plan_files))
    stored = timed(seconds, "find_moments", lambda: moments.find_stored(store, plan.slice_ids))
    groups = timed(seconds, "group", lambda: consecutive_groups([SLICE_ROWS] * len(plan.slice_ids), 16_384))
    rows = timed(seconds, "count", lambda: [plan.rows for _ in range(1000)])[-1]
    found = {
        "slices": len(committed),
        "rows": rows,
        "todo": len(plan.todo),
        "todo_half": len(half.todo),
        "groups": len(groups),
    }
    return seconds, found | {"moments_of": len(stored.slice_ids) if stored else 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--ledger", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger_seconds, found = ledger(f"{folder}/ledger", options.ledger)
        print("ledger", found, ledger_seconds, flush=True)
        with session(Console()):
            seconds, selected = run_stages(FeatureStore(Output(folder), "made"), options.rows, options.dim)
            peak = worker_memory("VmHWM") >> 20
    print("selection", selected, seconds, flush=True)
    measured = {
        "total_s": round(sum(value for name, value in seconds.items() if name != "make"), 3),
        "worker_peak_mib": peak,
        "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "ledger_s": round(sum(ledger_seconds.values()), 3),
    }
    print_record(
        "million", ("ray", "numpy", "pyarrow"), dim=options.dim, selection=selected | {"seconds": seconds},
        ledger=found | {"seconds": ledger_seconds}, measured=measured, bounds=BOUNDS,
        within={name: measured[name] <= bound for name, bound in BOUNDS.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
