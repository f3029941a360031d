"""The command line, and what befalls it: python disturbed.py DISTURBANCE run CONFIG ...

kill:STAGE:N[:SIGNAL]   this process gets the signal (SIGKILL) when STAGE advances for the Nth time
hold           the first leaf tasks of the reduce write OUTPUT/held and go on for ever
node           two nodes; the raylet of the second is killed (-9) after three commits
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import ray

from scalselect_ray import console
from scalselect_ray.cli import main
from scalselect_ray.io import storage
from scalselect_ray.stages import reduce


def kill(stage: str, number: int, signal_name: str = "SIGKILL") -> None:
    advance = console.Stage.advance
    seen = 0

    def counted(self: console.Stage, count: int, rejects: int = 0) -> None:
        nonlocal seen
        advance(self, count, rejects)
        seen += self.name == stage
        if seen == number:
            os.kill(os.getpid(), signal.Signals[signal_name])

    console.Stage.advance = counted  # type: ignore[method-assign]


def hold() -> None:
    def leaf(store, slice_ids, transform):
        storage.write(storage.join(store.output.uri, "held"), b"")
        time.sleep(3600)

    reduce._leaf = ray.remote(leaf)


def node(output: Path) -> None:
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "_system_config": quick, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=2)
    os.environ["RAY_ADDRESS"] = cluster.address

    def watch() -> None:
        while len(list(output.glob("features/*/*.parquet"))) < 3:
            time.sleep(0.05)
        second.kill_raylet()

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    what, *details = sys.argv[1].split(":")
    if what == "kill":
        kill(details[0], int(details[1]), *details[2:])
    elif what == "hold":
        hold()
    elif what == "node":
        node(Path(details[0]))
    sys.exit(main(sys.argv[2:]))
