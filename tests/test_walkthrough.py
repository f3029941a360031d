"""Every command of conf/README.md, in order, and the lines of output that stand there."""

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
        assert [line for line in shown if line.split() not in printed] == []
