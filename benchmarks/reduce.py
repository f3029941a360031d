"""Reduce and score against the BLAS ceiling of this machine, and against the libraries one would otherwise take, on the
same rows.

python benchmarks/reduce.py [--dims 4096 3584] [--rows 16384] [--peer-dim 1024] [--peer-rows 4096 16384 65536 262144]
                            [--memory-gib 4] [--seconds 100] [--repeats 2]

Everything on one BLAS thread, as a Ray task of one CPU has it. First the ceiling: the faster of a float64 gemm and a
float64 syrk of the same shapes; then moments of rows in memory, a leaf task on feature files, scores of rows in memory,
a score task on feature files, each with its share of the ceiling (seconds of CPU, so that others on the machine count
less; the shares of wall clock stand beside them). Then how far float32 products would be off, on spectra that decay by
1e-2 to 1e-6. Then the peers: each alone in a process that may hold `--memory-gib` of data, for the same answer (the
dimension k at energy 0.9, and all scores); those that must be told k are given ours. The last line of stdout is one
JSON record."""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.linalg
from memory import SELF, memory_of, peak_of
from record import print_record
from scaling import SLICE_ROWS, decaying, make_slices
from scipy.linalg import blas
from threadpoolctl import threadpool_limits

from scalselect_ray.stages import reduce, score
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output
from scalselect_ray.subspace import Subspace, accumulate, dominant_subspace, fit_transform, of_rows
from scalselect_ray.subspace.leverage import leverage

ENERGY = 0.9
DECAYS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def fastest(repeats: int, call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of CPU and of the clock of the fastest of `repeats` calls."""
    found = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return {"cpu_s": min(cpu for cpu, _ in found), "wall_s": min(wall for _, wall in found)}


def subspace_of(x_ND: np.ndarray) -> Subspace:
    moments = accumulate(in_blocks(x_ND), x_ND.shape[1])
    return dominant_subspace(moments, fit_transform(moments, standardize=False, l2_normalize=False), None, ENERGY)


def in_blocks(x_ND: np.ndarray, rows: int = 2048) -> Iterator[np.ndarray]:
    return (x_ND[first : first + rows] for first in range(0, len(x_ND), rows))


def shares(dim: int, rows: int, repeats: int, folder: str) -> dict[str, Any]:
    """GFLOP/s of each step, and its share of the ceiling."""
    store = FeatureStore(Output(folder), f"made-{dim}")
    names = make_slices(store, 0, -(-rows // SLICE_ROWS), dim)
    count = len(names) * SLICE_ROWS
    x_ND = np.concatenate([decaying(number, SLICE_ROWS, dim) for number in range(len(names))])
    transform = fit_transform(of_rows(x_ND[:SLICE_ROWS]), standardize=False, l2_normalize=False)
    k = dim // 4  # about what the energy gives on these features
    basis_DK = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, k)))[0]
    subspace = Subspace(transform, basis_DK, np.ones(k), np.ones(dim), count)
    y_ND, sums_DD = x_ND.astype(np.float64), np.zeros((dim, dim), order="F")
    square, projection = count * dim * dim, 2 * count * dim * k
    timed = {
        "gemm": (projection, lambda: y_ND @ basis_DK),
        "syrk": (square, lambda: blas.dsyrk(1.0, y_ND.T, beta=1.0, c=sums_DD, lower=1, overwrite_c=1)),
        "moments in memory": (square, lambda: accumulate(in_blocks(x_ND), dim)),
        "leaf task on files": (square, lambda: reduce._leaf._function(store, names, None)),
        "scores in memory": (projection, lambda: leverage(x_ND, subspace)),
        "score task on files": (
            projection,
            lambda: score._score_group._function(store, names, subspace, store.output.run("r").part("scores", 0)),
        ),
    }
    speeds = {}
    for name, (flops, call) in timed.items():
        seconds = fastest(repeats, call)
        speeds[name] = {kind[:-2]: flops / value / 1e9 for kind, value in seconds.items()}
    ceiling = {kind: max(speeds["gemm"][kind], speeds["syrk"][kind]) for kind in ("cpu", "wall")}
    return {
        "dim": dim,
        "rows": count,
        "k": k,
        "steps": {
            name: {"gflops": round(speed["cpu"], 1)}
            | {f"share_{kind}": round(speed[kind] / ceiling[kind], 3) for kind in ceiling}
            for name, speed in speeds.items()
        },
    }


def off_by(decay: float, dim: int, rows: int) -> dict[str, Any]:
    """How far float32 is off: products of rows centred in float64, then rounded, their sums in float64; and scores of
    such rows."""
    x_ND = decaying(1, rows, dim, decay)
    exact = of_rows(x_ND)
    truth = subspace_of(x_ND)
    rounded_DD = np.zeros((dim, dim))
    for block in in_blocks(x_ND):
        y_ND = (block - exact.mean_D).astype(np.float32)
        rounded_DD += y_ND.T @ y_ND
    spectrum = np.square(truth.spectrum_D)
    values_D, vectors_DD = (found[..., ::-1] for found in scipy.linalg.eigh(rounded_DD))
    curves = [np.cumsum(values) / values.sum() for values in (spectrum, values_D)]
    k = int(np.searchsorted(curves[1], ENERGY)) + 1
    scores_N = leverage(x_ND, truth)
    centred_ND = (x_ND - exact.mean_D).astype(np.float32)
    by_moments = np.square(centred_ND.astype(np.float64) @ vectors_DD[:, :k] / np.sqrt(values_D[:k])).sum(axis=1)
    by_rows = np.square(centred_ND @ (truth.basis_DK / truth.singular_values_K).astype(np.float32)).sum(
        axis=1, dtype=np.float64
    )
    return {
        "decay": decay,
        "k": truth.k,
        "same_k": truth.k == k,
        "curve": float(np.abs(curves[0] - curves[1]).max()),
        "scores_by_moments": float(np.abs(by_moments / scores_N - 1).max()),
        "scores_by_rows": float(np.abs(by_rows / scores_N - 1).max()),
    }


def ours(x_ND: np.ndarray, told_k: int) -> tuple[int, np.ndarray]:
    subspace = subspace_of(x_ND)
    return subspace.k, np.concatenate([leverage(block, subspace) for block in in_blocks(x_ND)])


def dense(x_ND: np.ndarray, told_k: int) -> tuple[int, np.ndarray]:
    y_ND = x_ND.astype(np.float64)
    y_ND -= y_ND.mean(axis=0)
    left_ND, values_D, _ = np.linalg.svd(y_ND, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(values_D**2) / np.sum(values_D**2), ENERGY)) + 1
    return k, np.square(left_ND[:, :k]).sum(axis=1)


def incremental_pca(x_ND: np.ndarray, told_k: int) -> tuple[int, np.ndarray]:
    from sklearn.decomposition import IncrementalPCA  # not above: memory and time of one peer are no other's

    model = IncrementalPCA(told_k)
    for block in in_blocks(x_ND):
        model.partial_fit(block.astype(np.float64))
    return told_k, np.concatenate(
        [
            np.square(model.transform(block.astype(np.float64)) / model.singular_values_).sum(axis=1)
            for block in in_blocks(x_ND)
        ]
    )


def dask_svd(x_ND: np.ndarray, told_k: int) -> tuple[int, np.ndarray]:
    import dask
    import dask.array as da

    with dask.config.set(scheduler="single-threaded"):
        y = da.from_array(x_ND, chunks=(max(4096, 2 * x_ND.shape[1]), x_ND.shape[1])).astype(np.float64)
        y = y - y.mean(axis=0).compute()
        values_D, right_DD = dask.compute(*da.linalg.svd(y)[1:])
        k = int(np.searchsorted(np.cumsum(values_D**2) / np.sum(values_D**2), ENERGY)) + 1
        return k, da.square(y @ (right_DD[:k].T / values_D[:k])).sum(axis=1).compute()


def torch_lowrank(x_ND: np.ndarray, told_k: int) -> tuple[int, np.ndarray]:
    import torch

    torch.manual_seed(0)
    y_ND = torch.from_numpy(x_ND.astype(np.float64))
    y_ND -= y_ND.mean(dim=0)
    return told_k, torch.svd_lowrank(y_ND, q=told_k)[0].square().sum(dim=1).numpy()


PEERS = {
    "ours": (ours, "scipy.linalg"),
    "numpy.linalg.svd": (dense, "numpy"),
    "sklearn IncrementalPCA (k told)": (incremental_pca, "sklearn.decomposition"),
    "dask.array.linalg.svd": (dask_svd, "dask.array"),
    "torch.svd_lowrank (k told)": (torch_lowrank, "torch"),
}


def peer(name: str, file: str, told_k: int, memory_gib: float) -> None:
    """In a process of its own: runs one method and prints what it found."""
    limit = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    x_ND = np.load(file, mmap_mode="r")
    method, module = PEERS[name]
    importlib.import_module(module)
    started, cpu = time.perf_counter(), time.process_time()
    try:
        with peak_of(lambda: memory_of(SELF, "RssAnon"), seconds=0.02) as peak:  # without the mapped rows
            k, scores_N = method(x_ND, told_k)
    except (MemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        print(json.dumps({"stopped": "does not fit"}))
        return
    found: dict[str, Any] = {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "k": k,
    }
    if name == "ours":
        np.save(f"{file}.scores", scores_N)
    else:
        found["off_by"] = float(np.abs(scores_N - np.load(f"{file}.scores.npy")).max())
    print(json.dumps(found | {"peak_mib": peak["bytes"] >> 20}))


def peers(dim: int, rows: int, memory_gib: float, seconds: float, folder: str) -> dict[str, Any]:
    """Every method on the same rows."""
    file = f"{folder}/rows.npy"
    x_ND = np.lib.format.open_memmap(file, "w+", np.float32, (rows, dim))
    for first in range(0, rows, SLICE_ROWS):
        x_ND[first : first + SLICE_ROWS] = decaying(first, min(SLICE_ROWS, rows - first), dim)
    x_ND.flush()
    results: dict[str, Any] = {}
    for name in PEERS:
        told_k = results["ours"]["k"] if results else 0
        command = [sys.executable, __file__, "--peer", name, file, str(told_k), str(memory_gib)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, env=os.environ | threads, capture_output=True, text=True, timeout=seconds, check=False
            )
            results[name] = (
                json.loads(done.stdout)
                if done.returncode == 0
                else {"stopped": f"does not fit (exit {done.returncode})"}
            )
        except subprocess.TimeoutExpired:
            results[name] = {"stopped": f"over {seconds:g} s"}
        print(f"{rows:>8} {name:<32} {results[name]}", flush=True)
    Path(file).unlink()
    return {"rows": rows, "methods": results}


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        name, file, told_k, memory_gib = sys.argv[2:]
        return peer(name, file, int(told_k), float(memory_gib))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[4096, 3584])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--peer-dim", type=int, default=1024)
    parser.add_argument("--peer-rows", type=int, nargs="+", default=[4096, 16384, 65536, 262144])
    parser.add_argument("--memory-gib", type=float, default=4)
    parser.add_argument("--seconds", type=float, default=100, help="a peer that takes longer is stopped")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        ceilings = []
        for dim in options.dims:
            ceilings.append(shares(dim, options.rows, options.repeats, folder))
            print(f"d = {dim}, k = {ceilings[-1]['k']}, {ceilings[-1]['rows']} rows")
            for name, found in ceilings[-1]["steps"].items():
                print(f"  {name:<20} {found}", flush=True)
        singles = [off_by(decay, min(options.peer_dim, 512), min(options.peer_rows[0], 4096)) for decay in DECAYS]
        for single in singles:
            print(single, flush=True)
        compared = [
            peers(options.peer_dim, rows, options.memory_gib, options.seconds, folder) for rows in options.peer_rows
        ]
    print_record(
        "reduce",
        ("numpy", "scipy", "pyarrow", "scikit-learn", "dask", "torch"),
        load=os.getloadavg(),
        ceilings=ceilings,
        float32=singles,
        peer_dim=options.peer_dim,
        memory_gib=options.memory_gib,
        peers=compared,
    )


if __name__ == "__main__":
    main()
