"""Names and texts of others reach the terminal as text, whatever verb shows them: no escape sequence, and no line of
their own."""

import io
import json
import re

import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from PIL import Image

from scalselect_ray.cli import main

pytestmark = pytest.mark.usefixtures("cluster")

TRICK = "\x1b[2J\x1b]0;owned\x07\r\nwarning: forged\u202e\x9b31m"
UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """A run over a file, ids and pictures with such names; what was said of it."""
    folder = tmp_path_factory.mktemp("foreign")
    corpus = folder / "corpus"
    corpus.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(picture, "PNG")
    (corpus / f"a{TRICK}.png").write_bytes(picture.getvalue())

    def row(number: int, image: str) -> dict[str, object]:
        turns = [{"from": "human", "value": f"<image>\nWhat is {number}?"}, {"from": "gpt", "value": "Red."}]
        return {"id": f"id{number}{TRICK}", "image": image, "conversations": turns}

    rows = [row(number, f"a{TRICK}.png") for number in range(6)] + [row(6, f"gone{TRICK}.png"), {TRICK: TRICK}]
    (corpus / f"rows{TRICK}.json").write_text(json.dumps(rows))
    (corpus / f"broken{TRICK}.parquet").write_bytes(TRICK.encode() * 9)
    (corpus / f"other{TRICK}.csv").write_text(TRICK)
    config = write_config(
        folder, [{"name": "s", "paths": [str(corpus)]}], GOLDEN / "llava" / "model", rejects={"max_fraction": 0.9}
    )
    return folder, corpus, config


def said(capsys, *arguments, code=0):
    capsys.readouterr()
    found = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert found == code, captured.err
    for text in (captured.out, captured.err):
        assert not UNSAFE.search(text), repr(UNSAFE.search(text))
        assert not re.search(r"^\s*warning: forged", text, re.MULTILINE)
    return captured.err


def test_every_verb_shows_them_as_text(finished, capsys, tmp_path):
    folder, corpus, config = finished
    output = folder / "output"
    said(capsys, "init", corpus, "--out", tmp_path / "made.yaml")
    said(capsys, "plan", config)
    assert "broken" in said(capsys, "run", config)
    said(capsys, "status", output)
    run = json.loads((output / "latest.json").read_text())["run_id"]
    first = pq.read_table(output / "runs" / run / "manifest").to_pylist()[0]["id"]
    said(capsys, "explain", output, first)
    said(capsys, "explain", output, f"id6{TRICK}")
    said(capsys, "explain", output, f"nobody{TRICK}", code=2)
    said(capsys, "export", output, "--to", "llava", "--out", tmp_path / "export")
    said(capsys, "report", output)
    said(capsys, "clean", output)
    said(capsys, "plan", config, "--verify")
    said(capsys, "run", folder / f"nowhere{TRICK}.yaml", code=2)
    said(capsys, "run", config, f"corpus.sources.0.name=s{TRICK}", code=2)
    said(capsys, "run", config, f"{TRICK}=1", code=2)
    assert "nothing there yet" in said(capsys, "status", folder / f"nowhere{TRICK}")


def test_too_many_rejects_show_them_as_text(finished, capsys):
    _, _, config = finished
    assert "gone" in said(capsys, "run", config, "rejects.max_fraction=0.01", code=3)
