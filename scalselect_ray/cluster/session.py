"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import RayError

from scalselect_ray.errors import ClusterError, ScalSelectError


@contextmanager
def session() -> Iterator[None]:
    """Ray while the block runs: the cluster of RAY_ADDRESS (set inside a submitted job), one that is already joined, or a local one.

    Ray's own progress output is off.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        address = os.environ.get("RAY_ADDRESS")
        # Without an address Ray would also wait for one that a killed cluster left behind on this machine: "local" never does.
        where: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
        except (ConnectionError, RuntimeError, ValueError) as error:
            what = f"the Ray cluster at RAY_ADDRESS={address} cannot be joined" if address else "Ray does not start on this machine"
            raise ClusterError(f"{what}: {error}") from error
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = 3  # a node can go away while its actor starts
    context.raise_original_map_exception = True  # a wrapped one would lose its kind on the way here
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it would print a trace of what is raised here anyway
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def own_errors() -> Iterator[None]:
    """An error of ours that is raised inside a task comes out of the block as itself."""
    try:
        yield
    except RayError as error:
        raise _own(error) or error from None


def cluster_cpus() -> int:
    """CPUs of the whole cluster, 1 at least."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def node_memory() -> int:
    """Bytes that the largest node lends to tasks and actors."""
    return max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])


def bounded_map(function: Any, arguments: Sequence[tuple[Any, ...]], done: Callable[[int, Any], None]) -> None:
    """Runs one task for each tuple of arguments, twice as many at a time as there are CPUs, and hands (place, ref or refs) to `done`
    as each ends, in any order. What is in flight stays bounded however many there are."""
    limit = 2 * cluster_cpus()
    waiting = list(enumerate(arguments))[::-1]
    running: dict[Any, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and len(running) < limit:
            place, items = waiting.pop()
            refs = function.remote(*items)
            running[refs[0] if isinstance(refs, list) else refs] = (place, refs)
        ready, _ = ray.wait(list(running), num_returns=1)
        for ref in ready:
            done(*running.pop(ref))


def _own(error: BaseException | None) -> ScalSelectError | None:
    """The error of ours that one of Ray's carries from a task."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ScalSelectError):
            cause.args = tuple(str(item).partition("\nFailed to apply UDF")[0] for item in cause.args)  # Ray Data adds its own advice
            return cause
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None
