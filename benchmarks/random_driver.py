"""Hundreds of random steps over one corpus and one output: each finished run must be what a run from scratch would be.

python benchmarks/random_driver.py [--steps 500] [--seed 0] [--in FOLDER]

Steps are runs with the same or other settings, runs that are interrupted or killed (-9) in the midst, files of the
corpus that come, grow, are replaced, go, come back with their old time and are renamed, images that go and come back,
damage to what is stored, `latest.json` that goes back, and the verbs `clean`, `report`, `status` and `export`. After
each finished run its scores, manifest, rejects and record are compared with what an oracle makes of the files that are
there: one process, no Ray, no store, an SVD, and the rules of the selection written down once more. A finding is
printed with the seed and its steps, which come again with the same seed, and makes the exit code 1. The last line of
stdout is one JSON record.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import ray
from random_corpus import GOLDEN, SOURCES, TESTS, Corpus, Row
from random_oracle import Key, Oracle, Settings, chosen_of, leverage_of, text_only_kept
from record import print_record

from scalselect_ray import console
from scalselect_ray.cli import main as scalselect

DISTURBED = TESTS / "faults" / "disturbed.py"
STAGES = ("plan", "extract", "extract", "reduce", "score", "select")
MOST_FILES = 5


class FindingError(AssertionError):
    """What should not be, with all that it takes to see it again."""


class Stored(NamedTuple):
    """A committed slice as it lies there, and what its features were made of."""

    stamp: tuple[int, int]  # inode and time of its file
    missing: frozenset[str]  # images that were away when it was extracted
    damaged: bool = False


@dataclass
class Finished:
    """A finished run: what it chose of which files."""

    extractor: str
    files: dict[str, int]  # time by path
    manifest: list[dict[str, Any]]
    rows: dict[tuple[str, int], Row]  # of the chosen, as the corpus has them


class Driver:
    """One corpus, one output, one sequence of steps. `played` says what each did."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None] = lambda text: None) -> None:
        """`say` hears of each step once it is played."""
        self.seed, self.folder, self.output = seed, folder, folder / "output"
        self.corpus = Corpus(folder / "corpus")
        self.oracle = Oracle(self.corpus)
        self.settings = Settings()
        self.stored: dict[str, Stored] = {}  # by path
        self.runs: dict[str, Finished] = {}
        self.played: list[str] = []
        self.counts: Counter[str] = Counter()
        self._said = ""
        self._say = say
        self._exports = itertools.count()
        self._steps: list[tuple[float, Callable[[random.Random], str]]] = [
            (6, self._run),
            (8, self._run_otherwise),
            (2, self._interrupted),
            (1, self._killed),
            (3, self._grows),
            (2, self._replaced),
            (2, self._touched),
            (1, self._cut),
            (2, self._removed),
            (3, self._comes_back),
            (1, self._renamed),
            (3, self._images_go),
            (1, self._images_come_back),
            (2, self._damaged_features),
            (1, self._damaged_moments),
            (1, self._latest_goes_back),
            (2, self._cleaned),
            (1, self._clean_shows),
            (2, self._cleaned_of_rejects),
            (1, self._reported),
            (1, self._status),
            (2, self._exported),
        ]
        self._config = self._write_config()

    def play(self, steps: int) -> None:
        """Raises FindingError."""
        dice = random.Random(f"{self.seed}")
        for _ in range(3):
            for source in SOURCES[: 1 + (len(self.corpus.files) < 2)]:
                if len(self.corpus.files) < 3:
                    name = self.corpus.new_name(source, dice)
                    self.corpus.put(name, self.corpus.version(name, self.corpus.new_rows(name, dice)))
        weights = [weight for weight, _ in self._steps]
        for number in range(steps):
            dice = random.Random(f"{self.seed} {number}")  # of its own: what came before may have taken other draws
            ((_, step),) = dice.choices(self._steps, weights) if number else [self._steps[0]]
            name = step.__name__.strip("_").replace("_", " ")
            self.counts[name] += 1
            self.played.append(f"{number:4d} {name}")
            try:
                begun = time.monotonic()
                if what := step(dice):
                    self.played[-1] += f": {what}"
                self._say(f"{self.played[-1]} ({time.monotonic() - begun:.1f} s)")
            except Exception as error:
                steps_text = "\n".join(self.played)
                raise FindingError(
                    f"--seed {self.seed} --steps {number + 1}: {type(error).__name__}: {error}\n{steps_text}\n"
                    f"below {self.folder}\nlast said:\n{self._said}"
                ) from error

    # what happens to the corpus

    def _grows(self, dice: random.Random) -> str:
        source = dice.choice(SOURCES)
        name = self.corpus.new_name(source, dice)
        rows = self.corpus.new_rows(name, dice)
        if len(self.corpus.files) >= MOST_FILES:
            return "not: it is large enough"
        self.corpus.put(name, self.corpus.version(name, rows))
        return f"{name}, {len(rows)} rows"

    def _replaced(self, dice: random.Random) -> str:
        """By other rows; where padding is nothing, sometimes of the same size."""
        if (name := self._one(dice, self.corpus.files)) is None:
            return "nothing"
        size, padding = len(self.corpus.files[name].data), {".json": b" ", ".jsonl": b"\n"}.get(Path(name).suffix)
        version = self.corpus.version(name, self.corpus.new_rows(name, dice))
        same_size = padding is not None and dice.random() < 0.5
        while same_size and len(version.data) > size:
            version = self.corpus.version(name, list(version.rows[:-1]))
        if same_size and padding is not None:
            version = version._replace(data=version.data.ljust(size, padding))
        self.corpus.put(name, version)
        return f"{name}, {len(version.rows)} rows" + (", of the same size" if len(version.data) == size else "")

    def _touched(self, dice: random.Random) -> str:
        """Another time; sometimes an older one."""
        if (name := self._one(dice, self.corpus.files)) is None:
            return "nothing"
        version = self.corpus.files[name]
        moved = version.time_ns + dice.choice((-1, 1)) * dice.choice((1, 1000, 10**12))
        self.corpus.put(name, version._replace(time_ns=moved))
        return name

    def _cut(self, dice: random.Random) -> str:
        if (name := self._one(dice, self.corpus.files)) is None:
            return "nothing"
        version = self.corpus.version(name, list(self.corpus.files[name].rows))
        self.corpus.put(name, version._replace(data=version.data[: -dice.randint(1, 40)]))
        return name

    def _removed(self, dice: random.Random) -> str:
        if (name := self._one(dice, self.corpus.files)) is None:
            return "nothing"
        self.corpus.remove(name)
        return name

    def _comes_back(self, dice: random.Random) -> str:
        """An earlier version, with its old time."""
        if not self.corpus.past:
            return "nothing"
        name, version = self.corpus.past[-1 - min(int(dice.expovariate(0.5)), len(self.corpus.past) - 1)]
        if name not in self.corpus.files and len(self.corpus.files) >= MOST_FILES:
            return "not: the corpus is large enough"
        self.corpus.put(name, version)
        return name

    def _renamed(self, dice: random.Random) -> str:
        if (name := self._one(dice, self.corpus.files)) is None:
            return "nothing"
        other = self.corpus.new_name(name.partition("/")[0], dice).rpartition(".")[0] + Path(name).suffix
        self.corpus.rename(name, other)
        return f"{name} to {other}"

    def _images_go(self, dice: random.Random) -> str:
        names = dice.sample(sorted(self.corpus.images), dice.randint(1, 4))
        gone = [name for name in names if name not in self.corpus.missing]
        for name in gone:
            self.corpus.take_away(name)
        return ", ".join(gone) or "nothing"

    def _images_come_back(self, dice: random.Random) -> str:
        names = sorted(self.corpus.missing)[: dice.choice((2, 100))]
        for name in names:
            self.corpus.bring_back(name)
        return ", ".join(names) or "nothing"

    # what happens to the output

    def _damaged_features(self, dice: random.Random) -> str:
        done = []
        for _ in range(dice.choice((1, 3))):
            how = dice.choice(("flipped", "cut", "emptied", "gone", "another"))
            if name := self._one(dice, self.stored):
                other = self._one(dice, self.stored) or name
                self._damage(Path(name), Path(other), how, dice)
                if how == "gone":
                    del self.stored[name]
                else:
                    self.stored[name] = self.stored[name]._replace(stamp=_stamp(Path(name)), damaged=True)
                done.append(f"{Path(name).name} {how}")
        return ", ".join(done) or "nothing"

    def _damaged_moments(self, dice: random.Random) -> str:
        files = {str(path): None for path in self.output.glob("moments/*/*.safetensors")}
        how = dice.choice(("flipped", "cut", "emptied", "gone", "another"))
        if (name := self._one(dice, files)) is None:
            return "nothing"
        self._damage(Path(name), Path(self._one(dice, files) or name), how, dice)
        return f"{Path(name).name} {how}"

    def _damage(self, path: Path, other: Path, how: str, dice: random.Random) -> None:
        data = bytearray(path.read_bytes())
        at = int(dice.random() * len(data))
        if how == "gone":
            path.unlink()
        elif how == "another":
            path.write_bytes(other.read_bytes())
        elif how == "emptied":
            path.write_bytes(b"")
        elif how == "cut":
            path.write_bytes(data[:at])
        elif data:
            data[at] ^= 1 << dice.randrange(8)
            path.write_bytes(data)

    def _latest_goes_back(self, dice: random.Random) -> str:
        """As when an older copy of it is put back, or none."""
        path = self.output / "latest.json"
        if not path.exists():
            return "nothing"
        if dice.random() < 0.3:
            path.unlink()
            return "gone"
        run_id = self._one(dice, self.runs)
        path.write_text(json.dumps({"run_id": run_id}))
        os.utime(path, (1, 1))
        return f"to {run_id}"

    # runs

    def _run(self, dice: random.Random) -> str:
        return self._checked_run(self._verb("run", str(self._config), *self.settings.overrides()))

    def _run_otherwise(self, dice: random.Random) -> str:
        self.settings = Settings.drawn(dice)
        return f"{self._run(dice)}, {self.settings}"

    def _interrupted(self, dice: random.Random) -> str:
        """Ctrl-C: the same way out as the signal's, but for the process, which goes on here."""
        stage, number = dice.choice(STAGES), dice.randint(1, 3)
        advance, seen = console.Stage.advance, itertools.count(1)

        def interrupting(self: console.Stage, count: int, rejects: int = 0) -> None:
            advance(self, count, rejects)
            if self.name == stage and next(seen) == number:
                raise KeyboardInterrupt

        with mock.patch.object(console.Stage, "advance", interrupting):
            code = self._verb("run", str(self._config), *self.settings.overrides())
        if code != 130:
            return f"not in {stage} {number}: {self._checked_run(code)}"
        self._settle()
        return f"in {stage} {number}"

    def _killed(self, dice: random.Random) -> str:
        stage, number, signal = dice.choice(STAGES), dice.randint(1, 3), dice.choice(("SIGKILL", "SIGINT"))
        command = [sys.executable, str(DISTURBED), f"kill:{stage}:{number}:{signal}", "run", str(self._config)]
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        done = subprocess.run(
            [*command, *self.settings.overrides()], env=environment, capture_output=True, text=True, check=False
        )
        self._said = done.stderr
        if done.returncode not in (-9, 130):
            return f"not in {stage} {number}: {self._checked_run(done.returncode)}"
        self._settle()
        return f"by {signal} in {stage} {number}"

    # verbs

    def _cleaned(self, dice: random.Random) -> str:
        """What the corpus as it is still needs stays."""
        runs = self._run_ids()
        keys = set(self.oracle.keys().values())
        needed = {name for name in self.stored if Path(name).name[:16] in keys}
        code = self._verb("clean", str(self.output), "--delete")
        is_told = self._is_output() and (self._all_sources() or not list(self.output.glob("runs/*/run.json")))
        _is(code, 0 if is_told else 2, "exit code of clean")
        gone = {name for name in self.stored if not Path(name).exists()}
        _is(gone & needed, set(), "features that clean took of files that are there")
        _is(self._run_ids(), runs, "runs after clean")
        self._look()
        return f"{len(gone)} feature files"

    def _clean_shows(self, dice: random.Random) -> str:
        before = _listing(self.output)
        options = dice.choice(([], ["--rejected", "image_missing"]))
        self._verb("clean", str(self.output), *options)
        _is(_listing(self.output), before, "the output after clean without --delete")
        return " ".join(options)

    def _cleaned_of_rejects(self, dice: random.Random) -> str:
        """Of the files that are there just the slices go that hold one."""
        reason = dice.choice(("image_missing", "image_missing", "broken_row", "text_only", "unreadable_file"))
        holding: set[str] = set()
        others: set[str] = set()
        for name, stored in self.stored.items():
            if not stored.damaged and (reasons := self._reasons_in(name)) is not None:
                (holding if reason in reasons else others).add(name)
        code = self._verb("clean", str(self.output), "--rejected", reason, "--delete")
        _is(code, 0 if self._is_output() else 2, "exit code of clean --rejected")
        gone = {name for name in self.stored if not Path(name).exists()}
        _is(holding - gone, set(), f"slices with {reason} that stay")
        _is(others & gone, set(), f"slices without {reason} that go")
        self._look()
        return f"{reason}, {len(gone)} feature files"

    def _reported(self, dice: random.Random) -> str:
        run_id = self._latest()
        code = self._verb("report", str(self.output))
        whole = run_id is not None and self._features_are_whole(run_id)
        if whole or run_id is None:
            _is(code, 0 if run_id else 2, "exit code of report")
        elif code not in (0, 2):
            raise AssertionError(f"exit code of report is {code}")
        return f"{run_id}, exit {code}"

    def _status(self, dice: random.Random) -> str:
        _is(self._verb("status", str(self.output)), 0, "exit code of status")
        return ""

    def _exported(self, dice: random.Random) -> str:
        form, target = dice.choice(("llava", "csv")), self.folder / "exports" / f"{next(self._exports):04d}"
        run_id = self._latest()
        run = self.runs[run_id] if run_id else None
        code = self._verb("export", str(self.output), "--to", form, "--out", str(target))
        needed = {row["shard"] for row in run.manifest} if run else set()
        there = {self.corpus.path(name): version.time_ns for name, version in self.corpus.files.items()}
        fits = run is not None and self._all_sources() and all(there.get(path) == run.files[path] for path in needed)
        expected: list[Any] = []
        if run is not None and form == "csv":
            expected = [tuple(row[name] for name in ("rank", "source", "shard", "row", "id")) for row in run.manifest]
        elif run is not None:
            for row in run.manifest:
                said = run.rows[row["shard"], row["row"]]
                if len(said["images"]) <= 1:
                    expected.append((row["id"], [turn["content"] for turn in said["messages"]]))
        _is(code, 0 if fits and expected else 2, f"exit code of export to {form}")
        if code == 0:
            _is(_exported_rows(target, form), expected, f"rows of the export to {form}")
            shutil.rmtree(target)
        return f"{form} of {run_id}, exit {code}, {len(expected)} rows"

    # the comparison

    def _checked_run(self, code: int) -> str:
        """Compares a run that came to its end with the oracle."""
        self._look()
        expected = self.oracle.expected(self.settings, self._missing_at(self.settings.tokens))
        if code == 3 and any(reason == "unreadable_file" for _, reason in expected.rejects):
            self.counts["lost rows that decide"] += expected.code != 3  # how many they are is an estimate
        else:
            _is(code, expected.code, "exit code of run")
        if code:
            self.counts[f"exit {code}"] += 1
            return f"exit {code}"
        run_id = max(self._run_ids())
        _is(self._latest(), run_id, "the newest run")
        if run_id in self.runs:
            raise AssertionError(f"no new run after {run_id}")
        folder = self.output / "runs" / run_id
        record = json.loads((folder / "run.json").read_text())
        scores = _rows_of(folder / "scores")
        _is([_key(row) for row in scores], expected.scored, "scored samples")
        values_N = np.array([row["score"] for row in scores])
        expected_N = leverage_of(np.stack(expected.features), self.settings)
        if expected_N is None:
            self.counts["scores that rounding decides"] += 1
        else:
            np.testing.assert_allclose(values_N, expected_N, rtol=1e-6, atol=1e-6, err_msg="scores")
        chosen = chosen_of(self.settings, expected.scored, values_N)
        assert chosen is not None, "it would be exit 2"
        kept = text_only_kept(self.settings, expected.rejects, len(chosen) / len(scores))
        manifest = _rows_of(folder / "manifest")
        told = [(*expected.scored[index], values_N[index], rank) for rank, index in enumerate(chosen, 1)]
        told += [(*key, None, rank) for rank, key in enumerate(kept, len(chosen) + 1)]
        _is([(*_key(row), row["score"], row["rank"]) for row in manifest], told, "manifest")
        rejects = [(key, reason) for key, reason in expected.rejects if key not in kept]
        _is([(_key(row), row["reason"]) for row in _rows_of(folder / "rejects.parquet")], rejects, "rejects")
        samples = len(scores) + len(expected.rejects)
        counts = (samples, len(scores), len(chosen), len(kept), dict(Counter(reason for _, reason in rejects)))
        names = ("samples", "scored", "chosen", "text_only_kept", "rejected")
        _is(tuple(record[name] for name in names), counts, "counts of run.json")
        by_path = {self.corpus.path(name): version for name, version in self.corpus.files.items()}
        self.runs[run_id] = Finished(
            record["extractor"],
            {path: version.time_ns for path, version in by_path.items()},
            manifest,
            {(row["shard"], row["row"]): by_path[row["shard"]].rows[row["row"]] for row in manifest},
        )
        self.counts["runs compared"] += 1
        return f"{run_id}, {len(chosen)} of {len(scores)}"

    def _missing_at(self, tokens: str) -> Callable[[str, int], frozenset[str]]:
        """Which images were away when a row was extracted; where it is not, those that are away now."""
        extractor, now = self.oracle.extractor_id(tokens), frozenset(self.corpus.missing)

        def missing(key: str, row: int) -> frozenset[str]:
            found = [
                stored.missing
                for name, stored in self.stored.items()
                if Path(name).parent.name == extractor and Path(name).name[:16] == key and row in _rows_in(name)
            ]
            assert len(found) <= 1, f"row {row} of {key} is in {len(found)} slices"
            return found[0] if found else now

        return missing

    def _reasons_in(self, name: str) -> set[str] | None:
        """Reasons of the rejects in a slice, by the oracle; None where its file is not there as it was."""
        paths = [path for path, key in self.oracle.keys().items() if Path(name).name[:16] == key]
        extractors = {self.oracle.extractor_id(tokens): tokens for tokens in ("reference", "strict")}
        tokens = extractors[Path(name).parent.name]
        if not paths or not self._all_sources():
            return None
        expected = self.oracle.expected(Settings(tokens=tokens), self._missing_at(tokens))
        return {reason for key, reason in expected.rejects if key[1] == paths[0] and key[2] in _rows_in(name)}

    def _look(self) -> None:
        """Learns which slices are committed: what is new was extracted with the images that are there now."""
        found = {str(path): _stamp(path) for path in sorted(self.output.glob("features/*/*.parquet"))}
        now = frozenset(self.corpus.missing)
        known = {name: stored for name, stored in self.stored.items() if found.get(name) == stored.stamp}
        self.stored = {name: known.get(name) or Stored(stamp, now) for name, stamp in found.items()}

    def _settle(self) -> None:
        """Waits until a run that was cut off has nothing under way any more, and looks."""
        deadline, before = time.monotonic() + 120, None
        while time.monotonic() < deadline:
            free = ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
            listing = _listing(self.output)
            if free and listing == before:
                break
            before = listing
            time.sleep(1)
        self._look()

    def _features_are_whole(self, run_id: str) -> bool:
        files = pq.read_table(self.output / "runs" / run_id / "files.parquet").to_pylist()
        folder = self.output / "features" / self.runs[run_id].extractor
        names = {str(folder / f"{slice_id}.parquet") for file in files for slice_id in file["slices"]}
        return all(name in self.stored and not self.stored[name].damaged for name in names)

    def _verb(self, *arguments: str) -> int:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                return scalselect(list(arguments))
        finally:
            self._said = said.getvalue()

    def _latest(self) -> str | None:
        path = self.output / "latest.json"
        return json.loads(path.read_text())["run_id"] if path.exists() else None

    def _run_ids(self) -> set[str]:
        return {path.parent.name for path in self.output.glob("runs/*/run.json")}

    def _is_output(self) -> bool:
        return any(list(self.output.glob(name)) for name in ("latest.json", "runs/*", "features/*/extractor.json"))

    def _all_sources(self) -> bool:
        return {name.partition("/")[0] for name in self.corpus.files} == set(SOURCES)

    @staticmethod
    def _one(dice: random.Random, names: Any) -> str | None:
        """One of the names; always one draw."""
        at = dice.random()
        return sorted(names)[int(at * len(names))] if names else None

    def _write_config(self) -> Path:
        folder = self.corpus.folder
        sources = [{"name": name, "paths": [str(folder / name)], "image_root": str(folder)} for name in SOURCES]
        config = {
            "corpus": {"sources": sources},
            "extractor": {"model": str(GOLDEN / "model"), "dtype": "float32"},
            "selection": {"budget": 0.3},
            "output": str(self.output),
        }
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return path


def _is(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise AssertionError(f"{what}: found {found!r}, expected {expected!r}")


def _key(row: dict[str, Any]) -> Key:
    return row["source"], row["shard"], row["row"], row["id"]


def _rows_of(path: Path) -> list[dict[str, Any]]:
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def _rows_in(name: str) -> range:
    _, first, stop, _, _ = Path(name).stem.split("-")
    return range(int(first), int(stop))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    return {(str(path), *_stamp(path)) for path in folder.rglob("*") if path.is_file()}


def _exported_rows(target: Path, form: str) -> list[Any]:
    if form == "csv":
        with open(target / "chosen.csv", newline="") as file:
            return [
                (int(row["rank"]), row["source"], row["shard"], int(row["row"]), row["id"] or None)
                for row in csv.DictReader(file)
            ]
    rows = json.loads((target / "data.json").read_text())
    return [(row.get("id"), [turn["value"] for turn in row["conversations"]]) for row in rows]


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True)
        yield given.resolve()
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name).resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in", dest="folder", type=Path, help="a new folder that is kept (default: one that is not)")
    options = parser.parse_args()
    started, finding = time.monotonic(), None
    os.environ |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    ray.init(
        "local",
        num_cpus=3,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _system_config={"idle_worker_killing_time_threshold_ms": 600_000},  # else the next run imports torch again
    )
    with _folder(options.folder) as folder:
        driver = Driver(folder, options.seed, lambda text: print(text, file=sys.stderr, flush=True))
        try:
            driver.play(options.steps)
        except FindingError as error:
            finding = str(error)
            print(finding, file=sys.stderr)
    ray.shutdown()
    print_record(
        "random_driver",
        ("ray", "torch", "numpy", "pyarrow"),
        seed=options.seed,
        steps=len(driver.played),
        seconds=round(time.monotonic() - started),
        finding=finding,
        counts=dict(sorted(driver.counts.items())),
    )
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())
