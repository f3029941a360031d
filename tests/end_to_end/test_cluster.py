"""The job on clusters of several nodes: submitted, with nodes, actors and workers that go away in the middle, and with
an autoscaler."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from conftest import GOLDEN, write_config
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient

from scalselect_ray.cli import main
from scalselect_ray.testing.object_store import free_port

pytestmark = pytest.mark.cluster  # nodes of their own

RAYLET = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
PROJECT = Path(__file__).parents[2]
CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = (
    json.loads((CORPUS / "samples.json").read_text()) * 15
)  # 360 samples in 45 slices: long enough for something to happen


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory, cluster) -> pa.Table:
    """The scores of the same corpus in one undisturbed process."""
    config = config_in(tmp_path_factory.mktemp("undisturbed"), corpus)
    assert main(["run", str(config)]) == 0
    return latest(config)[1]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that does no work, with its dashboard, and two nodes of two CPUs."""
    head = {
        "num_cpus": 0,
        "include_dashboard": True,
        "dashboard_port": 0,
        "object_store_memory": 200 << 20,
        "dashboard_agent_listen_port": free_port(),  # the default is another Ray's on this machine
    }
    started = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        add_node(started)
    started.wait_for_nodes()
    yield started
    started.shutdown()


def add_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=2, object_store_memory=200 << 20)


def config_in(folder: Path, corpus: Path) -> Path:
    source = {"name": "made", "paths": [str(corpus)], "image_root": str(CORPUS)}
    return write_config(folder, [source], MODEL, corpus={"sources": [source], "slice_rows": 8})


def latest(config: Path) -> tuple[dict, pa.Table]:
    output = config.parent / "output"
    folder = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    return json.loads((folder / "run.json").read_text()), pq.read_table(folder / "scores")


def run_on(address: str, config: Path, meanwhile: Callable[[], None] = lambda: None, *overrides: str) -> str:
    """Runs the job on a cluster by RAY_ADDRESS; calls `meanwhile` once some slices are committed; answers what is
    printed."""
    command = [sys.executable, "-m", "scalselect_ray", "run", str(config), *overrides]
    environment = {**os.environ, "RAY_ADDRESS": address}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=PROJECT) as process:
        try:
            wait_for(
                lambda: (
                    process.poll() is not None
                    or len(list((config.parent / "output").glob("features/*/*.parquet"))) >= 5
                )
            )
            assert process.poll() is None, process.communicate()[1]
            meanwhile()
            _, said = process.communicate(timeout=400)
        finally:
            process.kill()
    assert process.returncode == 0, said
    return str(said)


def wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def below(process: psutil.Process, *names: str) -> list[psutil.Process]:
    """Descendants whose command line starts with one of the names, as Ray titles its workers."""
    found = []
    for child in process.children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(names):
                found.append(child)
        except psutil.Error:
            continue
    return found


def raylets(cluster: Cluster) -> list[psutil.Process]:
    return [
        psutil.Process(info.process.pid)
        for node in cluster.list_all_nodes()
        for info in node.all_processes.get("raylet", [])
        if info.process.poll() is None
    ]


def check(config: Path, expected: pa.Table) -> None:
    record, scores = latest(config)
    assert scores.select(["row", "score"]).equals(expected.select(["row", "score"])), "the same bits as in one process"
    assert record["slices"] == {"total": 45, "extracted": 45, "moments_reused": 0}
    committed = [path.name for path in (config.parent / "output").glob("features/*/*.parquet")]
    assert len(committed) == 45
    assert sum(
        pq.read_metadata(path).num_rows for path in (config.parent / "output").glob("features/*/*.parquet")
    ) == len(ROWS)


def test_a_submitted_job_joins_its_cluster_and_gives_the_same_bits(nodes, corpus, expected, tmp_path):
    client = JobSubmissionClient(f"http://{nodes.webui_url}")
    config = config_in(tmp_path, corpus)
    job = ""

    def submitted() -> bool:
        nonlocal job
        try:
            job = client.submit_job(
                entrypoint=f"{sys.executable} -m scalselect_ray run {config}",
                runtime_env={"working_dir": str(PROJECT), "excludes": ["tests", ".venv", ".git", "benchmarks"]},
            )
        except RuntimeError as error:
            if "No available agent" not in str(error):  # it comes a little after the head
                raise
            time.sleep(1)
        return bool(job)

    wait_for(submitted)
    wait_for(lambda: client.get_job_status(job).is_terminal(), 400)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    check(config, expected)
    log = client.get_job_logs(job)
    assert "chosen" in log
    assert "Traceback" not in log
    assert "Started a local Ray instance" not in log
    assert len(log.splitlines()) < 60, log


def test_a_node_that_leaves_in_the_middle_changes_nothing(nodes, corpus, expected, tmp_path):
    config = config_in(tmp_path, corpus)
    leaving = next(iter(nodes.worker_nodes))
    said = run_on(nodes.address, config, lambda: nodes.remove_node(leaving))
    add_node(nodes)
    check(config, expected)
    assert "Traceback" not in said


def test_a_folder_that_a_node_does_not_share_is_refused_before_anything_is_paid_for(nodes, corpus, tmp_path):
    """Both nodes are this machine: what only one of them sees is told by a path that none has."""
    code = (
        "import ray, sys; from scalselect_ray.cluster.preflight import missing_by_node\n"
        "ray.init(logging_level='ERROR', log_to_driver=False)\n"
        "nodes = [node['NodeID'] for node in ray.nodes() if node['Alive'] and node['Resources'].get('CPU')]\n"
        "print(missing_by_node(nodes, sys.argv[1:]))\n"
    )
    environment = {**os.environ, "RAY_ADDRESS": nodes.address}
    command = [sys.executable, "-c", code, str(corpus), "/nowhere/output"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[{'/nowhere/output'}, {'/nowhere/output'}]"


@pytest.fixture
def autoscaler(tmp_path, cluster) -> Iterator[str]:
    """The address of a head whose autoscaler starts nodes with a GPU (that is none) when they are asked for.

    It and its drivers authenticate alike, by what the Ray of this process has put into the environment.
    """
    port = free_port()
    provider = {
        "type": "external",
        "module": "fake_nodes.Provider",
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": f"127.0.0.1:{port}",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    node_types = {
        "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1, "memory": 8 << 30},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    }
    config = {
        "cluster_name": "fake",
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": node_types,
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    (tmp_path / "cluster.yaml").write_text(json.dumps(config))
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
        f"--autoscaling-config={tmp_path / 'cluster.yaml'}",
        "--object-store-memory=200000000",
    ]
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_for(lambda: bool(below(psutil.Process(process.pid), str(RAYLET))))
        yield f"127.0.0.1:{port}"
    finally:
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            member.kill()
        process.wait()


def test_extractors_scale_up_with_the_clusters_autoscaler(autoscaler, corpus, expected, tmp_path):
    """The cluster has no GPU when the job starts."""
    config = config_in(tmp_path, corpus)
    run_on(autoscaler, config, lambda: None, "workers.gpus_per_extractor=1", "workers.max_extractors=2")
    check(config, expected)
