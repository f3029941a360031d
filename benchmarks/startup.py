"""From the start of the process to the first committed sample: where the time goes, what is read of the checkpoint,
what memory it takes.

python benchmarks/startup.py [--layers 8] [--width 1024] [--repeat 3] [--models model large]

First the command line alone (`--help`, a config that is checked), then a run over the demo's corpus up to its first
committed slice, with the demo's model and with a larger one in several shards. The larger one is dropped from the page
cache before it is fingerprinted and before it is loaded, so that what the kernel reads from the disk is what is needed
and its read-ahead. The last line of stdout is one JSON record."""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from memory import SELF, memory_of
from record import print_record

MIB = 1 << 20
COMMANDS = {
    "python": ["-c", "pass"],
    "import scalselect_ray": ["-c", "import scalselect_ray"],
    "scalselect --help": ["-m", "scalselect_ray", "--help"],
    "config refused": ["-m", "scalselect_ray", "run", "CONFIG", "selection.budget=-1"],
}


def command_seconds(arguments: list[str], repeat: int) -> dict[str, float]:
    """Medians of wall and CPU seconds."""
    walls, cpus = [], []
    for _ in range(repeat):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - started)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_s": round(median(walls), 3), "cpu_s": round(median(cpus), 3)}


def make_large(demo: Path, folder: Path, layers: int, width: int) -> None:
    """A LLaVA with a vocabulary of 32,000, in shards of 100 MB at most; the processor is the demo's."""
    import torch
    from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig.from_pretrained(demo)
    for part, wide in ((config.text_config, width * 11 // 4), (config.vision_config, width * 4)):
        part.hidden_size, part.intermediate_size, part.num_attention_heads = width, wide, width // 64
    config.text_config.num_hidden_layers, config.text_config.num_key_value_heads = layers, width // 64
    config.text_config.head_dim, config.text_config.vocab_size = 64, 32000
    config.vision_config.num_hidden_layers = 4
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")
    AutoProcessor.from_pretrained(demo).save_pretrained(folder)


def tensor_bytes(model: Path) -> dict[str, int]:
    """Of the checkpoint: its files, its needed tensors."""
    from scalselect_ray.vlm.checkpoint import is_needed

    files = sorted(model.glob("*.safetensors"))
    needed = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        spans = [
            entry["data_offsets"] for name, entry in header.items() if name != "__metadata__" and is_needed(name, 0)
        ]
        needed += sum(stop - start for start, stop in spans)
    return {
        "files": len(files),
        "checkpoint_mib": sum(file.stat().st_size for file in files) // MIB,
        "needed_mib": needed // MIB,
    }


def forget(model: str) -> None:
    """Drops the weights from the page cache."""
    for path in Path(model).glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_mib() -> int:
    """What this process made the kernel read from a disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"]) // MIB


def memory_mib(field: str) -> int:
    """Of this process."""
    return memory_of(SELF, field) // MIB


def born() -> float:
    """When this process started, as `time.time` tells it."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - float(Path("/proc/uptime").read_text().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def first_commit(config_path: str, notes: Path) -> dict[str, Any]:
    """What a run does up to its first committed slice, step by step; seconds since the process started."""
    start = born()
    steps: dict[str, float] = {}

    def step(name: str) -> None:
        steps[name] = round(time.time() - start, 2)

    from scalselect_ray.cli import load_config

    step("command line imported")
    config = load_config(config_path)
    step("config checked")
    from scalselect_ray.corpus import list_files, make_plan, plan_here

    step("corpus imported")
    files = list_files(config.corpus)
    step("corpus listed")
    import scalselect_ray.vlm

    step("torch and transformers imported")
    from scalselect_ray import job
    from scalselect_ray.console import Console

    step("Ray imported")
    forget(config.extractor.model)
    before = read_mib()
    store = job.open_store(config, Console())
    fingerprint_mib = read_mib() - before
    step("model checked and fingerprinted")
    forget(config.extractor.model)
    from scalselect_ray.cluster.preflight import check_shared
    from scalselect_ray.cluster.session import session
    from scalselect_ray.stages import extract

    def note(name: str, **facts: float) -> None:
        path = notes / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps({"time": time.time(), **facts}))

    original = extract.prepare_unit

    def prepare_unit(batch: Any, **settings: Any) -> Any:
        note("a prepare task begins", born=born())
        for answer in original(batch, **settings):
            note("first slice prepared", rss_mib=memory_mib("VmRSS"), anon_mib=memory_mib("RssAnon"))
            yield answer

    class Timed(extract.ExtractSlices):
        def __init__(self, *arguments: Any) -> None:
            facts = {"born": born(), "rss_mib": memory_mib("VmRSS"), "anon_mib": memory_mib("RssAnon")}
            note("the actor has imported", **facts)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            before = read_mib()
            super().__init__(*arguments)
            facts = {"read_mib": read_mib() - before, "rss_mib": memory_mib("VmRSS"), "anon_mib": memory_mib("RssAnon")}
            note("the actor has its model", **facts, peak_mib=memory_mib("VmHWM"))

        def __call__(self, batch: Any) -> Any:
            answer = super().__call__(batch)
            note("the actor has committed", anon_mib=memory_mib("RssAnon"), peak_mib=memory_mib("VmHWM"))
            return answer

    with session(Console()):
        step("Ray up")
        check_shared(config, files, store)
        plan = make_plan(files, store.committed(), plan_here)
        step("planned")
        extract.prepare_unit, extract.ExtractSlices = prepare_unit, Timed  # type: ignore[misc,assignment]
        next(iter(extract.extract_slices(plan.todo, store, config.extractor, config.workers)))
        step("first slice committed")
    seen = {path.stem: json.loads(path.read_text()) for path in notes.glob("*.json")}
    steps |= {name: round(facts["time"] - start, 2) for name, facts in seen.items()}
    for name, process in (
        ("a prepare task begins", "a prepare worker's process starts"),
        ("the actor has imported", "the actor's process starts"),
    ):
        steps[process] = round(seen[name]["born"] - start, 2)
    imported, loaded, committed = (seen[f"the actor has {done}"] for done in ("imported", "its model", "committed"))
    checkpoint = scalselect_ray.vlm.open_checkpoint(config.extractor.model)
    import torch

    return {
        "steps": dict(sorted(steps.items(), key=lambda item: item[1])),
        "read": {"fingerprint_mib": fingerprint_mib, "load_mib": loaded["read_mib"]},
        "actor_memory": {
            "front_mib": scalselect_ray.vlm.front_bytes(checkpoint, getattr(torch, config.extractor.dtype)) // MIB,
            "imported_rss_mib": imported["rss_mib"], "imported_anon_mib": imported["anon_mib"],
            "loaded_anon_mib": loaded["anon_mib"], "load_peak_rss_mib": loaded["peak_mib"],
            "committed_anon_mib": committed["anon_mib"], "peak_rss_mib": committed["peak_mib"],
        },
        "prepare_memory": {key: seen["first slice prepared"][key] for key in ("rss_mib", "anon_mib")},
    }  # fmt: skip


def fingerprint_speed(model: str) -> dict[str, float]:
    """MB/s with the files in the page cache, and of hashes by themselves."""
    from scalselect_ray.vlm import fingerprint, open_checkpoint

    checkpoint = open_checkpoint(model)
    size = tensor_bytes(Path(model))["needed_mib"] * MIB
    fingerprint(checkpoint)
    started = time.process_time()
    fingerprint(checkpoint)
    speeds = {"fingerprint": size / (time.process_time() - started) / 1e6}
    block = os.urandom(1 << 26)
    for name in ("sha256", "blake2b", "sha1"):
        started = time.process_time()
        hashlib.new(name, block).digest()
        speeds[name] = len(block) / (time.process_time() - started) / 1e6
    return {name: round(speed) for name, speed in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--models", nargs="*", default=["model", "large"], choices=["model", "large"], help="the demo's, the larger one"
    )
    parser.add_argument("--one", nargs=2, metavar=("CONFIG", "NOTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.one:
        print(json.dumps(first_commit(options.one[0], Path(options.one[1]))))
        return
    from scalselect_ray.commands.demo import make_demo

    with tempfile.TemporaryDirectory() as folder:
        config = Path(make_demo(f"{folder}/demo"))
        demo = Path(folder, "demo", "model")
        make_large(demo, Path(folder, "large"), options.layers, options.width)
        commands = {
            name: command_seconds([str(config) if word == "CONFIG" else word for word in words], options.repeat)
            for name, words in COMMANDS.items()
        }
        for name, seconds in commands.items():
            print(f"{name:<24}{seconds}", flush=True)
        runs = []
        for model in [path for path in (demo, Path(folder, "large")) if path.name in options.models]:
            text = config.read_text().replace(str(demo), str(model)).replace("float32", "bfloat16")
            other = Path(folder, f"{model.name}.yaml")
            other.write_text(text.replace("/output", f"/output-{model.name}"))
            notes = Path(folder, f"notes-{model.name}")
            notes.mkdir()
            command = [sys.executable, "-W", "ignore", __file__, "--one", str(other), str(notes)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append({"model": model.name, **tensor_bytes(model), **json.loads(done.stdout.splitlines()[-1])})
            for name, seconds in runs[-1]["steps"].items():
                print(f"{seconds:>8.2f} s  {name}")
            print({key: value for key, value in runs[-1].items() if key != "steps"}, flush=True)
        speeds = fingerprint_speed(f"{folder}/large")
        print(f"MB/s: {speeds}")
    print_record(
        "startup",
        ("ray", "torch", "transformers", "safetensors", "omegaconf", "rich"),
        commands=commands,
        runs=runs,
        fingerprint_mb_s=speeds,
    )


if __name__ == "__main__":
    main()
