"""A cluster is shared: runs that start at once, resources that are not there, an address with nobody behind it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import GOLDEN, write_config
from ray.cluster_utils import Cluster

from scalselect_ray.testing.object_store import free_port

pytestmark = pytest.mark.cluster  # of their own

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
RUN = """
import sys
from scalselect_ray.cluster import waiting
from scalselect_ray.stages import extract
waiting.EVERY_S = extract.EVERY_S = 2.0
from scalselect_ray.cli import main
sys.exit(main(["run", *sys.argv[1:]]))
"""


@pytest.fixture
def two_cpus() -> Iterator[str]:
    """The address of a cluster of one node with two CPUs."""
    node = {"num_cpus": 2, "object_store_memory": 200 << 20, "dashboard_agent_listen_port": free_port()}
    started = Cluster(initialize_head=True, head_node_args=node)
    yield started.address
    started.shutdown()


def config_in(folder: Path) -> Path:
    folder.mkdir()
    source = {"name": "s", "paths": [str(CORPUS / "samples.json")], "image_root": str(CORPUS)}
    return write_config(folder, [source], MODEL, corpus={"sources": [source], "slice_rows": 4})


def start(address: str, config: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = [sys.executable, "-c", RUN, str(config), *overrides]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_three_runs_at_once_on_two_cpus_all_come_to_their_end(two_cpus, tmp_path):
    """Each starts an extractor before its readers; the third asks for a GPU that never comes, and says so."""
    configs = [config_in(tmp_path / name) for name in ("one", "two", "waiting")]
    waiting = start(two_cpus, configs[2], "workers.gpus_per_extractor=1")
    runs = [start(two_cpus, config) for config in configs[:2]]
    try:
        for run in runs:
            _, said = run.communicate(timeout=400)
            assert run.returncode == 0, said
        time.sleep(3)
        waiting.send_signal(2)
        _, said = waiting.communicate(timeout=60)
    finally:
        for run in (*runs, waiting):
            run.kill()
    assert waiting.returncode == 130
    assert "extract waits for a node with 1 GPU (workers.gpus_per_extractor): the cluster has none now" in said
    outputs = [config.parent / "output" for config in configs]
    records = [
        json.loads(
            (output / "runs" / json.loads((output / "latest.json").read_text())["run_id"] / "run.json").read_text()
        )
        for output in outputs[:2]
    ]
    assert [record["scored"] for record in records] == [24, 24]
    assert not list(outputs[2].glob("features/*/*.parquet"))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("workers.gpus_per_extractor=1", "workers.gpus_per_extractor"),
        ("workers.extractor_labels={pool: nowhere}", "pool=nowhere (workers.extractor_labels)"),
        ("workers.prepare_labels={pool: nowhere}", "pool=nowhere (workers.prepare_labels)"),
    ],
)
def test_what_a_machine_cannot_give_is_said_before_any_work(override, named, tmp_path, monkeypatch, capsys):
    config = config_in(tmp_path / "run")
    command = [sys.executable, "-m", "scalselect_ray", "run", str(config), override]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert named in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "somebody who never answers"])
def test_an_address_with_no_cluster_behind_it_is_told_soon(listens, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        run = start(address, config_in(tmp_path / "run"))
        _, said = run.communicate(timeout=120)
    assert run.returncode == 1, said
    assert time.monotonic() - started < 90, "15 s of patience, and the imports of a busy machine"
    lines = said.splitlines()
    assert lines[0] == f"joining the Ray cluster at RAY_ADDRESS={address}"
    assert "nothing answers there as the head of a Ray cluster" in said.replace("\n", " ")
    assert "rpc_client" not in said
    assert "Traceback" not in said
