"""The random driver, for thirty steps: after each, what is there equals a run from scratch. By command it goes on for a
night: `benchmarks/random_driver.py`."""

from pathlib import Path

import pytest

from scalselect_ray.stages import select

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


def test_the_driver_finds_a_sample_too_many(random_driver, tmp_path, monkeypatch):
    resolve = select.resolve_budget
    monkeypatch.setattr(select, "resolve_budget", lambda *given: resolve(*given) + 1)
    driver = random_driver.Driver(tmp_path, seed=79)
    with pytest.raises(random_driver.FindingError, match="--seed 79 --steps 1: "):
        driver.play(1)
