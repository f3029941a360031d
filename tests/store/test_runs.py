"""The runs below an output folder."""

import os
from datetime import UTC, datetime, timedelta

import pytest
from records import record_of

from scalselect_ray.corpus import CorpusFile
from scalselect_ray.io import storage
from scalselect_ray.io.listing import expand
from scalselect_ray.store.layout import Output
from scalselect_ray.store.runs import Runs

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(Output(str(tmp_path)))


def finished(runs: Runs, now: datetime, tail: str = "00000000") -> str:
    run_id = runs.new_id(now, tail)
    runs.finish(record_of(run_id))
    return run_id


def test_an_id_tells_when_its_run_began(runs):
    run_id = runs.new_id(NOON, "0123abcd")
    assert run_id == "20260301T120000000Z-0123abcd"
    assert runs.began(run_id) == NOON


@pytest.mark.parametrize("back", [timedelta(0), timedelta(milliseconds=1), timedelta(days=400)])
def test_a_clock_that_went_back_hides_no_run(runs, back):
    first = finished(runs, NOON, "ffffffff")
    second = finished(runs, NOON - back, "00000000")
    assert runs.latest() == second > first
    third = finished(runs, NOON - 2 * back)
    assert runs.names() == [first, second, third]
    assert runs.latest() == third
    assert finished(runs, NOON + timedelta(days=1)) == "20260302T120000000Z-00000000", (
        "a clock that is right again is taken at its word"
    )


def test_a_run_that_never_finished_counts_for_the_order_but_is_not_the_latest(runs):
    first = finished(runs, NOON)
    abandoned = runs.new_id(NOON + timedelta(hours=1), "00000000")
    storage.write(runs.folder(abandoned).part("scores", 0), b"")
    assert runs.latest() == first
    assert finished(runs, NOON) > abandoned


def test_a_file_with_an_older_time_is_another_version(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[1]")
    (source,) = [CorpusFile("s", file, "/", 10, 100) for file in expand(str(path)).files]
    os.utime(path, (1, 1))
    (older,) = [CorpusFile("s", file, "/", 10, 100) for file in expand(str(path)).files]
    assert older.key != source.key
