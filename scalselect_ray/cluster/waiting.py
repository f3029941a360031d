"""What a run waits for, said while it waits: nodes that an autoscaler may bring, or that never come."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import ray

from scalselect_ray.config import WorkersConfig
from scalselect_ray.console import Console

EVERY_S = 60.0  # between two lines
_OPERATORS = ("!", "in(")  # of Ray's label selectors; all other values are labels as they stand


def missing_resources(workers: WorkersConfig) -> list[str]:
    """What the workers of a run ask for and no node of the cluster has now, in words; empty when all is there."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    missing = []
    gpus = workers.gpus_per_extractor or 0
    if gpus and not any(node["Resources"].get("GPU", 0) >= gpus for node in nodes):
        missing.append(f"a node with {gpus:g} GPU (workers.gpus_per_extractor)")
    for key in ("extractor_labels", "prepare_labels"):
        labels: Mapping[str, str] = getattr(workers, key)
        plain = {name: value for name, value in labels.items() if not value.startswith(_OPERATORS)}
        if not any(plain.items() <= node.get("Labels", {}).items() for node in nodes):
            told = ", ".join(f"{name}={value}" for name, value in plain.items())
            missing.append(f"a node with the labels {told} (workers.{key})")
    return missing


@contextmanager
def told_while(message: Callable[[], str | None], console: Console) -> Iterator[None]:
    """While the block runs, a line now and then with what `message` answers, unless that is None."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(EVERY_S):
            with suppress(Exception):  # a line is a courtesy: a cluster that is gone is told by the run itself
                if text := message():
                    console.note(text)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
