"""The command line itself: what it tells of itself, to a person and to a shell."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import command_line, main
from scalselect_ray.console import Console

VERBS = ("init", "plan", "run", "status", "explain", "report", "export", "clean", "assemble-llava", "demo")


def usage(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_tells_of_itself_with_examples_that_can_be_typed(verb: str, capsys: pytest.CaptureFixture[str]):
    text = usage(capsys, verb)
    assert "--json" in text
    examples = [shlex.split(line) for line in text.partition("examples:\n")[2].splitlines() if line.strip()]
    assert len(examples) >= 2
    for program, *arguments in examples:
        assert program == "scalselect"
        assert arguments[0] == verb
        assert command_line().parse_args(arguments).verb.__name__ == f"_{verb.replace('-', '_')}"


def test_the_main_help_tells_of_all_verbs_and_of_completion(capsys: pytest.CaptureFixture[str]):
    text = usage(capsys)
    assert all(re.search(rf"\n    {verb}\s", text) for verb in VERBS)
    assert 'eval "$(register-python-argcomplete scalselect)"' in text


@pytest.mark.heavy
def test_help_and_a_refused_config_wait_for_no_library_of_a_run(tmp_path: Path):
    config = write_config(tmp_path, [{"name": "a", "paths": ["a.json"]}], tmp_path, selection={"budget": -1})
    code = f"""
import sys
from scalselect_ray.cli import main
try:
    main(["--help"])
except SystemExit:
    assert main(["run", {str(config)!r}]) == 2
print([name for name in ("torch", "ray", "numpy", "transformers", "pyarrow", "PIL", "s3fs") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "selection.budget is -1" in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("typed", "offered"),
    [("scalselect ex", {"explain", "export"}), ("scalselect export out --images ", {"reference", "copy"})],
)
def test_a_shell_is_told_what_can_be_typed(typed: str, offered: set[str], tmp_path: Path):
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": typed, "COMP_POINT": str(len(typed)), "_ARGCOMPLETE_IFS": "\n"}
    answer = tmp_path / "answer"
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    subprocess.run([sys.executable, "-m", "scalselect_ray"], env=environment, check=True)
    assert set(answer.read_text().split()) == offered


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "coloured"), [(Terminal, "", True), (Terminal, "1", False), (io.StringIO, "", False)]
)
def test_colour_is_for_terminals_that_want_it(
    stream: type[io.StringIO], no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    written = stream()
    Console(written).warn("careful")
    assert ("\x1b[33m" in written.getvalue()) == coloured
    assert "careful" in written.getvalue()


def plan_of(config: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[dict[str, object], str]:
    assert main(["plan", str(config), *overrides, "--json"]) == 0
    said = capsys.readouterr()
    return json.loads(said.out), " ".join(said.err.split())


def test_a_plan_guesses_time_and_memory_from_a_few_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = json.loads((GOLDEN / "llava" / "samples.json").read_text())
    corpus = tmp_path / "rows.json"
    corpus.write_text(json.dumps(rows))
    source = {"name": "golden", "paths": [str(corpus)], "image_root": str(GOLDEN / "llava")}
    config = write_config(tmp_path, [source], GOLDEN / "llava" / "model")
    answer, said = plan_of(config, capsys)
    assert answer["seconds_by"] == "probe"
    assert answer["seconds"] > 0
    assert answer["extractor_bytes"] > 2 << 30
    assert "with one extractor like" in said
    assert "a guess from 8 samples" in said
    assert not list((tmp_path / "output" / "features").glob("*/*.parquet"))

    corpus.write_text(json.dumps([{**row, "images": ["no such picture.png"]} for row in rows]))
    answer, said = plan_of(config, capsys)
    assert answer["seconds"] is None
    assert "the first samples are all rejects" in said


def test_a_plan_prefers_what_a_run_has_measured(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = json.loads((GOLDEN / "llava" / "samples.json").read_text())
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(rows[:12]))
    source = {"name": "golden", "paths": [str(tmp_path / "*.json")], "image_root": str(GOLDEN / "llava")}
    (tmp_path / "job").mkdir()
    config = write_config(tmp_path / "job", [source], GOLDEN / "llava" / "model")
    assert main(["run", str(config)]) == 0
    assert plan_of(config, capsys)[0]["seconds"] is None  # nothing is to do
    paths[1].write_text(json.dumps(rows[12:]))
    answer, said = plan_of(config, capsys)
    assert answer["seconds_by"] == "run"
    assert "of the last run with this extractor" in said
