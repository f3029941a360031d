"""Many tasks, a bounded number of them at a time, and what becomes of their results."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from scalselect_ray.cluster.session import cluster_cpus

Arguments = Sequence[tuple[Any, ...]]


def bounded_map(function: Any, arguments: Arguments, done: Callable[[int, Any], None]) -> None:
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


def in_order(function: Any, arguments: Arguments) -> list[Any]:
    """The results of all tasks."""
    results: list[Any] = [None] * len(arguments)

    def arrived(place: int, ref: Any) -> None:
        results[place] = ray.get(ref)

    bounded_map(function, arguments, arrived)
    return results


def summed(function: Any, arguments: Arguments) -> dict[Any, np.ndarray]:
    """The counts of all tasks by group, added as they arrive: a histogram of each part would be half a megabyte of the driver's memory."""
    total: dict[Any, np.ndarray] = {}

    def arrived(_: int, ref: Any) -> None:
        for group, counts in ray.get(ref).items():
            total[group] = total.get(group, 0) + counts

    bounded_map(function, arguments, arrived)
    return total


def dealt(function: Any, arguments: Arguments, hands: int) -> tuple[list[Any], list[list[Any]]]:
    """A shuffle: each task answers (facts, a table for each hand). All facts, and for each hand the references to its tables, in the
    order of the tasks. So each input is read once, however many hands there are.

    A table should be above 100 KB where there are many: Ray keeps what is smaller in the memory of this process.
    """
    facts: list[Any] = [None] * len(arguments)
    held: list[list[Any]] = [[None] * len(arguments) for _ in range(hands)]

    def arrived(place: int, refs: Any) -> None:
        facts[place] = ray.get(refs[0])
        for hand, ref in zip(held, refs[1:], strict=True):
            hand[place] = ref

    bounded_map(function.options(num_returns=1 + hands), arguments, arrived)
    return facts, held
