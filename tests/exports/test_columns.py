"""Rows that a trainer reads to a table: what a table can hold."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.exports import FORMATS
from scalselect_ray.exports.base import Finish, ImagePaths, Usage
from scalselect_ray.exports.columns import fitted, merged, shape_of
from scalselect_ray.exports.formats import json_files

TURNS = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A"}]
datasets.disable_progress_bars()


def finished(name: str, rows: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], Usage]:
    """The rows of an export whose part files hold `rows`, each in a part of its own."""
    parts = []
    for number, row in enumerate(rows):
        part = folder / "parts" / str(number)
        part.parent.mkdir(exist_ok=True)
        part.write_text(json.dumps(row))
        parts.append(str(part))
    finish = Finish(ImagePaths(str(folder), str(folder), True), parts, [1] * len(rows), "run")
    finish.carried.update(name for row in rows for name in row if name not in ("messages", "images"))
    finish.carried.update(f"messages[].{name}" for row in rows for turn in row["messages"] for name in turn)
    usage = FORMATS[name].finish(finish)
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()], usage


def test_rows_that_fit_stay_as_they_are(tmp_path):
    rows = [
        {"messages": TURNS, "images": ["a.png"], "objects": {"ref": ["x"], "bbox": [[1, 2]]}, "score": 0.5},
        {"messages": TURNS, "images": [], "objects": None, "stray": {"deep": [{"a": 1}, {}]}},
    ]
    assert finished("ms-swift", rows, tmp_path)[0] == rows


def test_a_field_of_two_kinds_or_after_the_columns_are_settled_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "FIRST_BYTES", 400)
    told = {"role": "assistant", "content": "A", "loss": False, "mood": "good"}
    early = [{"messages": TURNS, "images": [], "id": number, "mixed": mixed} for number, mixed in enumerate([1, "b"])]
    early += [{"messages": TURNS, "images": [], "id": 2, "seen": {"a": 1}, "pad": "x" * 400}]
    late = [
        {"messages": [TURNS[0], told], "images": ["a.png"], "id": "text", "seen": {"a": 2, "b": 3}},
        {"messages": TURNS, "images": ["a.png"], "id": 1 << 70, "new": 1, "seen": {"a": 0.5}},
    ]
    rows, usage = finished("ms-swift", early + late, tmp_path)
    assert [row.keys() for row in rows[:2]] == [{"messages", "images", "id"}] * 2
    answer = {"role": "assistant", "content": "A", "loss": False}
    assert rows[3] == {"messages": [TURNS[0], answer], "images": ["a.png"], "id": None, "seen": {"a": 2}}
    assert rows[4] == {"messages": TURNS, "images": ["a.png"], "id": None, "seen": {"a": None}}
    assert usage.left_behind == {"mixed": 2, "messages[].mood": 1, "id": 2, "seen.b": 1, "seen.a": 1, "new": 1}


def test_an_answer_that_is_not_to_be_learnt_is_never_learnt_for_coming_late(tmp_path):
    """A user's turn, which is never learnt, has the field first and settles its type."""
    wrong = {"role": "assistant", "content": "draft", "loss": False}
    rows = [{"messages": TURNS, "images": [], "pad": "x" * 100_000} for _ in range(120)]
    written, usage = finished("ms-swift", [*rows, {"messages": [TURNS[0], wrong], "images": []}], tmp_path)
    assert written[-1]["messages"] == [TURNS[0], wrong]
    assert written[0]["messages"] == [{**TURNS[0], "loss": False}, TURNS[1]]
    assert written[1]["messages"] == TURNS
    assert not usage.left_behind
    read = datasets.load_dataset(
        "json", data_files=str(tmp_path / "data.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read[-1]["messages"][1]["loss"] is False
    assert read[0]["messages"][1].get("loss") is None
    early, _ = finished("ms-swift", [{"messages": [TURNS[0], wrong], "images": []}, rows[0]], tmp_path)
    assert early[1] == rows[0]


def test_the_reader_of_the_trainers_takes_what_is_written(tmp_path):
    """Rows of more than its first 10 MiB, and then what would end it."""
    rows = [{"messages": TURNS, "images": ["a.png"], "id": n, "n": n, "pad": "x" * 100_000} for n in range(120)]
    rows.append({"messages": TURNS, "images": ["a.png"], "id": "b", "n": 0.5, "objects": {"ref": ["a"]}})
    finished("ms-swift", rows, tmp_path)
    read = datasets.load_dataset(
        "json", data_files=str(tmp_path / "data.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(read) == len(rows)
    assert read[5]["id"] == 5


def test_tools_are_a_column_of_llama_factory_where_there_are_any(tmp_path):
    plain = {"messages": TURNS, "images": []}
    rows, _ = finished("llama-factory", [plain, {**plain, "tools": "[]"}], tmp_path)
    assert [row["tools"] for row in rows] == ["", "[]"]
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["scalselect"]
    assert entry["columns"]["tools"] == "tools"
    assert finished("llama-factory", [plain], tmp_path)[0] == [plain]


def test_rows_with_and_without_a_rejected_response_are_warned_of(tmp_path):
    plain = {"messages": TURNS, "images": []}
    _, usage = finished("ms-swift", [plain, {**plain, "rejected_response": "B"}], tmp_path)
    assert "1 of 2 rows" in " ".join(usage.warnings)
    _, usage = finished("ms-swift", [{**plain, "rejected_response": "B"}] * 2, tmp_path)
    assert "rejected" not in " ".join(usage.warnings)


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text())
VALUES = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))


@given(values=st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), min_size=1, max_size=5))
def test_what_is_kept_is_the_value_and_fits_the_shape(values):
    shape = None
    for value in values:
        shape = merged(shape, shape_of(value))
    for value in values:
        lost: set[str] = set()
        kept = fitted(value, shape, "", lost)
        assert merged(shape, shape_of(kept)) == shape
        assert kept == value or lost, "what is not kept is named"


@pytest.mark.parametrize("value", [1, "a", True, 0.5, [1], {"a": [{"b": "c"}]}, [], {}, None])
def test_a_value_fits_its_own_shape(value):
    lost: set[str] = set()
    assert fitted(value, shape_of(value), "", lost) == value
    assert not lost
