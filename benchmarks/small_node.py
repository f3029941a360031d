"""Photos of many megapixels on a node with little memory: does the job end well there, and who needs the memory?

python benchmarks/small_node.py [--photos 24] [--width 4000] [--gib 4]

Photos and a tiny Qwen2.5-VL that takes them at 12.8 million pixels are made on the spot (all its layers look through
windows: the attention of the others over 60,000 patches would take minutes a photo here, and no more memory). The whole
`scalselect run` goes over them twice, a process of its own each time: as it is, and as if in a container with so much
memory, which takes root and a memory cgroup (where none can be made the record says so, and there is no limit). Sampled
meanwhile: the largest private memory of each process, and of all together with what they share. Both runs must end with
exit code 0 and with the same features. The last line of stdout is one JSON record; the exit code is 1 where that is not
so."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from memory import memory_of
from PIL import Image
from record import print_record

from scalselect_ray.testing import checkpoints

MAX_PIXELS = 16384 * 28 * 28  # what the published Qwen2-VL and Qwen2.5-VL take
CGROUPS = Path("/sys/fs/cgroup")
SECONDS = 0.2  # between two looks
ROLES = {
    "prepare_unit": "prepare",
    "ExtractSlices": "extract",
    "scalselect_ray run": "driver",
    "ray::IDLE": "idle",
    "default_worker.py": "idle",
    "ray/": "ray's own",
    "ray::": "ray's own",
}


def make_model(folder: Path) -> None:
    """A tiny Qwen2.5-VL, with the published bounds on pictures and tokens."""
    checkpoints.MAKERS["qwen2_5_vl"](folder)
    for path in folder.glob("*processor*.json"):
        told = json.loads(path.read_text())
        for part in (told, told.get("image_processor", {})):
            if "size" in part:
                part["size"]["longest_edge"] = MAX_PIXELS
        path.write_text(json.dumps(told))
    told = json.loads((folder / "config.json").read_text())
    told["text_config"]["max_position_embeddings"] = 131072
    told["vision_config"] |= {"fullatt_block_indexes": [], "window_size": 112}
    (folder / "config.json").write_text(json.dumps(told))


def make_photos(folder: Path, photos: int, width: int) -> None:
    """JPEGs of 4 by 3, no two alike, and a list of rows."""
    folder.mkdir()
    y, x = np.mgrid[: width * 3 // 4, :width]
    rows = []
    for number in range(photos):
        pixels = np.stack([x + 7 * number, 2 * y, x + y], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=85)
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A photo."}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))


@contextlib.contextmanager
def limited(gib: float) -> Iterator[Path | None]:
    """A memory cgroup of that size; None where none can be made."""
    old = (CGROUPS / "memory").is_dir()
    group = CGROUPS / ("memory" if old else "") / f"small_node_{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(int(gib * (1 << 30))))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def command_in(group: Path | None, arguments: list[str]) -> list[str]:
    """The command as if in a container of that cgroup: what looks for its own limit finds it."""
    if group is None:
        return arguments
    seen = CGROUPS / "memory" if group.parent.name == "memory" else CGROUPS
    enter = f'echo $$ > {group}/cgroup.procs && mount --bind {group} {seen} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", enter, "sh", *arguments]


def descendants(pid: int) -> list[int]:
    """The process and all that it has started, and these."""
    found = [pid]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def role_of(process: Path) -> str:
    """What a process is, by its title."""
    title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((role for part, role in ROLES.items() if part in title), "idle")


class Watch(threading.Thread):
    """Looks at a process and what it has started until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid, self.stop = pid, threading.Event()
        self.peaks: dict[int, int] = {}  # private bytes by process
        self.roles: dict[int, str] = {}
        self.together = self.shared = 0

    def run(self) -> None:
        while not self.stop.wait(SECONDS):
            private, shared = 0, 0
            for pid in descendants(self.pid):
                process = Path(f"/proc/{pid}")
                with contextlib.suppress(OSError):
                    held, role = memory_of(process, "RssAnon"), role_of(process)
                    self.peaks[pid] = max(self.peaks.get(pid, 0), held)
                    if self.roles.get(pid, "idle") == "idle":  # a worker that has ended its work may get another
                        self.roles[pid] = role
                    private, shared = private + held, max(shared, memory_of(process, "RssShmem"))
            self.together, self.shared = max(self.together, private + shared), max(self.shared, shared)

    def record(self) -> dict[str, Any]:
        """MiB, and how many processes there were of each kind."""
        largest: dict[str, int] = {}
        for pid, role in self.roles.items():
            largest[role] = max(largest.get(role, 0), self.peaks[pid] >> 20)
        return {
            "together_mib": self.together >> 20,
            "shared_mib": self.shared >> 20,
            "largest_mib": largest,
            "processes": dict(Counter(self.roles.values())),
        }


def run(config: Path, output: Path, group: Path | None) -> dict[str, Any]:
    """One run in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    verb = [sys.executable, "-m", "scalselect_ray", "run", str(config), f"output={output}"]
    started = time.monotonic()
    with subprocess.Popen(command_in(group, verb), env=environment, stderr=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid)
        watch.start()
        said = []
        try:
            for line in process.stderr or ():
                print(line, end="", file=sys.stderr)
                said.append(line.rstrip())
            process.wait()
        finally:
            watch.stop.set()
        seconds = time.monotonic() - started
    return {
        "exit": process.returncode,
        "seconds": round(seconds, 1),
        "warnings": [line for line in said if line.startswith("warning")],
        **watch.record(),
    }


def features_of(output: Path) -> pa.Table | None:
    """The features of all samples, in order, however they were cut."""
    parts = [pq.read_table(path) for path in output.glob("features/*/*.parquet")]
    return pa.concat_tables(parts).replace_schema_metadata().sort_by("row") if parts else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--width", type=int, default=4000, help="pixels")
    parser.add_argument("--gib", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, limited(options.gib) as group:
        folder = Path(name)
        make_model(folder / "model")
        make_photos(folder / "photos", options.photos, options.width)
        config = {
            "corpus": {"sources": [{"name": "photos", "paths": [str(folder / "photos" / "rows.json")]}]},
            "extractor": {"model": str(folder / "model"), "dtype": "float32"},
            "selection": {"budget": 0.5},
            "output": str(folder / "output"),
        }
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        runs = {
            "as_it_is": run(folder / "config.yaml", folder / "free", None),
            "small": run(folder / "config.yaml", folder / "small", group),
        }
        free, small = features_of(folder / "free"), features_of(folder / "small")
    same = free is not None and small is not None and free.num_rows == options.photos and small.equals(free)
    print_record(
        "small_node",
        ("ray", "torch", "transformers", "pillow"),
        photos=options.photos,
        width=options.width,
        gib=options.gib if group else None,
        same_features=same,
        runs=runs,
    )
    return 0 if same and not any(each["exit"] for each in runs.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
