"""Many tasks, a bounded number of them at a time, and what becomes of their results."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError
from threadpoolctl import threadpool_limits

from scalselect_ray.cluster.session import cluster_cpus
from scalselect_ray.errors import DamagedObjectError

Arguments = Sequence[tuple[Any, ...]]
_LEAST = 32  # tasks in flight
_LOOK_S = 2.0  # between two looks at the cluster


def completed(function: Any, arguments: Arguments) -> Iterator[tuple[int, Any]]:
    """Runs one task for each tuple of arguments, and gives (index, ref or refs) as each ends, in any order.

    At most twice as many are in flight as there are CPUs, or a few dozen: from these an autoscaler sees that nodes are
    wanted."""
    waiting = list(enumerate(arguments))[::-1]
    running: dict[Any, tuple[int, Any]] = {}
    limit, until = 0, 0.0
    while waiting or running:
        if time.monotonic() >= until:  # the cluster may have grown
            limit, until = max(2 * cluster_cpus(), _LEAST), time.monotonic() + _LOOK_S
        while waiting and len(running) < limit:
            index, items = waiting.pop()
            refs = function.remote(*items)
            running[refs[0] if isinstance(refs, list) else refs] = (index, refs)
        ready, _ = ray.wait(list(running), num_returns=1, fetch_local=False)  # a result stays where it is
        for ref in ready:
            yield running.pop(ref)


def in_order(function: Any, arguments: Arguments, advance: Callable[[int], None] = lambda tasks: None) -> list[Any]:
    """The results of all tasks; `advance` hears of each that ends."""
    results: list[Any] = [None] * len(arguments)
    for index, ref in completed(function, arguments):
        results[index] = ray.get(ref)
        advance(1)
    return results


def shuffle(function: Any, arguments: Arguments, partitions: int) -> tuple[list[Any], list[list[ObjectRef[Any]]]]:
    """Each task returns (facts, a table for each partition). All facts, and for each partition the references to its
    tables, in the order of the tasks. So each input is read once, however many partitions there are.

    A table should be above 100 KB where there are many: Ray keeps what is smaller in the memory of this process.
    """
    facts: list[Any] = [None] * len(arguments)
    tables: list[list[ObjectRef[Any]]] = [[None] * len(arguments) for _ in range(partitions)]
    for index, refs in completed(function.options(num_returns=1 + partitions), arguments):
        facts[index] = ray.get(refs[0])
        for partition, ref in zip(tables, refs[1:], strict=True):
            partition[index] = ref
    return facts, tables


class Damage:
    """What tasks find damaged of what is stored: all of it is known before a run gives up and makes it anew."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def among(self, ref: ObjectRef[Any]) -> bool:
        """Whether a task, of which `ref` is a result, or one before it has met damage. Raises what else ended the
        task."""
        try:
            ray.get(ref)
        except RayTaskError as error:
            if not isinstance(error.cause, DamagedObjectError):
                raise
            self._found |= error.cause.damage
        return bool(self._found)

    def check(self) -> None:
        """Raises DamagedObjectError that names everything that was found."""
        if self._found:
            (uri, problem), *others = self._found.items()
            raise DamagedObjectError(uri, problem, dict(others))


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products of the block use one thread: with more, the last bits of a sum would depend on the machine."""
    with threadpool_limits(1, "blas"):
        yield
