"""What the input costs: samples a second that the job reads and decodes, beside a bare loop over the same files and
others' loaders.

python benchmarks/input.py [--nlvr ../shared/data/nlvr] [--pictures 512] [--copies 5] [--store-copies 1]
    [--only FORMAT ...] [--readers READER ...]

Parquet, WebDataset tars and JSON beside image files; small PNG (NLVR) and JPEG of 640x480 made for it; from disk and
from an S3 server. Every reader parses the same rows and decodes the same bytes to RGB with PIL, in a process of its own
and on two cores, and hands on no more than a count:

  bare        pyarrow, tarfile or json, and PIL, in two processes: the floor
  bare-1      the same in one process
  functions   `plan_file`, `read_slices`, `load_images` in one process, without Ray
  job         plan and read on Ray as a run does it, with nothing in the place of the model's processor
  job-1024    the same with slices of 1,024 rows in the place of 256: a task costs what it costs, whatever is in it
  ray.data    `read_parquet`, `read_webdataset`, `read_images`
  webdataset  with two workers of a `DataLoader`
  datasets    streaming, the same

A rate counts from when all processes are up; what it took until then is `startup_s`. Other work on the machine hardly
shows in samples by second of CPU time of all a reader's processes. The S3 server is moto's, over loopback, and takes
its share of the same cores. The last line of stdout is one JSON record."""

import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

CORES = 2
THREADS = 8  # that fetch images one by one from a store; the job has as many a task
COUNTED = 64  # samples that a process counts before it tells
FORMATS = ("parquet", "tar", "json")


@dataclass(frozen=True)
class Corpus:
    """Files of one format, and the images that JSON rows name by their path below `root`."""

    name: str
    format: str
    paths: list[str]
    root: str
    samples: int


def rgb(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as picture:
        picture.convert("RGB")


def decode_row(row: dict[str, Any]) -> None:
    for image in row["images"] if row.get("images") is not None else [row["image"]]:
        rgb(image["bytes"])


def names(row: dict[str, Any]) -> list[str]:
    return list(row["images"]) if "images" in row else [row["image"]]


def content(path: str) -> bytes:
    """As little as can be between the caller and the file or object."""
    if "://" not in path:
        return Path(path).read_bytes()
    import s3fs

    return bytes(s3fs.S3FileSystem().cat_file(path))


def bare_loop(format: str, path: str, root: str) -> Iterator[None]:
    """One file, a sample at a time."""
    if format == "parquet":
        file = pq.ParquetFile(path if "://" not in path else io.BytesIO(content(path)))
        columns = [
            name for name in file.schema_arrow.names if name in ("id", "images", "image", "messages", "conversations")
        ]
        for batch in file.iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                decode_row(row)
                yield
    elif format == "tar":
        with tarfile.open(path) if "://" not in path else tarfile.open(fileobj=io.BytesIO(content(path))) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".json"):
                    json.loads(data)
                    yield
                else:
                    rgb(data)
    else:
        rows = json.loads(content(path))
        with ThreadPoolExecutor(THREADS) if "://" in path else nullcontext() as threads:
            decode = lambda row: [rgb(content(f"{root}/{name}")) for name in names(row)]  # noqa: E731
            for _ in threads.map(decode, rows) if threads else map(decode, rows):
                yield


def _bare_process(corpus: Corpus, number: int, told: Any, go: Any) -> None:
    if "://" in corpus.root:
        content(corpus.paths[0])  # a connection
    told.put(0)
    go.wait()
    for path in corpus.paths[number::CORES]:
        told.put(sum(1 for _ in bare_loop(corpus.format, path, corpus.root)))
    told.put(None)


def bare(corpus: Corpus) -> Iterator[int]:
    spawning = multiprocessing.get_context("spawn")
    told, go = spawning.Queue(), spawning.Event()
    processes = [spawning.Process(target=_bare_process, args=(corpus, number, told, go)) for number in range(CORES)]
    for process in processes:
        process.start()
    for _ in processes:
        told.get()
    yield 0
    go.set()
    left = CORES
    while left:
        count = told.get()
        left -= count is None
        yield count or 0
    for process in processes:
        process.join()


def bare_1(corpus: Corpus) -> Iterator[int]:
    yield 0
    for path in corpus.paths:
        yield sum(1 for _ in bare_loop(corpus.format, path, corpus.root))


def listed(corpus: Corpus, slice_rows: int = 256) -> Any:
    from scalselect_ray.config import CorpusConfig, SourceConfig
    from scalselect_ray.corpus import list_files

    source = SourceConfig(name="bench", paths=corpus.paths, image_root=corpus.root)
    return list_files(CorpusConfig(sources=[source], slice_rows=slice_rows))


def functions(corpus: Corpus) -> Iterator[int]:
    from scalselect_ray.corpus import Sample, load_images, plan_file, read_slices, reading_units

    yield 0
    for file in listed(corpus):
        for unit in reading_units(plan_file(file)):
            for _, samples in read_slices(unit):
                for sample in samples:
                    assert isinstance(sample, Sample)
                    load_images(sample.images)
                yield len(samples)


def read_unit(batch: Any, **settings: Any) -> Iterator[Any]:
    """What the job's task does, with nothing in the place of the model's processor."""
    from scalselect_ray.stages import extract
    from scalselect_ray.vlm import Prepared

    none = np.zeros(1, dtype=np.int64)
    extract._preparer = lambda extractor, preparing: lambda sample, images: Prepared(none, none, none, none, {})
    yield from extract.prepare_unit(batch, **settings)


def job(corpus: Corpus, slice_rows: int = 256) -> Iterator[int]:
    import ray

    from scalselect_ray.cluster.session import session
    from scalselect_ray.cluster.tasks import in_order
    from scalselect_ray.config import ExtractorConfig, WorkersConfig
    from scalselect_ray.console import Console
    from scalselect_ray.corpus import make_plan, plan_open_file
    from scalselect_ray.stages import extract

    def on_cluster(files: Any) -> Any:
        return list(in_order(ray.remote(plan_open_file), files, lambda count: None))

    def read(files: Any) -> Iterator[int]:
        slices = make_plan(files, set(), on_cluster).todo
        assert not any(slice_.problem for slice_ in slices)
        with mock.patch.object(extract, "prepare_unit", read_unit):
            none = ExtractorConfig(model="none")
            prepared = extract.prepared_slices(slices, none, "", WorkersConfig(), readers=None)
        for batch in prepared.iter_batches(batch_size=None, batch_format="pyarrow"):
            for part in map(json.loads, batch["slice"].to_pylist()):
                yield part["stop_row"] - part["first_row"]

    with local_ray(), session(Console()):
        files = listed(corpus, slice_rows)
        sum(read(files[: 2 * CORES]))  # workers are started, libraries are read
        yield 0
        yield from read(files)


def local_ray() -> Any:
    import ray

    kept = {"idle_worker_killing_time_threshold_ms": 60_000}  # as `session` sets it
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    return ray.init(
        "local",
        num_cpus=CORES,
        include_dashboard=False,
        logging_level="CRITICAL",
        log_to_driver=False,
        _system_config=kept,
    )


def ray_data(corpus: Corpus) -> Iterator[int]:
    import logging

    import pyarrow as pa
    import ray

    def decode(batch: pa.Table) -> pa.Table:
        if "jpg" in batch.column_names or "png" in batch.column_names:
            for data in batch["jpg" if "jpg" in batch.column_names else "png"].to_pylist():
                rgb(data)
        elif corpus.format == "parquet":
            for row in batch.to_pylist():
                decode_row(row)
        return pa.table({"count": [len(batch)]})

    def read(paths: list[str]) -> Iterator[int]:
        place: dict[str, Any] = {}
        if "://" in corpus.root:
            import s3fs

            place["filesystem"] = s3fs.S3FileSystem()
            paths = [path.removeprefix("s3://") for path in paths]
        if corpus.format == "parquet":
            wanted = ("id", "images", "image", "messages", "conversations")
            columns = [
                name
                for name in pq.ParquetFile(io.BytesIO(content(corpus.paths[0]))).schema_arrow.names
                if name in wanted
            ]
            data = ray.data.read_parquet(paths, columns=columns, **place)
        elif corpus.format == "tar":
            data = ray.data.read_webdataset(paths, decoder=None, **place)
        else:
            root = corpus.root.removeprefix("s3://")
            images = [
                f"{root}/{name}"
                for path in paths
                for row in json.loads(content(_with_scheme(path, corpus)))
                for name in names(row)
            ]
            data = ray.data.read_images(images, mode="RGB", **place)
        counts = data.map_batches(decode, batch_size=COUNTED, batch_format="pyarrow")
        for batch in counts.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield sum(batch["count"].to_pylist())

    with local_ray():
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        sum(read(corpus.paths[: 2 * CORES]))
        yield 0
        yield from read(corpus.paths)


def _with_scheme(path: str, corpus: Corpus) -> str:
    return path if "://" not in corpus.root else f"s3://{path}"


def loaded(samples: Any) -> Iterator[int]:
    """Counts of what two workers of a `DataLoader` make."""
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(samples, batch_size=COUNTED, num_workers=CORES, collate_fn=len))
    next(batches)
    yield 0
    yield from batches


def webdataset(corpus: Corpus) -> Iterator[int]:
    import webdataset as wds

    def size(sample: dict[str, Any]) -> int:
        image = sample["jpg"] if "jpg" in sample else sample["png"]
        return int(image.width)

    return loaded(wds.WebDataset(corpus.paths, shardshuffle=False).decode("pilrgb").map(size))


def datasets(corpus: Corpus) -> Iterator[int]:
    from datasets import load_dataset

    def decode(row: dict[str, Any]) -> dict[str, int]:
        if corpus.format == "parquet":
            decode_row(row)
        elif corpus.format == "tar":
            (row["jpg"] if "jpg" in row else row["png"]).convert("RGB")
        else:
            for name in names(row):
                rgb(content(f"{corpus.root}/{name}"))
        return {"count": 1}

    kind = "webdataset" if corpus.format == "tar" else corpus.format
    rows = load_dataset(kind, data_files={"train": corpus.paths}, split="train", streaming=True)
    return loaded(rows.map(decode, remove_columns=list(rows.features or ())))


READERS: dict[str, Callable[[Corpus], Iterator[int]]] = {
    "bare": bare,
    "bare-1": bare_1,
    "functions": functions,
    "job": job,
    "job-1024": partial(job, slice_rows=1024),
    "ray.data": ray_data,
    "webdataset": webdataset,
    "datasets": datasets,
}


def readers_of(corpus: Corpus) -> list[str]:
    everywhere = ["bare", "bare-1", "functions", "job", "job-1024", "ray.data"]
    if "://" in corpus.root:
        return everywhere
    return [*everywhere, *(["webdataset"] if corpus.format == "tar" else []), "datasets"]


def measure(reader: str, corpus: Corpus) -> dict[str, Any]:
    """One reader in this process and those below it."""
    begun = time.perf_counter()
    count = 0
    for told in READERS[reader](corpus):
        if not count and not told:  # up and warm
            started, busy = time.perf_counter(), cpu_seconds()
        count += told
        stopped, busy_stop = time.perf_counter(), cpu_seconds() if count == corpus.samples else 0.0
    if not busy_stop:  # a DataLoader's first batch came before the start
        busy_stop = cpu_seconds()
    seconds, busy = stopped - started, busy_stop - busy
    assert corpus.samples - 2 * COUNTED * CORES <= count <= corpus.samples, f"{reader} read {count} of {corpus.samples}"
    return {
        "samples": count,
        "startup_s": round(started - begun, 1),
        "seconds": round(seconds, 2),
        "samples_per_second": round(count / seconds, 1),
        "samples_per_core_second": round(count / busy, 1),
        "cores_busy": round(busy / seconds, 2),
    }


def cpu_seconds() -> float:
    """Of this process and all that live below it, with what they have waited for."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    total, left = 0, [os.getpid()]
    while left:
        pid = left.pop()
        total += ticks.get(pid, 0)
        left += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


def make_corpora(folder: Path, nlvr: Path | None, pictures: int, copies: int) -> Iterator[Corpus]:
    """Of each kind of picture one corpus a format; files stand there `copies` times by links."""
    from prepare import make_pictures

    made = folder / "jpeg"
    (made / "images").mkdir(parents=True)
    make_pictures(made / "rows.parquet", pictures, 640, 480)
    rows = pq.read_table(made / "rows.parquet").to_pylist()
    with tarfile.open(made / "rows.tar", "w") as tar:
        for row in rows:
            (made / "images" / row["image"]["path"]).write_bytes(row["image"]["bytes"])
            turns = json.dumps({"id": row["id"], "conversations": row["conversations"]}).encode()
            for suffix, data in ((".jpg", row["image"]["bytes"]), (".json", turns)):
                info = tarfile.TarInfo(row["id"] + suffix)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (made / "rows.json").write_text(json.dumps([{**row, "image": row["image"]["path"]} for row in rows]))
    files = {("jpeg", format): ([made / f"rows.{format}"], made / "images") for format in FORMATS}
    if nlvr:
        files["nlvr", "parquet"] = sorted((nlvr / "parquet").glob("*.parquet")), nlvr
        files["nlvr", "tar"] = sorted((nlvr / "webdataset").glob("*.tar")), nlvr
        files["nlvr", "json"] = sorted((nlvr / "sharegpt").glob("*.json")), nlvr / "sharegpt"
    for (name, format), (paths, root) in files.items():
        wanted = copies if format != "json" or name == "jpeg" else 6 * copies  # it has a sixth of the others' samples
        links = []
        for number in range(wanted):
            for path in paths:
                links.append(folder / f"{name}-{number:03d}-{path.name}")
                links[-1].symlink_to(path.resolve())
        yield Corpus(name, format, list(map(str, links)), str(root), wanted * sum(map(rows_of, paths)))


def rows_of(path: Path) -> int:
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    if path.suffix == ".json":
        return len(json.loads(path.read_bytes()))
    with tarfile.open(path) as tar:
        return sum(member.name.endswith(".json") for member in tar)


def uploaded(corpus: Corpus) -> Corpus:
    """The corpus in the bucket."""
    from scalselect_ray.io import storage

    paths = [f"s3://bucket/{Path(path).name}" for path in corpus.paths]
    for path, uri in zip(corpus.paths, paths, strict=True):
        storage.write(uri, Path(path).read_bytes())
    root = f"s3://bucket/{corpus.name}-{corpus.format}"
    if corpus.format == "json":
        for name in sorted(
            {name for path in corpus.paths for row in json.loads(Path(path).read_bytes()) for name in names(row)}
        ):
            storage.write(f"{root}/{name}", Path(corpus.root, name).read_bytes())
    return Corpus(corpus.name, corpus.format, paths, root, corpus.samples)


def measured(corpora: Iterable[tuple[str, Corpus]], wanted: list[str]) -> Iterator[dict[str, Any]]:
    for place, corpus in corpora:
        for reader in filter(wanted.__contains__, readers_of(corpus)):
            command = [sys.executable, "-W", "ignore", __file__, "--one", reader]
            done = subprocess.run(
                command, input=json.dumps(asdict(corpus)), stdout=subprocess.PIPE, text=True, check=True
            )
            result = {"pictures": corpus.name, "format": corpus.format, "from": place, "reader": reader}
            result |= json.loads(done.stdout.splitlines()[-1])
            print("  ".join(f"{value!s:>10}" for value in result.values()), flush=True)
            yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nlvr", type=Path, help="folder with NLVR in three formats")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--copies", type=int, default=5, help="how often each file stands there")
    parser.add_argument("--store-copies", type=int, default=1, help="the same in the bucket")
    parser.add_argument("--only", nargs="*", default=FORMATS, choices=FORMATS)
    parser.add_argument("--readers", nargs="*", default=list(READERS), choices=READERS)
    parser.add_argument("--one", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, Corpus(**json.load(sys.stdin)))))
        return
    from record import print_record

    from scalselect_ray.testing import object_store

    with tempfile.TemporaryDirectory() as folder, object_store.serve():
        os.environ |= {"HF_HOME": f"{folder}/hf", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        corpora = []
        for place, copies in (("disk", options.copies), ("s3", options.store_copies)):
            made = Path(folder, place)
            for corpus in make_corpora(made, options.nlvr, options.pictures, copies) if copies else ():
                if corpus.format in options.only:
                    corpora.append((place, corpus if place == "disk" else uploaded(corpus)))
        results = list(measured(corpora, options.readers))
    print_record("input", ("ray", "pyarrow", "pillow", "s3fs", "webdataset", "datasets"), results=results)


if __name__ == "__main__":
    main()
