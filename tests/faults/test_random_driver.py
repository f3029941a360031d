"""The random driver, for thirty steps: after each, what is there equals a run from scratch. By command it goes on for a
night: `benchmarks/random_driver.py`."""

import hashlib
from pathlib import Path

import pytest

from scalselect_ray.corpus import CorpusFile

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.heavy]  # one step kills a process of its own


@pytest.fixture
def random_driver(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import random_driver

    return random_driver


def test_thirty_random_steps_end_as_runs_from_scratch_do(random_driver, tmp_path):
    driver = random_driver.Driver(tmp_path, seed=25330)  # it has a step of almost every kind, and ends with a run
    driver.play(30)
    assert driver.counts["runs compared"] >= 8, "\n".join(driver.played)


def test_the_driver_finds_features_of_another_version_of_a_file(random_driver, tmp_path, monkeypatch):
    key = property(lambda file: hashlib.sha256(file.file.uri.encode()).hexdigest()[:16])  # whatever the file holds
    monkeypatch.setattr(CorpusFile, "key", key)
    driver = random_driver.Driver(tmp_path, seed=79)
    with pytest.raises(random_driver.FindingError, match=r"(?s)--seed 79 --steps 3: .*2 run"):
        driver.play(5)
