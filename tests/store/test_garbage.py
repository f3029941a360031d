"""What `clean` calls garbage: nothing that a finished run of any config needs, and nothing of others."""

import json
import os
import time
from pathlib import Path

import pytest
from records import record_of

from scalselect_ray.cli import main
from scalselect_ray.config_files import parse_config
from scalselect_ray.corpus import CorpusFile, Plan, SliceId, list_files
from scalselect_ray.errors import CorpusError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore, feature_table
from scalselect_ray.store.files import files_of, write_files
from scalselect_ray.store.garbage import check_output, find_garbage
from scalselect_ray.store.layout import Output
from scalselect_ray.store.runs import Runs

EXTRACTOR = "e" * 16


class Made:
    """An output with runs of several configs, made by hand. Runs begin long after everything that is there now."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, Output(str(folder / "output"))
        self._count = 0

    def write(self, name: str, text: str = "{}") -> None:
        storage.write(str(self.folder / name), text.encode())

    def config(self, path: str, source: str) -> str:
        return (
            f"corpus: {{sources: [{{name: {source}, paths: ['{self.folder / path}']}}]}}\n"
            f"extractor: {{model: /m}}\nselection: {{budget: 0.5}}\noutput: {self.output.uri}\n"
        )

    def files(self, path: str, source: str) -> list[CorpusFile]:
        return list_files(parse_config(self.config(path, source)).corpus)

    def extract(self, path: str, source: str = "s", extractor: str = EXTRACTOR) -> list[Path]:
        """Feature files of a corpus as it is now, without a run."""
        store, made = FeatureStore(self.output, extractor), []
        store.describe({"model": "/m", "settings": {}})
        for file in self.files(path, source):
            row = {"source": source, "shard": file.file.uri, "row": 0, "id": "0", "feature": [1.0, 2.0]}
            store.commit(SliceId(file.key, 0, 1, 1), feature_table([row], 2))
            made.append(Path(self.output.feature_file(extractor, SliceId(file.key, 0, 1, 1))))
        return made

    def run(self, path: str, source: str = "s", extractor: str = EXTRACTOR) -> list[Path]:
        """A finished run; returns its feature files."""
        made = self.extract(path, source, extractor)
        self._count += 1
        folder = self.output.run(f"209901{self._count:02d}T000000000Z-{'0' * 8}")
        files = self.files(path, source)
        storage.write(folder.config, self.config(path, source).encode())
        write_files(files_of(Plan(files, [SliceId(file.key, 0, 1, 1) for file in files], [])), folder)
        moments = f"{self._count:032d}"
        storage.write(self.output.moments_file(extractor, moments), b"moments")
        Runs(self.output).finish(record_of(folder.run_id, extractor=extractor, moments=moments))
        return made

    def garbage(self, keep: int | None = None) -> dict[str, set[Path]]:
        return {heap.what: {Path(uri) for uri in heap.uris} for heap in find_garbage(self.output, keep)}


@pytest.fixture
def made(tmp_path) -> Made:
    return Made(tmp_path)


LEFT, MOMENTS = "features of files that left the corpus or changed", "moments of earlier sets of slices"


def test_configs_that_share_an_output_need_each_others_work(made):
    """Whichever ran last."""
    for name in ("a/0.json", "a/1.json", "b/0.json"):
        made.write(name)
    made.run("a", "one")
    made.run("b", "two")
    assert made.garbage() == {}
    made.run("a", "one")
    assert set(made.garbage()) == {MOMENTS}, "those of the first run of the same config"


def test_extractors_are_looked_at_one_by_one(made):
    made.write("a/0.json")
    made.run("a")
    old = made.run("a", extractor="f" * 16)
    made.write("a/0.json", "[{}]")
    made.run("a", extractor="f" * 16)
    assert made.garbage()[LEFT] == set(old)


@pytest.mark.parametrize("change", ["left", "changed"])
def test_features_of_files_that_left_or_changed_are_garbage_of_their_config_alone(change, made):
    for name in ("a/0.json", "a/1.json", "b/0.json"):
        made.write(name)
    made.run("b", "two")
    kept, old = made.run("a", "one")
    (made.folder / "a/1.json").unlink() if change == "left" else made.write("a/1.json", "[{}, {}]")
    assert made.garbage() == {}, "the last run is made of it"
    assert kept in made.run("a", "one")
    assert made.garbage()[LEFT] == {old}


def test_a_changed_file_that_no_run_finished_with_is_told_by_its_name(made):
    made.write("a/0.json")
    (old,) = made.extract("a")
    made.write("a/0.json", "[{}]")
    made.run("a")
    assert made.garbage() == {LEFT: {old}}


def test_work_that_goes_on_is_no_garbage(made):
    """Of a config that has not finished a run yet, and of one whose extractor has none."""
    for name in ("a/0.json", "b/0.json"):
        made.write(name)
    made.extract("b", "other")
    made.extract("b", "s")
    made.extract("a", extractor="f" * 16)
    made.run("a")
    assert made.garbage() == {}


def test_the_corpus_of_the_newest_run_must_be_seen_and_of_an_earlier_config_its_run_tells(made):
    made.write("a/0.json")
    made.write("b/0.json")
    made.run("a", "one")
    made.run("b", "two")
    (made.folder / "a/0.json").unlink()
    assert made.garbage() == {}
    (made.folder / "b/0.json").unlink()
    with pytest.raises(CorpusError, match="told by the corpus of the newest run of each config"):
        made.garbage()


def test_keep_removes_earlier_runs_and_what_they_alone_need(made):
    for name in ("a/0.json", "b/0.json"):
        made.write(name)
    first = made.run("a", "one")
    made.run("b", "two")
    made.run("b", "two")
    runs = Runs(made.output).names()
    assert {heap: len(uris) for heap, uris in made.garbage(keep=2).items()} == {
        "finished runs before the newest 2": 3, LEFT: 1, MOMENTS: 2
    }  # fmt: skip
    assert made.garbage(keep=2)[LEFT] == set(first)
    assert LEFT not in made.garbage(keep=3)
    heap = next(heap for heap in find_garbage(made.output, 2) if heap.what.startswith("finished"))
    assert heap.uris[0].endswith("run.json"), "from then on it is not finished"
    assert main(["clean", made.output.uri, "--keep", "1", "--delete"]) == 0
    assert Runs(made.output).names() == runs[-1:]
    assert Runs(made.output).latest() == runs[-1]
    assert made.garbage(keep=1) == {}


def test_a_run_that_was_never_finished_leaves_nothing(made):
    made.write("a/0.json")
    made.run("a")
    names = Runs(made.output).names()
    (made.folder / "output" / "runs" / "20200101T000000000Z-00000000" / "scores").mkdir(parents=True)
    made.write("output/runs/20200102T000000000Z-00000000/scores/00000.parquet")
    assert main(["clean", made.output.uri]) == 0
    assert len(Runs(made.output).names()) == 3
    assert main(["clean", made.output.uri, "--delete"]) == 0
    assert Runs(made.output).names() == names


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_at_least_one_run_is_kept(number, capsys):
    with pytest.raises(SystemExit):
        main(["clean", "x", "--keep", number])
    assert "at least 1" in capsys.readouterr().err


def test_only_temporary_files_of_ours_are_garbage(made):
    made.write("a/0.json")
    made.run("a")
    long_ago = time.time() - 3 * 86400
    ours = [made.folder / "output" / folder / f".{'0a' * 16}.tmp" for folder in ("", "runs", f"features/{EXTRACTOR}")]
    others = [made.folder / "output" / name for name in (".draft.tmp", f"notes/.{'0a' * 16}.tmp", ".x.swp.tmp",
                                                         f"features/.{'0' * 31}.tmp", f"{'0' * 32}.tmp")]  # fmt: skip
    for path in (*ours, *others):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("")
        os.utime(path, (long_ago, long_ago))
    assert made.garbage() == {"half-written files of a killed process": set(ours)}
    os.utime(ours[0])
    assert len(made.garbage()["half-written files of a killed process"]) == 2, "one may still be written"


def test_a_folder_that_is_no_output_is_refused_and_not_walked(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes" / "features").mkdir(parents=True)
    (tmp_path / "notes" / ".draft.tmp").write_text("")
    (tmp_path / "notes" / "features" / "x.parquet").write_text("")
    monkeypatch.setattr(storage, "list_tree", lambda folder: pytest.fail(f"{folder} is walked"))
    for name in ("notes", "nowhere", "notes/features"):
        for more in ([], ["--delete"], ["--rejected", "too_long", "--delete"], ["--keep", "1", "--delete"]):
            assert main(["clean", str(tmp_path / name), *more]) == 2
            assert "is no output of scalselect" in capsys.readouterr().err
        assert main(["status", str(tmp_path / name)]) == 0
        assert find_garbage(Output(str(tmp_path / name))) == []
    with pytest.raises(OutputError):
        check_output(Output(str(tmp_path)))
    assert sorted(path.name for path in (tmp_path / "notes").iterdir()) == [".draft.tmp", "features"]


@pytest.mark.parametrize("name", ["features/x/extractor.json", "runs/20200101T000000000Z-00000000/a", "latest.json"])
def test_any_part_of_an_output_makes_it_one(name, tmp_path):
    storage.write(str(tmp_path / name), json.dumps({}).encode())
    check_output(Output(str(tmp_path)))
