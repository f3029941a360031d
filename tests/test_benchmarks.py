"""The benchmarks run, small, so that they never rot."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_scaling_benchmark_runs():
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    script = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
    command = [sys.executable, str(script), "--dim", "16", "--rows", "2000", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    record = json.loads(done.stdout.splitlines()[-1])
    assert [result["rows"] for result in record["results"]] == [2000, 4000]
