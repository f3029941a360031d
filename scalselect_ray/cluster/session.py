"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
from ray._private import worker
from ray.data import DataContext
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from scalselect_ray.console import Console
from scalselect_ray.errors import ClusterError, ScalSelectError
from scalselect_ray.io.machine import total_memory

_REACHED_S = 15  # a head that answers later is not up
_SMALL = 8 << 30  # bytes of a machine on which Ray's own share for its object store, 30%, is wanted by processes
_LEAST_STORE = 256 << 20
ATTEMPTS = 5
"""How often a task may take its worker with it: one that does so each time would be tried forever."""


@contextmanager
def session(console: Console) -> Iterator[bool]:
    """Ray while the block runs: the cluster of RAY_ADDRESS (set inside a submitted job), one that is already joined, or
    a local one. Gives whether it may grow: a local one, that was started here, never does.

    Ray's own progress output is off. Raises ClusterError where the cluster cannot be joined.
    """
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        address = os.environ.get("RAY_ADDRESS")
        # Without an address Ray would also wait for one that a killed cluster left behind on this machine: "local"
        # never does.
        where: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
        if not address and total_memory() < _SMALL:
            where["object_store_memory"] = max(_LEAST_STORE, total_memory() // 16)
        os.environ.setdefault("RAY_task_oom_retries", str(ATTEMPTS))
        # Ray ends a worker that idles for a second where there are more of them than CPUs; each new one would first
        # import torch.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
        try:
            if address:
                console.note(f"joining the Ray cluster at RAY_ADDRESS={address}")
                _check_reachable(address)
            with _interruptible(), _without_native_output():
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **where)
        except Exception as error:  # Ray raises what it likes, a bare Exception where a machine is slow
            what = (
                f"the Ray cluster at RAY_ADDRESS={address} cannot be joined"
                if address
                else "Ray does not start on this machine"
            )
            raise ClusterError(f"{what}: {error}") from error
    # What a task raises is met where its result is wanted; of the others it would print a trace when they are let go.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = 3  # a node can go away while its actor starts
    context.raise_original_map_exception = True  # a wrapped one would lose its kind on the way here
    warnings.filterwarnings(
        "ignore", "`ray_remote_args` is deprecated"
    )  # Ray Data has no other way yet to bound a task's attempts
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it would print a trace of what is raised here anyway
    if not ours:
        yield True
        return
    with _without_reports():
        try:
            yield bool(os.environ.get("RAY_ADDRESS"))
        finally:
            ray.shutdown()  # which prints what was held back


def _check_reachable(address: str) -> None:
    """That somebody answers at host:port as a head does: Ray itself would ask for minutes. Raises ConnectionError."""
    if not re.fullmatch(r"[^/]+:\d+", address) or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=_REACHED_S)
    except grpc.FutureTimeoutError as error:
        raise ConnectionError(
            f"nothing answers there as the head of a Ray cluster within {_REACHED_S} s; is it up, and is the port the "
            "one of its GCS (6379 by default)?"
        ) from error
    finally:
        channel.close()


@contextmanager
def own_errors() -> Iterator[None]:
    """An error of ours that is raised inside a task comes out of the block as itself; one of Ray's about machines and
    processes as a ClusterError."""
    try:
        yield
    except RayError as error:
        raise _own(error) or _of_the_cluster(error) or error from None


def is_lost_worker(error: RayError) -> bool:
    """Whether it is a worker, an actor, a node or an object that is gone for good, and no error of a task."""
    return _own(error) is None and _of_the_cluster(error) is not None


def cluster_cpus() -> int:
    """CPUs of the whole cluster, 1 at least."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def cluster_gpus() -> int:
    """GPUs of the whole cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def node_memories() -> list[int]:
    """Bytes that each node lends to tasks and actors."""
    return [int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]]


@contextmanager
def _without_native_output() -> Iterator[None]:
    """Ray's native code says on stderr, past Python, at which level it logs. What goes wrong is raised."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Ray prints on stdout of a driver, whatever it is told about logs, pages about each worker that was lost: of no
    use where the run goes on, and where it does not what was lost is raised."""
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = True


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ray puts its own handler in the place of a process's for SIGTERM: an interruption is one here as everywhere
    else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _of_the_cluster(error: BaseException | None) -> ClusterError | None:
    """What people need to know of a worker, actor, node or object that is gone for good."""
    while error is not None:
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            if isinstance(error, OutOfMemoryError):
                said = str(error).partition("\n")[0]
                cure = (
                    "give its machine more memory, or cut what is left into smaller slices (corpus.slice_rows, "
                    "corpus.slice_bytes)"
                )
            else:
                said = " ".join(str(error).split("\n\n")[0].split())[:600]
                cure = (
                    "Ray's logs say why; where the machine ran out of memory, give it more, or cut what is left into "
                    "smaller slices (corpus.slice_rows, corpus.slice_bytes)"
                )
            return ClusterError(
                f"something of the run was lost again and again: {said}",
                f"Next: {cure}; run again: what is committed stays and is not paid for again",
            )
        cause = getattr(error, "cause", None)
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None


def _own(error: BaseException | None) -> ScalSelectError | None:
    """The error of ours that one of Ray's carries from a task."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ScalSelectError):
            cause.args = tuple(
                str(item).partition("\nFailed to apply UDF")[0] for item in cause.args
            )  # Ray Data adds its own advice
            return cause
        error = cause if isinstance(cause, BaseException) else error.__cause__
    return None
