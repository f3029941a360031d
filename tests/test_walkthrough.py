"""Every command of conf/README.md, in order, and the lines of output that stand there."""

import math
import re
import shlex
import shutil
from pathlib import Path

from scalselect_ray.cli import main

PAGE = Path(__file__).parents[1] / "conf" / "README.md"


def steps() -> list[tuple[list[str], list[str]]]:
    """Commands with the lines that are shown below each."""
    found: list[tuple[list[str], list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((shlex.split(line[2:]), []))
            else:
                found[-1][1].append(line)
    return found


def alike(shown: list[str], printed: list[str]) -> bool:
    """Whether two lines have the same words; fractions may differ by 1%, as bfloat16 does between processors."""
    if len(shown) != len(printed):
        return False
    for ours, theirs in zip(shown, printed, strict=True):
        fractions = [re.fullmatch(r"[(]?(\d*\.\d+)[)%;,]*", word) for word in (ours, theirs)]
        if not (
            ours == theirs or (all(fractions) and math.isclose(*(float(item[1]) for item in fractions), rel_tol=0.01))
        ):
            return False
    return True


def test_the_walkthrough_runs_as_it_stands(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    walked = steps()
    assert len(walked) >= 10
    for (program, *arguments), shown in walked:
        if program == "cp":
            shutil.copy(*arguments)
            continue
        assert program == "scalselect"
        assert main(arguments) == 0, arguments
        printed = [line.split() for line in capsys.readouterr().err.splitlines()]
        assert [line for line in shown if not any(alike(line.split(), other) for other in printed)] == []
