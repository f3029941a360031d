"""What a run says of its corpus before any work."""

from pathlib import Path

import pytest
from records import record_of

from scalselect_ray.corpus import CorpusFile, Plan, SliceId
from scalselect_ray.io.storage import FileInfo
from scalselect_ray.stages.plan import nothing_in_common
from scalselect_ray.store.files import files_of, write_files
from scalselect_ray.store.layout import Output
from scalselect_ray.store.runs import Runs


def plan_of(*names: str, source: str = "s", version: str = "1") -> Plan:
    files = [CorpusFile(source, FileInfo(f"/{name}", 1, version), "/", 10, 100) for name in names]
    return Plan(files, [SliceId(file.key, 0, 1, 1) for file in files], [])


def finished(folder: Path, plan: Plan | None) -> Runs:
    runs = Runs(Output(str(folder)))
    record = record_of()
    if plan is not None:
        write_files(files_of(plan), runs.folder(record.run_id))
    runs.finish(record)
    return runs


@pytest.mark.parametrize(
    ("now", "is_told"),
    [
        (plan_of("c", "d"), True),
        (plan_of("c", source="other"), True),
        (plan_of("b", "c"), False),
        (plan_of("a", version="2"), False),  # a file that changed is the same file
        (plan_of("a", source="other"), False),
    ],
)
def test_a_corpus_that_has_nothing_in_common_with_the_latest_run_is_told(now, is_told, tmp_path):
    said = nothing_in_common(now, finished(tmp_path, plan_of("a", "b", source="llava")))
    assert bool(said) == is_told
    if is_told:
        assert str(tmp_path) in said
        assert "llava" in said


def test_where_there_is_nothing_to_compare_with_nothing_is_told(tmp_path):
    assert nothing_in_common(plan_of("a"), Runs(Output(str(tmp_path)))) == ""
    assert nothing_in_common(plan_of("a"), finished(tmp_path, None)) == "", "a run of version 0.1"
