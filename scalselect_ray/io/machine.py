"""The machine that this process is on, or the container that it is in."""

import os
from contextlib import suppress
from pathlib import Path


def total_memory() -> int:
    """Bytes in all."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):  # no such file, or `max`
            limits.append(int(path.read_text()))
    return min(limits)
