"""Processes and machines that die: the next run ends where an undisturbed one does, and pays for nothing twice."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.cluster.witness import witnessed
from scalselect_ray.corpus import SampleRejectedError, Slice
from scalselect_ray.stages import extract, isolation, score
from scalselect_ray.store import garbage
from scalselect_ray.vlm import DeviceLostError

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())
SLICES = 12
DISTURBED = [sys.executable, str(Path(__file__).with_name("disturbed.py"))]

pytestmark = pytest.mark.usefixtures("cluster")


@dataclass(frozen=True)
class Job:
    """A config with an output of its own, and what an undisturbed run of the same makes."""

    config: Path
    output: Path
    scores: pa.Table | None = None
    manifest: pa.Table | None = None

    def committed(self) -> dict[str, tuple[int, int]]:
        """(inode, modification time) of each feature file."""
        files = {path.name: path.stat() for path in self.output.glob("features/*/*.parquet")}
        return {name: (status.st_ino, status.st_mtime_ns) for name, status in files.items()}

    def results(self) -> tuple[dict, pa.Table, pa.Table]:
        """(run.json, scores, manifest) of the newest run."""
        folder = self.output / "runs" / json.loads((self.output / "latest.json").read_text())["run_id"]
        return (
            json.loads((folder / "run.json").read_text()),
            pq.read_table(folder / "scores"),
            pq.read_table(folder / "manifest"),
        )

    def is_as_if_undisturbed(self, *, again: bool = True) -> dict:
        """Runs once more, and looks at everything that is there then."""
        before = self.committed()
        if again:
            assert main(["run", str(self.config)]) == 0
        record, scores, manifest = self.results()
        assert scores.equals(self.scores)
        assert manifest.equals(self.manifest)
        after = self.committed()
        assert len(after) == SLICES == record["slices"]["total"]
        assert {name: after[name] for name in before} == before, "what is committed is not written again"
        if again:
            assert record["slices"]["extracted"] <= SLICES - len(before)
        self._is_clean(record["run_id"])
        return record

    def _is_clean(self, run_id: str) -> None:
        """Whatever was left half done is found, and `clean` leaves just what an undisturbed run does."""
        with mock.patch.object(garbage, "_LIVE", timedelta(0)):
            assert main(["clean", str(self.output), "--delete"]) == 0
        left = {path.relative_to(self.output).parts for path in self.output.rglob("*") if path.is_file()}
        assert {parts[1] for parts in left if parts[0] == "runs"} == {run_id}
        assert len([parts for parts in left if parts[0] == "moments"]) == 1
        assert len([parts for parts in left if parts[0] == "features"]) == SLICES + 1
        assert not [parts for parts in left if parts[-1].startswith(".")]
        assert {parts[0] for parts in left} - {"held"} == {"features", "moments", "runs", "latest.json"}


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory) -> Job:
    """Three files of four slices each."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for number in range(3):
        (folder / f"{number}.json").write_text(json.dumps(ROWS[8 * number :][:8]))
    return _job(folder, folder / "output")


def _job(corpus: Path, output: Path, done: Job | None = None) -> Job:
    output.mkdir(parents=True)
    sources = [{"name": "golden", "paths": [str(corpus / "*.json")], "image_root": str(CORPUS)}]
    settings = {"corpus": {"sources": sources, "slice_rows": 2}, "reduce": {"leaf_rows": 4}, "output": str(output)}
    job = Job(write_config(output.parent, sources, MODEL, **settings), output)
    if done is not None:
        return Job(job.config, output, done.scores, done.manifest)
    assert main(["run", str(job.config)]) == 0
    return Job(job.config, output, *job.results()[1:])


@pytest.fixture
def job(undisturbed, tmp_path) -> Job:
    return _job(undisturbed.config.parent, tmp_path / "output", undisturbed)


_DICE = random.Random(2026)


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("extract", _DICE.randint(1, SLICES - 1)),
        (_DICE.choice(["reduce", "score"]), _DICE.randint(1, SLICES // 2 - 1)),
        ("select", 1),
    ],
)
def test_a_driver_killed_at_any_moment_loses_nothing(stage, number, job):
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [*DISTURBED, f"kill:{stage}:{number}", "run", str(job.config)]
    died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (job.output / "latest.json").exists()
    record = job.is_as_if_undisturbed()
    if stage != "extract":
        assert record["slices"]["extracted"] == 0
    if stage == "select":
        assert record["slices"]["moments_reused"] == SLICES


def test_workers_and_actors_killed_in_the_midst_lose_nothing(job, monkeypatch, tmp_path):
    """One process of each kind dies in the midst of a slice, and one between the writing of an object and its
    appearing."""

    def first(what: str) -> bool:
        try:
            (tmp_path / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def prepare_unit(batch, *arguments, **more):
        if first("prepare"):
            die()
        yield from extraction_prepare(batch, *arguments, **more)

    class ExtractSlices(extract.ExtractSlices):
        def __call__(self, batch):
            if first("extract"):
                die()
            if first("commit"):
                with mock.patch("os.replace", die):
                    return super().__call__(batch)
            return super().__call__(batch)

    extraction_prepare = extract.prepare_unit
    for replaced in (prepare_unit, ExtractSlices):
        monkeypatch.setattr(extract, replaced.__name__, replaced)
    assert main(["run", str(job.config)]) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"prepare", "extract", "commit"}
    assert {path.suffix for path in job.output.glob("features/*/.*")} == {".tmp"}
    job.is_as_if_undisturbed(again=False)


def test_a_slice_is_committed_while_others_wait_for_all_cpus(job, monkeypatch):
    """What is extracted is safe only once it is committed: this must not wait until the readers have nothing more to
    do."""
    features, prepare = str(job.output / "features"), extract.prepare_unit

    def prepare_unit(batch, *arguments, **more):
        """The second slice of each file stands in the way until a first one is committed."""
        if '"first_row": 0' not in batch["unit"][0].as_py():
            deadline = time.monotonic() + 200
            while not any(name.endswith(".parquet") for _, _, names in os.walk(features) for name in names):
                if time.monotonic() > deadline:
                    raise TimeoutError("nothing is committed")
                time.sleep(0.1)
        yield from prepare(batch, *arguments, **more)

    monkeypatch.setattr(extract, "prepare_unit", prepare_unit)
    assert main(["run", str(job.config), "workers.cpus_per_extractor=2", "workers.max_extractors=1"]) == 0
    assert len(job.committed()) == SLICES


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_worker_that_dies_again_and_again_ends_the_run_with_a_message(kind, job, monkeypatch, capsys):
    """As when the decoder of a picture crashes, or the system takes a process for its memory."""

    def prepare_unit(batch, *arguments, **more):
        os.kill(os.getpid(), signal.SIGKILL)

    class ExtractSlices(extract.ExtractSlices):
        def __call__(self, batch):
            os.kill(os.getpid(), signal.SIGKILL)

    replaced = prepare_unit if kind == "task" else ExtractSlices
    with monkeypatch.context() as patch:
        patch.setattr(extract, "ATTEMPTS", 1)
        patch.setattr(extract, replaced.__name__, replaced)
        patch.setattr(extract, "find_deadly", lambda *_: frozenset())  # it is no sample that does it
        assert main(["run", str(job.config)]) == 1
    said = capsys.readouterr().err
    assert "lost again and again" in said
    assert "run again" in said
    assert "Traceback" not in said
    if kind == "task":
        job.is_as_if_undisturbed()


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_sample_that_takes_its_worker_along_is_one_reject(kind, job, monkeypatch, capsys):
    """Row 1 of the second slice ends the process that prepares or represents it, and the one that tries it alone."""
    prepare, work = extract.prepare_unit, isolation._work._function
    deadly_row = 3

    def ends(slice_: Slice, rows) -> bool:
        return slice_.shard.endswith("/1.json") and deadly_row in rows

    def prepare_unit(batch, extractor, preparing, witness, deadly):
        (slice_,) = (Slice(**fields) for fields in json.loads(batch["unit"][0].as_py()))
        with witnessed(witness, slice_.id):
            if ends(slice_, set(range(slice_.first_row, slice_.stop_row)) - deadly.get(slice_.id, frozenset())):
                os.kill(os.getpid(), signal.SIGKILL)
        yield from prepare(batch, extractor, preparing, witness, deadly)

    class ExtractSlices(extract.ExtractSlices):
        def _represented(self, part, rows):
            if ends(part, [key["row"] for key, held in rows if not isinstance(held, SampleRejectedError)]):
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._represented(part, rows)

    def tried(slice_, rows, extractor):
        if ends(slice_, rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return work(slice_, rows, extractor)

    replaced = prepare_unit if kind == "task" else ExtractSlices
    monkeypatch.setattr(extract, "ATTEMPTS", 1)
    monkeypatch.setattr(extract, replaced.__name__, replaced)
    monkeypatch.setattr(isolation, "_work", ray.remote(max_retries=0)(tried))
    assert main(["run", str(job.config), "rejects.max_fraction=0.5"]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"1.json row {deadly_row}: ends the process that works at it" in said
    assert "Traceback" not in said
    record, *_ = job.results()
    rejects = pq.read_table(job.output / "runs" / record["run_id"] / "rejects.parquet")
    assert record["rejected"] == {"too_costly": 1}
    assert [(Path(row["shard"]).name, row["row"]) for row in rejects.to_pylist()] == [("1.json", deadly_row)]
    assert "ends each time" in rejects["message"][0].as_py()
    assert record["scored"] == record["samples"] - 1


def test_a_device_that_is_lost_is_left_behind_and_rejects_nothing(job, monkeypatch):
    """An assert in a kernel leaves its process nothing to compute with: the actor is started anew, the slice goes to it
    again."""

    class ExtractSlices(extract.ExtractSlices):
        def __call__(self, batch):
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                self._extractor = mock.Mock(side_effect=DeviceLostError("CUDA error: device-side assert triggered"))
            return super().__call__(batch)

    monkeypatch.setattr(extract, "ExtractSlices", ExtractSlices)
    assert main(["run", str(job.config)]) == 0
    job.is_as_if_undisturbed(again=False)


def test_a_device_that_is_lost_again_ends_the_run_with_a_message(job, monkeypatch, capsys):
    class ExtractSlices(extract.ExtractSlices):
        def __call__(self, batch):
            self._extractor = mock.Mock(side_effect=DeviceLostError("CUDA error: device-side assert triggered"))
            return super().__call__(batch)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "ExtractSlices", ExtractSlices)
        assert main(["run", str(job.config)]) == 1
    said = capsys.readouterr().err
    assert "device-side assert" in said
    assert "rows 0-1" in said or "rows" in said
    assert "Traceback" not in said
    assert not job.committed()


@pytest.mark.parametrize("where", ["/features/", "/scores$", "/runs/[^/]*$"])
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(where, job, monkeypatch, capsys):
    """Whoever writes there finds no room: tasks, and the driver itself. Of the feature files three still fit."""

    def no_room(descriptor: int) -> None:
        folder = os.path.dirname(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen = [name for name in os.listdir(folder) if name.endswith(".parquet")]
        if re.search(where, folder) and (where != "/features/" or len(seen) >= 3):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def filled(function):
        def on_a_full_disk(*arguments, **more):
            with mock.patch("os.fsync", no_room):
                return function(*arguments, **more)

        return on_a_full_disk

    class ExtractSlices(extract.ExtractSlices):
        def __call__(self, batch):
            return filled(super().__call__)(batch)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "ExtractSlices", ExtractSlices)
        patch.setattr(score, "_score_group", ray.remote(filled(score._score_group._function)))
        patch.setattr(os, "fsync", no_room)  # the driver's own writes
        assert main(["run", str(job.config)]) == 1
    said = capsys.readouterr().err
    assert f"{job.output}/" in said
    assert "No space left on device; make room there" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not (job.output / "latest.json").exists()
    assert not list(job.output.rglob(".*.tmp")), "half an object takes no room"
    assert len(job.committed()) >= 3
    job.is_as_if_undisturbed()


def test_a_node_whose_raylet_is_killed_loses_nothing(job):
    command = [*DISTURBED, f"node:{job.output}", "run", str(job.config)]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a cluster leaves its address there for others to join
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "", "Ray prints there what has become of its workers"
    assert "(raylet)" not in done.stderr
    job.is_as_if_undisturbed(again=False)
