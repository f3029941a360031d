"""Selections that compare samples with each other beside ours, on the same features, as N grows: seconds, slopes, and a
plot.

python benchmarks/pairwise.py [--dim 1024] [--rows 1024 2048 4096 8192 16384 32768] [--iterations 10] [--plot
benchmarks/pairwise.png]

Everything in memory, on one BLAS thread, in float32 for the others and in float64 for ours. `clusters`: spherical
k-means with one cluster for 66 samples (COINCIDE takes 10,000 for the 665K of LLaVA-1.5), `--iterations` rounds of
Lloyd, then the kernel density within each cluster and the similarity of each centroid to all others. `pairwise`: the
mean cosine of each sample to every other. `ours`: moments, eigendecomposition, scores. Slopes are those of the last
three points in the log-log plot. The last line of stdout is one JSON record."""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from record import print_record
from scaling import decaying
from threadpoolctl import threadpool_limits

import scalselect_ray

ROWS_A_CLUSTER = 66
BLOCK = 2048


def ours(x_ND: np.ndarray, iterations: int) -> np.ndarray:
    return scalselect_ray.leverage_scores(x_ND)


def clusters(x_ND: np.ndarray, iterations: int) -> np.ndarray:
    """Spherical k-means, then for each sample the density of its cluster and how near its centroid is to the others.
    (N,)"""
    y_ND = unit(x_ND - x_ND.mean(axis=0))
    count = max(2, len(y_ND) // ROWS_A_CLUSTER)
    centroids_CD = y_ND[np.random.default_rng(0).choice(len(y_ND), count, replace=False)]
    for _ in range(iterations):
        nearest_N = np.concatenate([(block @ centroids_CD.T).argmax(axis=1) for block in in_blocks(y_ND)])
        order_N = np.argsort(nearest_N, kind="stable")
        found_C, first_C = np.unique(nearest_N[order_N], return_index=True)
        centroids_CD[found_C] = unit(np.add.reduceat(y_ND[order_N], first_C, axis=0))
    density_C, scores_N = np.zeros(count), np.empty(len(y_ND))
    for cluster, members in zip(found_C, np.split(order_N, first_C[1:]), strict=True):
        density_C[cluster] = np.exp(2 * (y_ND[members] @ y_ND[members].T) - 2).mean()
    transfer_C = (centroids_CD @ centroids_CD.T).mean(axis=1)
    scores_N[:] = (transfer_C / np.maximum(density_C, 1e-12))[nearest_N]
    return scores_N


def pairwise(x_ND: np.ndarray, iterations: int) -> np.ndarray:
    y_ND = unit(x_ND - x_ND.mean(axis=0))
    return np.concatenate(
        [np.mean([(block @ other.T).mean(axis=1) for other in in_blocks(y_ND)], axis=0) for block in in_blocks(y_ND)]
    )


METHODS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"ours": ours, "clusters": clusters, "pairwise": pairwise}
LABELS = {"ours": "ScalSelect (ours)", "clusters": "k-means, 66 samples a cluster", "pairwise": "all pairs"}


def unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def in_blocks(x_ND: np.ndarray) -> list[np.ndarray]:
    return [x_ND[first : first + BLOCK] for first in range(0, len(x_ND), BLOCK)]


def slope(rows: list[int], seconds: list[float]) -> float:
    return round(float(np.polyfit(np.log(rows[-3:]), np.log(seconds[-3:]), 1)[0]), 2)


def plot(rows: list[int], seconds: dict[str, list[float]], slopes: dict[str, float], dim: int, file: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), dpi=110, facecolor="white")
    for (name, values), marker in zip(seconds.items(), "osD", strict=True):
        axes.loglog(rows, values, marker=marker, markersize=4, label=f"{LABELS[name]}: slope {slopes[name]:.2f}")
    axes.set_xlabel("samples N")
    axes.set_ylabel("seconds, one core")
    axes.set_title(f"Selection from features of {dim} numbers", fontsize=10)
    axes.grid(which="major", alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--plot", help="a PNG file")
    options = parser.parse_args()
    whole_ND = decaying(0, max(options.rows), options.dim)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    with threadpool_limits(1):
        for rows in options.rows:
            for name, method in METHODS.items():
                started = time.process_time()  # of CPU: others on the machine count less
                scores_N = method(whole_ND[:rows], options.iterations)
                seconds[name].append(round(time.process_time() - started, 4))
                assert scores_N.shape == (rows,), name
                assert np.isfinite(scores_N).all(), name
            print(rows, {name: values[-1] for name, values in seconds.items()}, flush=True)
    slopes = {name: slope(options.rows, values) for name, values in seconds.items()}
    if options.plot:
        plot(options.rows, seconds, slopes, options.dim, options.plot)
    print_record(
        "pairwise",
        ("numpy", "scipy"),
        load=os.getloadavg(),
        dim=options.dim,
        iterations=options.iterations,
        rows=options.rows,
        seconds=seconds,
        slopes=slopes,
    )


if __name__ == "__main__":
    main()
