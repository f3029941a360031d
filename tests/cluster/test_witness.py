"""The witness of a run outlives its process."""

import time

import pytest
import ray

from scalselect_ray.cluster.witness import new_witness, witnessed
from scalselect_ray.corpus import SliceId

ONE, OTHER = SliceId("k", 0, 5, 10), SliceId("k", 5, 10, 10)


@pytest.mark.usefixtures("cluster")
def test_a_witness_whose_process_is_lost_goes_on_and_takes_no_worker_along():
    witness = new_witness()
    with witnessed(witness, ONE):
        ray.kill(witness, no_restart=False)
    deadline = time.monotonic() + 60
    while ray.get(witness.suspects.remote()) != [OTHER]:  # the kill may come between two calls, and forget the first
        assert time.monotonic() < deadline
        ray.get(witness.begin.remote(OTHER))
