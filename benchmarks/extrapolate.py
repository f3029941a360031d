"""What a run over 10^8 and 10^9 samples would take, from what the other benchmarks have measured: a table, and what
breaks first.

python benchmarks/extrapolate.py [--samples 1e8 1e9] [--gpus 64] [--rate 60] [--cores 16] [--slice-rows 256]

Every constant but two is read from the newest record of its benchmark beside this file. The two that are assumptions:
`--rate`, samples a second that one GPU extracts, and the machine of 8 GPUs and `--cores` cores. Nothing here was run at
that size. The last line of stdout is one JSON record."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import print_record

from scalselect_ray.config import ReduceConfig
from scalselect_ray.selection import ROUNDS

HERE = Path(__file__).parent
GPUS_A_NODE = 8
SLICE_ID_BYTES = len(f"{0:016x}-{0:09d}-{0:09d}-of-{0:09d}\n")
KEY_BYTES = 64  # of a row of scores: source, shard, row, id, score, compressed


def newest(benchmark: str) -> Iterator[dict[str, Any]]:
    """The records of a benchmark in the newest file that holds any."""
    file = max(HERE.glob(f"{benchmark}_*.md"))
    for line in file.read_text().splitlines():
        if line.startswith('{"benchmark"'):
            yield json.loads(line)


def constants() -> dict[str, float]:
    """Measured: core seconds and bytes a row at d = 4096, and what a slice costs."""
    scaling = next(record for record in newest("scaling") if record["dim"] == 4096)
    last = scaling["results"][-1]
    soak = next(newest("soak"))["samples"]
    half = soak[len(soak) // 2]
    ledger = next(newest("million"))["ledger"]
    storage = next(newest("storage"))["results"]["s3"]["full"]
    return {
        "dim": scaling["dim"],
        "core_us_per_row": last["cpu_us_per_row"],
        "solve_s": last["solve_s"],
        "worker_mib": last["worker_peak_mib"],
        "driver_kib_per_slice": 1024
        * (soak[-1]["driver_mib"] - half["driver_mib"])
        / (soak[-1]["slices"] - half["slices"]),
        "list_and_plan_us_per_slice": 1e6
        * sum(ledger["seconds"][name] for name in ("list", "plan_half"))
        / ledger["slices"],
        "select_us_per_row": 1e6 * last["select_s"] / last["rows"],
        "requests_per_slice": storage["requests"] / storage["slices"],
    }


def at(
    samples: float, known: dict[str, float], gpus: int, rate: float, cores: int, slice_rows: int
) -> dict[str, float]:
    """The run, by simple proportion."""
    slices, nodes = samples / slice_rows, max(1, gpus // GPUS_A_NODE)
    leaves = samples / ReduceConfig().leaf_rows
    return {
        "samples": samples,
        "extract_h": samples / (gpus * rate) / 3600,
        "reduce_and_score_h": samples * known["core_us_per_row"] / 1e6 / (nodes * cores) / 3600,
        "solve_s": known["solve_s"],
        "select_h_on_two_cores": samples * known["select_us_per_row"] / 1e6 / 3600,
        "score_files_read_by_select": leaves * (ROUNDS + 3),
        "list_and_plan_s": slices * known["list_and_plan_us_per_slice"] / 1e6,
        "feature_files": slices,
        "feature_tb": samples * (4 * known["dim"] + KEY_BYTES) / 1e12,
        "scores_gb": samples * KEY_BYTES / 1e9,
        "listing_requests": slices / 1000,
        "requests_millions": slices * known["requests_per_slice"] / 1e6,
        "leaf_tasks": leaves,
        "moments_through_the_object_store_tb": leaves * 8 * known["dim"] ** 2 / 1e12,
        "driver_gib": slices * known["driver_kib_per_slice"] / 2**20,
        "slice_ids_mb": slices * SLICE_ID_BYTES / 1e6,
        "worker_mib": known["worker_mib"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, nargs="+", default=[1e8, 1e9])
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--rate", type=float, default=60, help="samples a second of one GPU: an assumption")
    parser.add_argument("--cores", type=int, default=16, help="of a node of 8 GPUs: an assumption")
    parser.add_argument("--slice-rows", type=int, default=256)
    options = parser.parse_args()
    known = constants()
    tables = [
        at(samples, known, options.gpus, options.rate, options.cores, options.slice_rows) for samples in options.samples
    ]
    for name, value in known.items():
        print(f"{name:<38} {value:>14,.4g}   measured")
    print()
    for name in tables[0]:
        print(f"{name:<38}" + "".join(f"{table[name]:>16,.4g}" for table in tables))
    print_record(
        "extrapolate",
        (),
        assumed={"gpus": options.gpus, "rate": options.rate, "cores": options.cores},
        slice_rows=options.slice_rows,
        measured=known,
        tables=tables,
    )


if __name__ == "__main__":
    main()
