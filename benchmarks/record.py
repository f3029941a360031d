"""The line that a benchmark prints last: one JSON record that says when, of which commit, on what machine and with
which versions."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def print_record(benchmark: str, packages: tuple[str, ...], **measured: Any) -> None:
    """To stdout, at once."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    about = {
        "benchmark": benchmark,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": _cpu(),
            "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30,
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
    print(json.dumps(about | measured), flush=True)


def _cpu() -> str:
    """The processor's name, and of its instruction sets what decides the speed of a matrix product."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    sets = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in found.get("flags", "").split()]
    return " ".join([found.get("model name", platform.processor()), *sets])
