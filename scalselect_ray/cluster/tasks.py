"""Many tasks, a bounded number of them at a time, and what becomes of their results."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from scalselect_ray.cluster.session import cluster_cpus

Arguments = Sequence[tuple[Any, ...]]
_LEAST = 32  # tasks in flight
_LOOK_S = 2.0  # between two looks at the cluster


def completed(function: Any, arguments: Arguments) -> Iterator[tuple[int, Any]]:
    """Runs one task for each tuple of arguments, and gives (place, ref or refs) as each ends, in any order.

    At most twice as many are in flight as there are CPUs, or a few dozen: from these an autoscaler sees that nodes are
    wanted."""
    waiting = list(enumerate(arguments))[::-1]
    running: dict[Any, tuple[int, Any]] = {}
    limit, until = 0, 0.0
    while waiting or running:
        if time.monotonic() >= until:  # the cluster may have grown
            limit, until = max(2 * cluster_cpus(), _LEAST), time.monotonic() + _LOOK_S
        while waiting and len(running) < limit:
            place, items = waiting.pop()
            refs = function.remote(*items)
            running[refs[0] if isinstance(refs, list) else refs] = (place, refs)
        ready, _ = ray.wait(list(running), num_returns=1, fetch_local=False)  # a result stays where it is
        for ref in ready:
            yield running.pop(ref)


def in_order(function: Any, arguments: Arguments, advance: Callable[[int], None] = lambda tasks: None) -> list[Any]:
    """The results of all tasks; `advance` hears of each that ends."""
    results: list[Any] = [None] * len(arguments)
    for place, ref in completed(function, arguments):
        results[place] = ray.get(ref)
        advance(1)
    return results


def dealt(function: Any, arguments: Arguments, hands: int) -> tuple[list[Any], list[list[Any]]]:
    """A shuffle: each task returns (facts, a table for each hand). All facts, and for each hand the references to its
    tables, in the order of the tasks. So each input is read once, however many hands there are.

    A table should be above 100 KB where there are many: Ray keeps what is smaller in the memory of this process.
    """
    facts: list[Any] = [None] * len(arguments)
    held: list[list[Any]] = [[None] * len(arguments) for _ in range(hands)]
    for place, refs in completed(function.options(num_returns=1 + hands), arguments):
        facts[place] = ray.get(refs[0])
        for hand, ref in zip(held, refs[1:], strict=True):
            hand[place] = ref
    return facts, held
