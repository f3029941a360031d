"""The record of a run: what `run.json` says."""

import json

import pytest
from conftest import DATA
from records import record_of

from scalselect_ray.errors import OutputError
from scalselect_ray.store.record import Angles, Change, RunRecord, to_bytes

CHANGE = Change(previous="p", kept=1, entered=2, left=3, principal_angles_degrees=Angles(mean=0.5, largest=2.0))


@pytest.mark.parametrize("change", [None, CHANGE, Change(previous="p", kept=1, entered=0, left=0,
                                                         principal_angles_degrees=None)])  # fmt: skip
def test_what_is_stored_comes_back(change):
    record = record_of(change=change, passed_over={"s": {".csv": 2}})
    assert RunRecord.from_json(json.loads(to_bytes(record)), "run.json") == record


def test_a_record_of_version_0_1_is_read():
    (stored,) = (DATA / "output-0.1" / "runs").glob("*/run.json")
    record = RunRecord.from_json(json.loads(stored.read_bytes()), str(stored))
    assert (record.scored, record.chosen, record.k, record.sources["golden"].chosen) == (27, 13, 3, 12)
    assert record.to_json() == json.loads(stored.read_bytes()) | {"filtered_out": {}, "lost": [], "passed_over": {}}


def test_another_version_is_refused_with_both_names():
    with pytest.raises(OutputError, match=r"run\.json.*scalselect\.run/9.*scalselect\.run/1"):
        RunRecord.from_json({**record_of().to_json(), "format": "scalselect.run/9"}, "run.json")


@pytest.mark.parametrize("damage", ["k", "sources", "slices", "budgets"])
def test_a_record_without_a_field_is_refused(damage):
    stored = record_of().to_json()
    del stored[damage]
    with pytest.raises(OutputError, match=f"no record of a run.*{damage}"):
        RunRecord.from_json(stored, "run.json")
