"""A test that does not ask for Ray or for another process gets neither, whatever ran before it in this process."""

import subprocess
import sys

import pytest
import ray
from ray.cluster_utils import Cluster


@ray.remote
def task() -> int:
    return 1


STARTS = {
    "ray.init": lambda: ray.init("local", num_cpus=1),
    "ray.init of an address": lambda: ray.init(address="127.0.0.1:6379"),
    "an object": lambda: ray.put(1),
    "a task": lambda: ray.get(task.remote()),
    "nodes of its own": lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 1}),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_ray_is_refused_with_the_way_to_get_it(start):
    with pytest.raises(pytest.fail.Exception, match=r"starts .*Ray.*the fixture `cluster`.*@pytest.mark.cluster"):
        start()
    assert not ray.is_initialized()


def test_another_process_is_refused_with_the_way_to_get_it():
    with pytest.raises(pytest.fail.Exception, match=r"starts Python.*@pytest.mark.heavy"):
        subprocess.run([sys.executable, "-c", ""], check=True)


@pytest.mark.heavy
def test_a_heavy_test_may_start_a_process_and_no_ray():
    subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(pytest.fail.Exception, match="starts Ray"):
        ray.init("local", num_cpus=1)


@pytest.mark.usefixtures("cluster")
def test_a_test_that_asks_for_ray_has_it(request):
    assert ray.get(task.remote()) == 1
    assert request.node.get_closest_marker("cluster")


@pytest.mark.parametrize("start", [STARTS["an object"], STARTS["a task"]])
def test_the_ray_of_a_test_before_is_refused_too(start):
    with pytest.raises(pytest.fail.Exception, match="the fixture `cluster`"):
        start()
