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
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from record import print_record

from scalselect_ray import console
from scalselect_ray.cli import main as scalselect
from scalselect_ray.config import CorpusConfig, ExtractorConfig, SourceConfig
from scalselect_ray.corpus import Reject, Sample, SampleRejectedError, list_files, plan_here, read_slices
from scalselect_ray.vlm.representer import Representer, description_of, id_of

TESTS = Path(__file__).parents[1] / "tests"
GOLDEN = TESTS / "golden" / "llava"
DISTURBED = TESTS / "faults" / "disturbed.py"
SOURCES = ("lists", "tables")  # each a folder of the corpus
SUFFIXES = {"lists": (".json", ".jsonl"), "tables": (".parquet", ".tar")}
STAGES = ("plan", "extract", "extract", "reduce", "score", "select")
MOST_FILES = 5
Row = Any  # a record of the corpus; what is no dict is a broken row
Key = tuple[str, str, int, str | None]  # source, shard, row, id


def _text_only(number: int) -> Row:
    turns = [{"role": "user", "content": f"{number} + 1?"}, {"role": "assistant", "content": f"{number + 1}"}]
    return {"id": f"t{number}", "messages": turns, "images": []}


class FindingError(AssertionError):
    """What should not be, with all that it takes to see it again."""


class Version(NamedTuple):
    """A file of the corpus as it is or was."""

    data: bytes
    rows: tuple[Row, ...]
    time_ns: int


class Corpus:
    """The files of the corpus, on the disk and in memory, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Version] = {}  # by "source/name"
        self.past: list[tuple[str, Version]] = []  # what was removed or replaced
        self.missing: set[str] = set()  # images that are away
        self._seconds = itertools.count(1_750_000_000)
        self._numbers = itertools.count()
        golden = json.loads((GOLDEN / "samples.json").read_text())
        self.images = {name: (GOLDEN / name).read_bytes() for row in golden for name in row["images"]}
        mismatched = [{**row, "id": f"m{row['id']}", "images": row["images"] * 2} for row in golden[:2]]
        self._good: list[Row] = golden
        self._others: list[Row] = [*map(_text_only, range(4)), *mismatched]
        for name, data in self.images.items():
            self._image(name).parent.mkdir(parents=True, exist_ok=True)
            self._image(name).write_bytes(data)

    def new_name(self, source: str, dice: random.Random) -> str:
        return f"{source}/{next(self._numbers):04d}{dice.choice(SUFFIXES[source])}"

    def new_rows(self, name: str, dice: random.Random) -> list[Row]:
        """Four to eight rows, most of them good, no two the same."""
        rows = dice.sample(self._good, dice.randint(4, 6))
        rows += dice.sample(self._others, dice.choice((0, 0, 1, 2)))
        if name.startswith("lists/") and dice.random() < 0.2:
            rows.append(dice.choice(("no row", [], 7)))
        dice.shuffle(rows)
        return rows

    def version(self, name: str, rows: list[Row]) -> Version:
        return Version(self._encoded(name, rows), tuple(rows), next(self._seconds) * 10**9)

    def put(self, name: str, version: Version) -> None:
        """Writes a file in its place, with the time of its version."""
        if name in self.files:
            self.past.append((name, self.files[name]))
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(version.data)
        os.utime(path, ns=(version.time_ns, version.time_ns))
        self.files[name] = version

    def remove(self, name: str) -> None:
        self.past.append((name, self.files.pop(name)))
        (self.folder / name).unlink()

    def rename(self, name: str, other: str) -> None:
        self.files[other] = self.files.pop(name)
        (self.folder / name).rename(self.folder / other)

    def take_away(self, image: str) -> None:
        self.missing.add(image)
        self._image(image).rename(self._image(image).with_suffix(".away"))

    def bring_back(self, image: str) -> None:
        self.missing.remove(image)
        self._image(image).with_suffix(".away").rename(self._image(image))

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _image(self, name: str) -> Path:
        return self.folder / name

    def _encoded(self, name: str, rows: list[Row]) -> bytes:
        if name.endswith(".json"):
            return json.dumps(rows).encode()
        if name.endswith(".jsonl"):
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        sink = io.BytesIO()
        if name.endswith(".parquet"):
            images = [[{"bytes": self.images[image], "path": image} for image in row["images"]] for row in rows]
            structs = [{**row, "images": some} for row, some in zip(rows, images, strict=True)]
            image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            turn = pa.struct([("role", pa.string()), ("content", pa.string())])
            schema = pa.schema([("id", pa.string()), ("messages", pa.list_(turn)), ("images", pa.list_(image))])
            pq.write_table(pa.Table.from_pylist(structs, schema), sink, row_group_size=3)
        else:
            with tarfile.open(fileobj=sink, mode="w") as tar:
                for number, row in enumerate(rows):
                    members = {f"{at}.{image[-3:]}": self.images[image] for at, image in enumerate(row["images"])}
                    for member, data in {**members, "json": json.dumps({"messages": row["messages"]}).encode()}.items():
                        info = tarfile.TarInfo(f"{number:03d}.{member}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        return sink.getvalue()


@dataclass(frozen=True)
class Settings:
    """What one run is asked for."""

    budget: Any = 0.3
    energy: float = 0.9
    standardize: bool = False
    l2_normalize: bool = False
    quotas: dict[str, dict[str, float]] = field(default_factory=dict)
    text_only: str = "drop"
    text_only_share: float | None = None
    tokens: str = "reference"
    slice_rows: int = 3
    leaf_rows: int = 16384
    max_rejects: float = 0.9

    @classmethod
    def drawn(cls, dice: random.Random) -> "Settings":
        quotas = {
            name: dice.choice(({"cap": 0.4}, {"floor": 0.5}, {"share": 0.25}, {"floor": 2.0, "cap": 5.0}, {"cap": 0.0}))
            for name in SOURCES
            if dice.random() < 0.3
        }
        budgets = (0.0, 0.05, 0.16, 0.3, 0.5, 1.0, 2, 5, 10**6)
        return cls(
            budget=[0.1, dice.choice(budgets), 4] if not quotas and dice.random() < 0.3 else dice.choice(budgets),
            energy=dice.choice((0.5, 0.8, 0.9, 0.97)),
            standardize=dice.random() < 0.3,
            l2_normalize=dice.random() < 0.3,
            quotas=quotas,
            text_only=dice.choice(("drop", "keep")),
            text_only_share=dice.choice((None, 0.0, 0.5, 1.0)),
            tokens="strict" if dice.random() < 0.2 else "reference",
            slice_rows=dice.choice((2, 3, 5, 100)),
            leaf_rows=dice.choice((4, 10, 16384)),
            max_rejects=dice.choice((0.9, 0.9, 0.9, 0.15)),
        )

    def overrides(self) -> list[str]:
        values = {
            "selection.budget": self.budget,
            "selection.text_only": self.text_only,
            "selection.text_only_share": self.text_only_share,
            "subspace.energy": self.energy,
            "subspace.standardize": self.standardize,
            "subspace.l2_normalize": self.l2_normalize,
            "extractor.tokens": self.tokens,
            "corpus.slice_rows": self.slice_rows,
            "reduce.leaf_rows": self.leaf_rows,
            "reduce.fan_in": 2,
            "rejects.max_fraction": self.max_rejects,
            "selection.per_source": self.quotas,
        }
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Expected:
    """What a run from scratch would make of the files."""

    code: int
    scored: list[Key] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    rejects: list[tuple[Key, str]] = field(default_factory=list)


class Oracle:
    """The answer to a run, without Ray and without a store: one sample after the other, kept in memory by what it is
    made of."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._representers: dict[str, Representer] = {}
        self._ids: dict[str, str] = {}
        self._outcomes: dict[tuple[str, str], np.ndarray | str] = {}

    def extractor_id(self, tokens: str) -> str:
        if tokens not in self._ids:
            self._ids[tokens] = id_of(description_of(_extractor(tokens)))
        return self._ids[tokens]

    def keys(self) -> dict[str, str]:
        """The key of each file that is there."""
        return {file.file.uri: file.key for file in list_files(self._config(("",)))} if self.corpus.files else {}

    def expected(self, settings: Settings, missing: Callable[[str, int], frozenset[str]]) -> Expected:
        """What a run makes of the corpus; `missing` tells which images were away when a row, known by the key of its
        file and its number, was read."""
        if any(not self._names(source) for source in SOURCES):
            return Expected(2)
        found = Expected(0)
        for file in list_files(self._config(SOURCES)):
            (slices,) = plan_here([(file, [])])
            assert slices is not None, "nobody changes the corpus now"
            for _, rows in (answer for slice_ in slices for answer in read_slices([slice_])):
                for sample in rows:
                    key = (file.source, file.file.uri, sample.row, sample.id)
                    outcome = self._outcome(sample, settings.tokens, missing(file.key, sample.row))
                    if isinstance(outcome, str):
                        found.rejects.append((key, outcome))
                    else:
                        found.scored.append(key)
                        found.features.append(outcome)
        rejected = sum(reason != "text_only" for _, reason in found.rejects)
        if rejected > settings.max_rejects * (len(found.scored) + len(found.rejects)):
            return replace(found, code=3)
        if not found.scored or chosen_of(settings, found.scored, np.zeros(len(found.scored))) is None:
            return replace(found, code=2)
        return found

    def _names(self, source: str) -> list[str]:
        return [name for name in self.corpus.files if name.startswith(f"{source}/")]

    def _config(self, names: tuple[str, ...]) -> CorpusConfig:
        folder = self.corpus.folder
        sources = [source for source in SOURCES if self._names(source)]
        return CorpusConfig(
            sources=[SourceConfig(name=name, paths=[str(folder / name)], image_root=str(folder)) for name in sources]
        )

    def _outcome(self, sample: Sample | Reject, tokens: str, missing: frozenset[str]) -> np.ndarray | str:
        """Its feature, (D,) float64, or the reason why it has none."""
        if isinstance(sample, Reject):
            return str(sample.reason)
        if any(image.data is None and image.name in missing for image in sample.images):
            return "image_missing"
        images = [
            replace(image, data=image.data or self.corpus.images[image.name], uri=None) for image in sample.images
        ]
        content = repr((sample.turns, [sha256(image.data or b"").hexdigest() for image in images]))
        if (tokens, content) not in self._outcomes:
            if tokens not in self._representers:
                self._representers[tokens] = Representer(_extractor(tokens))
            (answer,) = self._representers[tokens]([replace(sample, images=tuple(images))])
            if isinstance(answer, SampleRejectedError):
                self._outcomes[tokens, content] = str(answer.reason)
            else:
                self._outcomes[tokens, content] = answer.feature.astype(np.float64)
        return self._outcomes[tokens, content]


def _extractor(tokens: Any) -> ExtractorConfig:
    return ExtractorConfig(model=str(GOLDEN / "model"), dtype="float32", tokens=tokens)


def leverage_of(features_ND: np.ndarray, settings: Settings) -> np.ndarray | None:
    """The scores by an SVD, (N,); None where rounding decides how many directions are kept, or which."""
    y_ND = features_ND - features_ND.mean(axis=0)
    if settings.standardize:
        std_D = np.sqrt(np.square(y_ND).mean(axis=0))
        y_ND /= np.where(std_D > 1e-12, std_D, 1)
    if settings.l2_normalize:
        norm_N1 = np.linalg.norm(y_ND, axis=1, keepdims=True)
        y_ND /= np.where(norm_N1 > 0, norm_N1, 1)
    u_NK, s_K, _ = np.linalg.svd(y_ND, full_matrices=False)
    if s_K[0] < 1e-5:  # all rows are one
        return None if s_K[0] > 0 else np.zeros(len(y_ND))
    shares_K = np.cumsum(np.square(s_K)) / np.square(s_K).sum()
    k = int((shares_K < settings.energy).sum()) + 1
    gap = s_K[k - 1] - (s_K[k] if k < len(s_K) else 0)
    if np.abs(shares_K - settings.energy).min() < 1e-6 or gap < 1e-3 * s_K[0]:
        return None
    return np.asarray(np.square(u_NK[:, :k]).sum(axis=1))


def chosen_of(settings: Settings, keys: list[Key], scores_N: np.ndarray) -> list[int] | None:
    """Positions of the chosen, best first; None where the floors ask for more than the budget."""
    budgets = settings.budget if isinstance(settings.budget, list) else [settings.budget]
    budget = max(_amount(value, len(keys), least=1) for value in budgets)
    order: list[int] = np.argsort(-scores_N, kind="stable").tolist()
    if not settings.quotas:
        return order[:budget]
    least, most = {}, {}
    for source, count in Counter(key[0] for key in keys).items():
        quota = settings.quotas.get(source, {})
        floor, cap = quota.get("floor", quota.get("share", 0)), quota.get("cap", quota.get("share"))
        least[source] = min(_amount(floor, budget), count)
        most[source] = max(least[source], count if cap is None else min(_amount(cap, budget), count))
    if sum(least.values()) > budget:
        return None
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    for bounds in (least, most):  # first what each source must send, then the best of what it may
        room = budget if bounds is most else sum(least.values())
        for index in order:
            source = keys[index][0]
            if index not in chosen and len(chosen) < room and taken[source] < bounds[source]:
                chosen.append(index)
                taken[source] += 1
    return sorted(chosen, key=order.index)


def _amount(value: float, whole: int, least: int = 0) -> int:
    if value > 1:
        return min(int(value), whole) if least else int(value)
    return max(int(Fraction(str(value)) * whole), least if value else 0)


def text_only_kept(settings: Settings, rejects: list[tuple[Key, str]], share: float) -> list[Key]:
    """The text-only samples at the manifest's end."""
    if settings.text_only == "drop":
        return []
    share = share if settings.text_only_share is None else settings.text_only_share
    return [key for key, reason in rejects if reason == "text_only" and _draw(key) < share]


def _draw(key: Key) -> Fraction:
    source, shard, row, _ = key
    return Fraction(int(sha256(f"{source}\0{shard}\0{row}".encode()).hexdigest()[:14], 16), 1 << 56)


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
