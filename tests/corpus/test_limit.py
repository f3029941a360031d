"""A limit on the rows of a source: its first ones are planned, whatever is committed, and serve runs without it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import Plan, list_files, make_plan, plan_here, read_slices, reading_units
from scalselect_ray.corpus.slices import SliceId, without_overlaps

ROWS = [[f"{file}-{row}" for row in range(count)] for file, count in enumerate((7, 0, 23, 1, 11))]


@pytest.fixture(scope="module", params=["json", "jsonl", "parquet"])
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("corpus")
    for name in ("a", "b"):
        (made / name).mkdir()
        for number, ids in enumerate(ROWS):
            rows = [{"id": f"{name}{key}", "image": "x.png", "question": "?", "answer": "!"} for key in ids]
            path = made / name / f"{number}.{request.param}"
            if request.param == "parquet":
                schema = pa.schema([(key, pa.string()) for key in ("id", "image", "question", "answer")])
                pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=4)
            else:
                path.write_text(json.dumps(rows) if request.param == "json" else "\n".join(map(json.dumps, rows)))
    return made


def plan(folder: Path, committed: set[SliceId], slice_rows: int, **limits: int | None) -> Plan:
    sources = [SourceConfig(name=name, paths=[str(folder / name)], limit=limits[name]) for name in ("a", "b")]
    return make_plan(list_files(CorpusConfig(sources=sources, slice_rows=slice_rows)), committed, plan_here)


def ids_of(found: Plan) -> list[str]:
    return [row.id for unit in reading_units(found.todo) for _, rows in read_slices(unit) for row in rows]


LIMITS = st.none() | st.integers(1, 60)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.lists(st.tuples(LIMITS, LIMITS, st.integers(1, 12)), min_size=1, max_size=4))
def test_the_first_rows_are_planned_whatever_was_committed_before(folder: Path, runs):
    committed: set[SliceId] = set()
    read: list[str] = []
    for first, second, slice_rows in runs:
        found = plan(folder, committed, slice_rows, a=first, b=second)
        expected = [
            key
            for name, limit in (("a", first), ("b", second))
            for key in [f"{name}{key}" for ids in ROWS for key in ids][:limit]
        ]
        assert found.rows == len(expected)
        new = ids_of(found)
        assert set(new) <= set(expected) <= {*read, *new}
        assert {slice_.id for slice_ in found.todo}.isdisjoint(committed)
        assert committed | {slice_.id for slice_ in found.todo} >= set(found.slice_ids)
        for key in {slice_id.file_key for slice_id in found.slice_ids}:
            of_file = [slice_id for slice_id in found.slice_ids if slice_id.file_key == key]
            assert without_overlaps(of_file) == of_file
            assert sum(slice_id.rows for slice_id in of_file) == of_file[-1].stop_row
        committed |= {slice_.id for slice_ in found.todo}
        read += new


def test_what_was_extracted_for_a_trial_is_not_extracted_again(folder: Path):
    trial = plan(folder, set(), 5, a=12, b=1)
    committed = {slice_.id for slice_ in trial.todo}
    rest = ids_of(plan(folder, committed, 5, a=None, b=None))
    assert len(rest) == 2 * sum(map(len, ROWS)) - 13
    assert set(rest).isdisjoint(ids_of(trial))


def test_files_behind_the_limit_are_not_opened(folder: Path):
    opened = []

    def plan_files(files):
        opened.extend(Path(file.file.uri).name[0] for file, _ in files)
        return plan_here(files)

    sources = [SourceConfig(name="a", paths=[str(folder / "a")], limit=7)]
    found = make_plan(list_files(CorpusConfig(sources=sources)), set(), plan_files)
    assert opened == ["0"]
    assert [Path(file.file.uri).name[0] for file in found.files] == ["0"]
