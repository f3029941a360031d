"""Which tests need what, and a fence around those that need nothing but this process.

`cluster`: the test asks for the fixture `cluster`, or says by the marker that it starts a Ray of its own.
`heavy`: it starts a server or a browser (by fixture), or says by the marker that it starts another process, runs a
model or takes seconds. All others are unit tests (`make unit`).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import ray

HEAVY_FIXTURES = {"s3", "chromium"}


def mark(item: pytest.Item) -> None:
    """Marks a collected test by the fixtures that it comes to."""
    names = set(getattr(item, "fixturenames", ()))
    if "cluster" in names:
        item.add_marker("cluster")
    if names & HEAVY_FIXTURES:
        item.add_marker("heavy")


@contextmanager
def around(item: pytest.Item) -> Iterator[None]:
    """While the block runs, what the test did not ask for is refused.

    Ray looks as if it were not started, whichever test of this process started it before: what would start it, or
    would use the one that is there, comes to `ray.init`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not item.get_closest_marker("cluster"):
            patch.setattr(ray, "is_initialized", lambda: False)
            patch.setattr(ray, "init", _refuse(item, "starts Ray", _RAY))
            patch.setattr("ray._private.node.Node.__init__", _refuse(item, "starts a node of Ray", _RAY))
            if not item.get_closest_marker("heavy"):
                patch.setattr(subprocess.Popen, "__init__", _other_programs(_refuse(item, "starts Python", _PROCESS)))
        yield


_RAY = (
    "ask for the fixture `cluster` (one Ray for all tests of the process: @pytest.mark.usefixtures('cluster')), "
    "or mark it @pytest.mark.cluster where it starts a Ray of its own; a flow on Ray is tested in tests/stages, "
    "tests/end_to_end or tests/faults, and the pure function below it in the folder of its package"
)
_PROCESS = "mark it @pytest.mark.heavy (@pytest.mark.cluster where that process starts Ray), or call what it runs here"


def _other_programs(refuse: Callable[..., None]) -> Callable[..., None]:
    """Libraries look for others of the system's with small programs of its own: those run."""
    start = subprocess.Popen.__init__

    def started(self: subprocess.Popen[bytes], args: object, *more: object, **options: object) -> None:
        program = args if isinstance(args, str | os.PathLike) else next(iter(args), "")  # type: ignore[call-overload]
        (refuse if sys.executable in str(program) else start)(self, args, *more, **options)

    return started


def _refuse(item: pytest.Item, what: str, instead: str) -> Callable[..., None]:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"{item.nodeid} {what}, which it did not ask for: {instead}")

    return refuse
