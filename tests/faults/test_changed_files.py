"""Files that change, go away and come back while a corpus is listed, planned and read: never other content under a
key."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import list_files, make_plan, plan_file, plan_here, read_slices, reading_units
from scalselect_ray.errors import CorpusChangedError
from scalselect_ray.testing.damage import corpora

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())
FILES = corpora()


def replaced(path: Path) -> None:
    """Other content of the same size, later."""
    content = path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))


def renamed_over(path: Path) -> None:
    """As rsync and editors do it."""
    other = path.with_name("other")
    shutil.copy(path, other)
    os.replace(other, path)
    os.utime(path, ns=(1, 1))


def grown(path: Path) -> None:
    """Even where the time stays."""
    before = path.stat()
    path.write_bytes(path.read_bytes() + b"\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [replaced, renamed_over, grown, Path.unlink]


def corpus(path: Path) -> CorpusConfig:
    return CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path)])], slice_rows=4)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changes_after_it_was_listed_is_not_planned(name, change: Callable[[Path], None], tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    files = list_files(corpus(tmp_path / name))
    change(tmp_path / name)
    with pytest.raises(CorpusChangedError, match=name):
        plan_file(files[0])
    with pytest.raises(CorpusChangedError, match=name):
        make_plan(files, set(), plan_here)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changes_after_it_was_planned_hands_on_nothing(name, change: Callable[[Path], None], tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    planned = plan_file(list_files(corpus(tmp_path / name))[0])
    change(tmp_path / name)
    with pytest.raises(CorpusChangedError, match=name):
        next(read_slices(planned[:1]))


def replaced_in_the_middle(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes of the same size, at the same time: as `cp -p` and rsync leave them, or a clock of whole seconds."""
    before, content = path.stat(), path.read_bytes()
    assert len(old) == len(new)
    assert old in content
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("name", ["list.json", "lines.jsonl", "object.json"])
@pytest.mark.parametrize("new", [b'"from": "humat"', b'"from": "hum"}\n'], ids=["readable", "broken"])
def test_a_file_of_the_same_size_and_time_is_found_by_its_bytes(name, new, tmp_path):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    planned = plan_file(list_files(corpus(path))[0])
    assert all(slice_.digest for slice_ in planned)
    replaced_in_the_middle(path, b'"from": "human"', new)
    for slice_ in planned:
        with pytest.raises(CorpusChangedError, match=name):
            list(read_slices([slice_]))
    with pytest.raises(CorpusChangedError, match=name):
        list(read_slices(planned))
    again = plan_file(list_files(corpus(path))[0])
    assert {slice_.file_key for slice_ in again} == {slice_.file_key for slice_ in planned}, "its key cannot tell"
    assert [len(rows) for _, rows in read_slices(again)] == [slice_.rows for slice_ in again]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_of_any_kind_that_is_replaced_by_another_of_its_size_and_time_is_found(name, tmp_path):
    """Other rows, written anew: not a byte in the middle of a large file, which is looked for in JSON alone."""
    path = tmp_path / name
    path.write_bytes(FILES[name])
    planned = plan_file(list_files(corpus(path))[0])
    assert all(slice_.digest for slice_ in planned)
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = 0
    for unit in reading_units(planned):
        try:
            list(read_slices(unit))
        except CorpusChangedError:
            changed += 1
    assert changed >= 1
    again = plan_file(list_files(corpus(path))[0])
    digests = {slice_.id: slice_.digest for slice_ in planned}
    assert (
        any(digests.get(slice_.id) != slice_.digest for slice_ in again if slice_.problem is None) or again[-1].problem
    )


@pytest.mark.usefixtures("cluster")
def test_what_is_committed_of_other_bytes_is_made_anew_and_what_has_not_changed_stays(job, capsys):
    """Of a run that was interrupted: one slice is missing, so the file is looked at."""
    config, path = job
    assert main(["run", str(config)]) == 0
    features = sorted((config.parent / "output").glob("features/*/*.parquet"))
    before = {feature: feature.stat().st_mtime_ns for feature in features}
    features[-1].unlink()
    old, new = str(ROWS[4]["id"]), "x" * len(str(ROWS[4]["id"]))
    replaced_in_the_middle(path, json.dumps(old).encode(), json.dumps(new).encode())
    assert main(["run", str(config)]) == 0
    assert "has other bytes now" in capsys.readouterr().err
    assert ids(config.parent / "output") == [new if name == old else name for name in expected(ROWS[:10])]
    changed = [feature for feature in features if feature.stat().st_mtime_ns != before[feature]]
    assert changed == [features[1], features[-1]]


def test_what_is_wrong_with_a_file_is_not_committed_for_another_version(tmp_path):
    """Also the reject that stands for what cannot be read is of one version."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS)[:-40])
    *_, broken = plan_file(list_files(corpus(path))[0])
    assert broken.problem is not None
    path.write_text(json.dumps(ROWS))
    with pytest.raises(CorpusChangedError):
        list(read_slices([broken]))


@pytest.fixture
def job(tmp_path) -> tuple[Path, Path]:
    """A config, and its corpus of one file."""
    path = tmp_path / "corpus" / "rows.json"
    path.parent.mkdir()
    path.write_text(json.dumps(ROWS[:10]))
    source = {"name": "s", "paths": [str(path)], "image_root": str(CORPUS)}
    return write_config(tmp_path, [source], MODEL, corpus={"sources": [source], "slice_rows": 3}), path


def ids(output: Path) -> list[str]:
    run = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    return pq.read_table(run / "scores").sort_by("row")["id"].to_pylist()


def expected(rows: list[dict]) -> list[str]:
    return [str(row["id"]) for row in rows]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("when", ["listed", "planned"])
def test_a_run_reads_what_is_there_now_and_the_old_file_is_whole_when_it_comes_back(when, job, monkeypatch, capsys):
    config, path = job
    old, old_time = path.read_bytes(), path.stat().st_mtime_ns
    left = [lambda: path.write_text(json.dumps(ROWS[10:16]))]
    original = {"listed": "list_corpus", "planned": "_what_is_to_do"}[when]
    from scalselect_ray.stages import plan

    call = getattr(plan, original)

    def changing(*arguments):
        answer = call(*arguments)
        if left:
            left.pop()()
        return answer

    monkeypatch.setattr(plan, original, changing)
    assert main(["run", str(config)]) == 0
    assert "changed while" in capsys.readouterr().err
    assert ids(config.parent / "output") == expected(ROWS[10:16])

    path.write_bytes(old)
    os.utime(path, ns=(old_time, old_time))  # as `cp -p`, `rsync -t` and a rollback do
    assert main(["run", str(config)]) == 0
    assert ids(config.parent / "output") == expected(ROWS[:10])


@pytest.mark.usefixtures("cluster")
def test_a_file_that_is_away_for_a_while_is_no_reject(job, monkeypatch, capsys):
    config, path = job
    (path.parent / "more.json").write_text(json.dumps(ROWS[10:14]))
    assert main(["run", str(config), f"corpus.sources.0.paths=[{path.parent}]"]) == 0
    away = path.with_name("away")
    from scalselect_ray.stages import plan

    call = plan.list_corpus

    def listing(corpus):
        found = call(corpus)
        if path.exists():
            path.rename(away)
        return found

    monkeypatch.setattr(plan, "list_corpus", listing)
    path.touch()  # it must be planned anew
    assert main(["run", str(config), f"corpus.sources.0.paths=[{path.parent}]"]) == 0
    assert ids(config.parent / "output") == expected(ROWS[10:14]), "gone is gone"
    monkeypatch.undo()
    away.rename(path)
    assert main(["run", str(config), f"corpus.sources.0.paths=[{path.parent}]"]) == 0
    record = capsys.readouterr().err
    assert "rejected  0" in record
    assert len(ids(config.parent / "output")) == 14


@pytest.mark.usefixtures("cluster")
def test_a_file_that_is_always_written_to_ends_the_run_with_its_name(job, monkeypatch, capsys):
    config, path = job
    from scalselect_ray.stages import plan

    call = plan._what_is_to_do

    def writing(*arguments):
        path.write_text(path.read_text() + " ")
        return call(*arguments)

    monkeypatch.setattr(plan, "_what_is_to_do", writing)
    assert main(["run", str(config)]) == 2
    said = capsys.readouterr().err.replace("\n", "")
    assert f"{path} changed or went away" in said
    assert "Traceback" not in said
    assert not list((config.parent / "output").glob("features/*/*.parquet"))
