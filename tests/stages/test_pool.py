"""How many extractors and readers a run has."""

import pytest

from scalselect_ray.config import WorkersConfig
from scalselect_ray.stages.extract import pool_size, prepare_bytes


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "expected"),
    [
        pytest.param(1, 0, {}, (1, 1, 0.0, 1), id="one CPU is shared by an extractor and a reader"),
        pytest.param(2, 0, {}, (1, 1, 0.0, 1), id="a laptop"),
        pytest.param(8, 0, {}, (1, 7, 0.0, 1), id="CPUs alone"),
        pytest.param(8, 0, {"cpus_per_extractor": 2}, (1, 3, 0.0, 2), id="two CPUs an extractor"),
        pytest.param(2, 0, {"min_extractors": 2}, (2, 2, 0.0, 1), id="as many extractors as CPUs"),
        pytest.param(16, 2, {}, (1, 2, 1.0, 14), id="GPUs"),
        pytest.param(16, 1, {"gpus_per_extractor": 0.25}, (1, 4, 0.25, 12), id="a shared GPU"),
        pytest.param(
            4, 0, {"max_extractors": 64, "gpus_per_extractor": 1}, (1, 64, 1, None), id="GPUs that come when asked"
        ),
    ],
)
def test_the_size_of_a_pool_follows_the_cluster(cpus, gpus, workers, expected):
    size = pool_size(WorkersConfig(**workers), cpus, gpus)
    assert (size.least, size.most, size.gpus_each, size.readers) == expected


GIB = 1 << 30


@pytest.mark.parametrize(
    ("nodes", "at_once"),
    [
        pytest.param([2.4], 1, id="all on a node of 4 GiB"),
        pytest.param([5], 3, id="all on a laptop"),
        pytest.param([0.4], 1, id="rather tight than never"),
        pytest.param([45], 39, id="all on a server"),
        pytest.param([2.4, 2.4], 2, id="nodes that share the work"),
        pytest.param([1, 45], 40, id="nodes of two sizes"),
    ],
)
def test_so_many_prepare_tasks_run_at_once_as_a_node_has_memory_for(nodes, at_once):
    asked = prepare_bytes([int(node * GIB) for node in nodes])
    assert max(int(node * GIB) for node in nodes) // asked == at_once


def test_of_nodes_that_lend_no_memory_none_is_asked():
    assert prepare_bytes([0, 0]) == 0
