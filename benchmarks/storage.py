"""One corpus from disk and from an S3 server, and what its growth costs: seconds side by side, requests for a thousand
samples.

python benchmarks/storage.py [../shared/data/nlvr/parquet]

All files but the last are selected from, then the last one is added and the job runs again; from disk and from the
server, on one Ray. The server is moto's, over loopback, and shares this machine's CPUs: it costs what a real one would
not. The model is the demo's small one, so that reading weighs as much as it can. The last line of stdout is one JSON
record."""

import argparse
import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from record import print_record

from scalselect_ray.cluster.session import session
from scalselect_ray.commands.demo import make_model
from scalselect_ray.config_files import parse_config
from scalselect_ray.console import Console
from scalselect_ray.io import storage
from scalselect_ray.job import run
from scalselect_ray.testing import object_store


def select(paths: list[str], model: str, output: str, store: object_store.ObjectStore) -> dict[str, Any]:
    """One run: its stages' seconds, and the requests that it sent."""
    config = {
        "corpus": {"sources": [{"name": "corpus", "paths": paths}]},
        "extractor": {"model": model, "dtype": "float32"},
        "selection": {"budget": 0.16},
        "rejects": {"max_fraction": 0.5},
        "output": output,
    }
    store.clear()
    record = run(parse_config(json.dumps(config)), Console(io.StringIO()))
    requests = Counter(f"{method} {kind(path)}" for method, path in store.paths)
    per_thousand = {name: round(1000 * count / record.samples, 1) for name, count in sorted(requests.items())}
    return {
        "samples": record.samples,
        "extracted_slices": record.slices.extracted,
        "slices": record.slices.total,
        "seconds": record.seconds,
        "requests": sum(requests.values()),
        "requests_per_thousand_samples": per_thousand,
    }


def kind(path: str) -> str:
    """What a request is for, by its path."""
    if "list-type" in path:
        return "listing"
    return next((name for name in ("corpus", "features", "moments", "runs") if f"/{name}/" in path), "other")


def total(result: dict[str, Any]) -> float:
    return float(result["seconds"]["total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "corpus", nargs="?", default="../shared/data/nlvr/parquet", type=Path, help="folder of Parquet files"
    )
    options = parser.parse_args()
    files = sorted(options.corpus.resolve().glob("*.parquet"))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, object_store.serve() as store, session(Console()):
        make_model(Path(folder, "model"))
        for file in files:
            storage.write(f"s3://bucket/corpus/{file.name}", file.read_bytes())
        select([str(files[0])], f"{folder}/model", f"{folder}/warm", store)  # workers are started, libraries are read
        for name, root, output in (
            ("disk", str(files[0].parent), f"{folder}/out"),
            ("s3", "s3://bucket/corpus", "s3://bucket/out"),
        ):
            paths = [f"{root}/{file.name}" for file in files]
            results[name] = {
                "full": select(paths, f"{folder}/model", f"{output}-full", store),
                "before": select(paths[:-1], f"{folder}/model", output, store),
                "growth": select(paths, f"{folder}/model", output, store),
            }
            for step, result in results[name].items():
                print(f"{name:<5}{step:<8}{json.dumps(result)}", flush=True)
    print(f"S3 / disk, full run: {total(results['s3']['full']) / total(results['disk']['full']):.2f}")
    for name, steps in results.items():
        share = total(steps["growth"]) / total(steps["full"])
        new = 1 - steps["before"]["samples"] / steps["full"]["samples"]
        print(f"growth / full, {name}: {share:.2f} of the time for {new:.2f} of the samples")
    print_record("storage", ("ray", "torch", "pyarrow", "s3fs", "moto"), results=results)


if __name__ == "__main__":
    main()
