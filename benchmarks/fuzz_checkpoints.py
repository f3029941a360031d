"""Checkpoints with one value changed in one of their JSON files: each must be used or refused by a message.

python benchmarks/fuzz_checkpoints.py [--cases 10000] [--seed 0] [--limit 60] [--family llava ...] [--keep FOLDER]

A value is replaced by one of another kind or size, or left out. A case opens the checkpoint, and represents one sample
where that goes well. It is a finding when anything but a ModelError is raised, when the process ends, or when it takes
longer than --limit seconds; the changed file is then kept below --keep, and the exit code is 1. The last line of stdout
is one JSON record."""

import argparse
import copy
import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from record import print_record

MEMORY = 8 << 30  # bytes of address space that a case may take beside what is loaded before it
VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 10**9, -(10**9), 10**30, 0.0, 0.5, -1.5, 1e300, float("nan"), float("inf"),
    "", "x", "flash_attention_2", "<image>", [], [0], ["x"], {}, {"x": 1},
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a JSON document, but its whole; of a long list or object the first ones."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())[:200]
    elif isinstance(value, list):
        items = list(enumerate(value))[:8]
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def mutated(document: Any, dice: random.Random) -> tuple[Any, str]:
    """The document with one value changed, and what was done."""
    made = copy.deepcopy(document)
    path = dice.choice(list(places(made)))
    holder = made
    for key in path[:-1]:
        holder = holder[key]
    name = ".".join(map(str, path))
    if dice.random() < 0.1:
        del holder[path[-1]]
        return made, f"{name} left out"
    value = dice.choice(VALUES)
    if isinstance(holder[path[-1]], int | float) and dice.random() < 0.3:
        value = holder[path[-1]] * dice.choice([2, 10, 1000, -1])
    holder[path[-1]] = value
    return made, f"{name} = {value!r}"


def outcome(folder: Path) -> str:
    """What becomes of a checkpoint. Raises what should not be raised."""
    from PIL import Image

    from scalselect_ray.api import AddFeatures
    from scalselect_ray.config import ExtractorConfig
    from scalselect_ray.errors import ModelError

    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    try:
        worker = AddFeatures(ExtractorConfig(model=str(folder), dtype="float32"))
        (answer,) = worker.outcomes([{"image": Image.new("RGB", (70, 50)), "conversations": turns}])
    except ModelError:
        return "refused"
    return f"rejected: {answer.reason}" if isinstance(answer, Exception) else "represented"


def serve(cases: Connection) -> None:
    """Answers folder after folder, in a process that may be killed."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    while folder := cases.recv():
        try:
            cases.send(outcome(folder))
        except BaseException:
            cases.send(f"FINDING\n{traceback.format_exc()}")


class Server:
    """A process that tries cases, and another one after each that it did not live through."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._start()

    def _start(self) -> None:
        self._cases, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, folder: Path) -> str:
        self._cases.send(folder)
        found = ""
        try:
            if self._cases.poll(self._limit):
                return str(self._cases.recv())
            found = f"FINDING\nnot done after {self._limit:g} s"
        except EOFError:
            found = "FINDING\nthe process ended"
        self._process.kill()
        self._process.join()
        self._start()
        return found

    def close(self) -> None:
        """Ends the process."""
        self._cases.send(None)
        self._process.join()


def main() -> int:
    import torch

    import scalselect_ray.vlm.representer  # loaded once, before processes are forked from this one
    from scalselect_ray.testing.checkpoints import MAKERS

    assert scalselect_ray.vlm.representer
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60)
    parser.add_argument("--family", nargs="+", choices=sorted(MAKERS), default=sorted(MAKERS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    dice, outcomes, findings, slowest = random.Random(options.seed), Counter[str](), 0, (0.0, "")
    with tempfile.TemporaryDirectory() as made:
        makers = multiprocessing.get_context("fork").Pool(1)  # this process starts no threads that a fork would lose
        for family in options.family:
            makers.apply(MAKERS[family], (Path(made, family),))
        makers.close()
        server = Server(options.limit)
        for number in range(options.cases):
            folder = Path(made, dice.choice(options.family))
            path = dice.choice(sorted(path for path in folder.glob("*.json") if path.name != "generation_config.json"))
            original = path.read_text()
            changed, what = mutated(json.loads(original), dice)
            path.write_text(json.dumps(changed))
            begun = time.monotonic()
            kind, _, trace = server(folder).partition("\n")
            slowest = max(slowest, (round(time.monotonic() - begun, 2), f"{folder.name} {path.name}: {what}"))
            if kind == "FINDING":
                findings += 1
                options.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, options.keep / f"{number:05d}-{folder.name}-{path.name}")
                print(f"case {number}: {folder.name} {path.name}: {what}\n{trace}", file=sys.stderr, flush=True)
            outcomes[kind] += 1
            path.write_text(original)
        server.close()
    print_record(
        "fuzz_checkpoints",
        ("transformers", "tokenizers"),
        seed=options.seed,
        cases=options.cases,
        findings=findings,
        slowest=slowest,
        outcomes=dict(outcomes),
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
