"""What all tests share."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import browser
import fence
import hypothesis
import mixed_corpus
import pytest
import ray

from scalselect_ray.cli import main
from scalselect_ray.testing import object_store

GOLDEN = Path(__file__).parent / "golden"  # committed with the project
DATA = Path(__file__).parent / "data"  # likewise
SHARED = Path(__file__).parents[2] / "shared"  # beside a checkout, where there is one

hypothesis.settings.register_profile("no clock", deadline=None)  # a machine may be busy
hypothesis.settings.load_profile("no clock")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fence.mark(item)
    items.sort(key=lambda item: item.path.name != "test_benchmarks.py")  # one process goes through it for minutes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with fence.around(item):  # around the whole protocol: a fixture of a module is set up outside of those of a test
        return (yield)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The large golden and real data beside the checkout; must be there in CI."""
    if not SHARED.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs {SHARED}")
        pytest.skip(f"no {SHARED}")  # a clone from elsewhere has no such folder; CI fails above
    return SHARED


@pytest.fixture(scope="session")
def s3() -> Iterator[object_store.ObjectStore]:
    """An S3 server with one bucket, `s3://bucket`; call its `clear` first."""
    with object_store.serve() as store:
        yield store


@pytest.fixture(scope="session")
def cluster(s3: object_store.ObjectStore) -> Iterator[None]:
    """One local Ray for all tests that run jobs in this process. Its workers know the S3 server."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    often = {"metrics_report_interval_ms": 1000}  # every 10 s otherwise: long to wait for
    kept = {
        "idle_worker_killing_time_threshold_ms": 60_000
    }  # as `session` sets it: new workers would import torch again
    ray.init(
        "local",
        num_cpus=3,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _system_config=often | kept,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "scalselect_ray.stages.finish.write_report", lambda output, record, console: None
        )  # tests/report makes its own
        yield
    ray.shutdown()


@pytest.fixture(scope="session")
def mixed(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> mixed_corpus.Selected:
    """A finished run over the mixed corpus, which chose most of it and all of its text-only samples."""
    folder = tmp_path_factory.mktemp("mixed")
    sources, rows = mixed_corpus.make(folder)
    selection = {"budget": 0.7, "text_only": "keep", "text_only_share": 1.0}
    assert main(["run", str(write_config(folder, sources, GOLDEN / "llava" / "model", selection=selection))]) == 0
    return mixed_corpus.Selected(folder / "output", folder, rows)


@pytest.fixture(scope="session")
def chromium() -> Iterator[browser.Browser]:
    """A headless Chromium; must be there in CI."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs Chromium: apt-get install chromium")
        pytest.skip("no Chromium here: apt-get install chromium")  # a laptop may have none; CI fails above
    with browser.start(program) as page:
        yield page


def write_config(folder: Path, sources: list[dict[str, object]], model: Path, **more: object) -> Path:
    """A config file for the job's command line."""
    config = {
        "corpus": {"sources": sources, "slice_rows": 10},
        "extractor": {"model": str(model), "dtype": "float32"},
        "selection": {"budget": 0.25},
        "output": str(folder / "output"),
        **more,
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path
