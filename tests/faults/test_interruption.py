"""Ctrl-C and SIGTERM (preemption, `ray job stop`): the process ends soon, says so, leaves what is committed and no
process behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import GOLDEN, write_config

pytestmark = pytest.mark.cluster  # of their own

DISTURBED = [sys.executable, str(Path(__file__).with_name("disturbed.py"))]
CORPUS = GOLDEN / "llava"


def processes(mark: str) -> dict[int, str]:
    """Ids and names of the living processes that inherited `mark` in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark.encode() in (folder / "environ").read_bytes()
                and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:
            continue
    return found


def wait_for(what: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    for _ in range(2400):
        if what():
            return
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("it does not come")


@pytest.mark.parametrize(
    ("number", "stage", "times"),
    [
        (signal.SIGTERM, "start of Ray", 1),
        (signal.SIGINT, "start of Ray", 1),
        (signal.SIGTERM, "extract", 1),
        (signal.SIGINT, "reduce", 3),
    ],
)
def test_an_interrupted_run_ends_soon_and_leaves_no_process(number, stage, times, tmp_path):
    sources = [{"name": "golden", "paths": [str(CORPUS / "samples.json")]}]
    output = tmp_path / "output"
    config = write_config(
        tmp_path, sources, CORPUS / "model", corpus={"sources": sources, "slice_rows": 1 if stage == "extract" else 12}
    )
    mark = f"SCALSELECT_TEST={uuid.uuid4()}"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | dict([mark.split("=")])
    command = [*DISTURBED, "hold", "run", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    reached = {
        "start of Ray": lambda: "gcs_server" in processes(mark).values(),
        "extract": lambda: len(list(output.glob("features/*/*.parquet"))) >= 2,
        "reduce": (output / "held").exists,
    }
    wait_for(reached[stage], process)
    before = {path: path.stat().st_mtime_ns for path in output.glob("features/*/*.parquet")}
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.3)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.rstrip().endswith("interrupted: what is committed stays, and the next run goes on from there"), said
    assert "Traceback" not in said
    assert "Exception" not in said
    wait_for(lambda: not processes(mark))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (output / "latest.json").exists()
