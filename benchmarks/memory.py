"""Memory of processes, as Linux tells it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SELF = Path("/proc/self")


def memory_of(process: Path, field: str) -> int:
    """A field of /proc/PID/status in bytes: RssAnon is what a process has allocated, VmHWM the peak of all that was
    resident in it, mapped files and the pages of Ray's object store among it. Raises OSError where the process has
    gone."""
    for line in (process / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{process} has no {field}")  # it is just ending


@contextmanager
def peak_of(read: Callable[[], int], seconds: float) -> Iterator[dict[str, int]]:
    """The largest of what `read` answers while the block runs, asked every few `seconds`; `bytes` is there at the
    end."""
    peak, stop = {"bytes": 0}, threading.Event()

    def watch() -> None:
        while not stop.wait(seconds):
            peak["bytes"] = max(peak["bytes"], read())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
