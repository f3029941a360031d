"""What a row has beside its turns and images: kept, carried, or counted by name."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.corpus import CorpusFile, SampleRejectedError, plan_file, resolver
from scalselect_ray.corpus.sample import Record
from scalselect_ray.exports import FORMATS
from scalselect_ray.exports.base import (
    ExportImage,
    ExportRow,
    ImagePaths,
    NotExportableError,
    PartReport,
    text_of,
)
from scalselect_ray.exports.fields import Fields, read_fields
from scalselect_ray.exports.formats.json_files import JsonFile
from scalselect_ray.exports.formats.webdataset import _as_it_came
from scalselect_ray.exports.rows import read_rows
from scalselect_ray.exports.spool import from_stored, to_stored
from scalselect_ray.io import storage

IMAGE = "a/b.png"
LLAVA_ROW = {
    "id": 7,
    "image": IMAGE,
    "conversations": [
        {"from": "human", "value": " <image>\nHi", "markdown": None},
        {"from": "gpt", "value": "draft", "loss": False, "weight": 0},
        {"from": "human", "value": "Again"},
        {"from": "gpt", "value": "good "},
    ],
    "weight": 0.5,
    "meta": {"x": [1, None, "\ud800"], IMAGE: IMAGE},
}
SAID: Any = LLAVA_ROW["conversations"]
MESSAGES_ROW = {
    "messages": [
        {"role": "user", "content": "<image>Find <ref-object>"},
        {"role": "assistant", "content": "<bbox>", "loss": False},
    ],
    "images": [IMAGE],
    "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]},
    "channel": "grounding",
    "rejected_response": "bad",
    "tools": [{"name": "look"}],
    "id": 3,
}


def exported(record: Any) -> ExportRow:
    """A row as an export reads it and stores it meanwhile."""
    sample, fields = read_fields(0, record, resolver("/r"))
    images = tuple(ExportImage(image.name, "/r", image.uri, None, image.data) for image in sample.images)
    known = record["id"] if isinstance(record.get("id"), (str, int)) else sample.id
    row = ExportRow(1, "s", "/c/x.json", 0, known, 0.5, turns=sample.turns, images=images, fields=fields)
    return from_stored(to_stored(1, row))


def row_of(name: str, record: Any) -> tuple[Any, dict[str, int]]:
    """The row in an export, and the fields that it lost."""
    report = PartReport(ImagePaths("/out", "/r", sole_root=True))
    made = exported(record)
    FORMATS[name].check(made)
    return FORMATS[name].row(made, report), dict(report.left_behind)


@pytest.mark.parametrize("name", ["llava", "llava-next", "qwen-vl", "internvl"])
def test_a_row_in_the_layout_of_the_trainer_goes_out_as_it_came(name):
    assert row_of(name, LLAVA_ROW) == (LLAVA_ROW, {})


def test_so_does_one_of_messages_to_ms_swift():
    assert row_of("ms-swift", MESSAGES_ROW) == (MESSAGES_ROW, {})
    with_system = {"system": "Be brief.", **MESSAGES_ROW}
    assert row_of("ms-swift", with_system)[0]["system"] == "Be brief."


def test_what_another_layout_has_no_place_for_is_counted_by_name():
    made, lost = row_of("llava", MESSAGES_ROW)
    assert made == {
        "id": 3,
        "image": IMAGE,
        "conversations": [
            {"from": "human", "value": "<image>Find <ref-object>"},
            {"from": "gpt", "value": "<bbox>"},
        ],
    }
    assert lost == dict.fromkeys(["objects", "channel", "rejected_response", "tools", "messages[].loss"], 1)


def test_what_it_has_a_place_for_is_carried():
    made, lost = row_of("ms-swift", LLAVA_ROW)
    assert [turn.get("loss") for turn in made["messages"]] == [None, False, None, None]
    assert lost == {"id": 1, "weight": 1, "meta": 1}
    made, lost = row_of("llama-factory", MESSAGES_ROW)
    assert json.loads(made["tools"]) == MESSAGES_ROW["tools"]
    assert lost == dict.fromkeys(["id", "objects", "channel", "rejected_response", "messages[].loss"], 1)


@pytest.mark.parametrize("content", ["<bbox>", "<think>\nWhere?\n</think>\n\n<bbox>"])
def test_what_was_thought_goes_along_once(content):
    user, answer = MESSAGES_ROW["messages"]
    record = {**MESSAGES_ROW, "messages": [user, {**answer, "content": content, "reasoning_content": "Where?"}]}
    assert row_of("ms-swift", record) == (record, {})
    made, lost = row_of("llava", record)
    assert made["conversations"][1]["value"] == "<think>\nWhere?\n</think>\n\n<bbox>"
    assert "messages[].reasoning_content" not in lost


def test_a_weight_of_a_turn_is_the_loss_of_ms_swift():
    turns = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A", "weight": 0}]
    made, _ = row_of("ms-swift", {"messages": turns, "images": [IMAGE]})
    assert made["messages"][1] == {**turns[1], "loss": False}


@pytest.mark.parametrize(("boxes", "fits"), [([[1, 2, 3, 4]], True), ([], False), ([[1, 2], [3, 4]], False)])
def test_placeholders_of_objects_are_the_objects(boxes, fits):
    record = {**MESSAGES_ROW, "objects": {"ref": ["cat"], "bbox": boxes}}
    if fits:
        row_of("ms-swift", record)
    else:
        with pytest.raises(NotExportableError, match=r"<bbox>.*objects\.bbox"):
            row_of("ms-swift", record)


def test_a_field_of_a_row_that_is_read_by_another_name_first_is_counted():
    """`messages` is read before `conversations`: the second conversation of such a row is no part of the sample."""
    record = {**MESSAGES_ROW, "conversations": LLAVA_ROW["conversations"], "image": ["other.png", "more.png"]}
    _, lost = row_of("internvl", record)
    assert lost["image"] == lost["conversations"] == lost["messages[].loss"] == 1
    _, lost = row_of("ms-swift", record)
    assert lost == {"image": 1}
    _, lost = row_of("llava", {"messages": MESSAGES_ROW["messages"], "images": [IMAGE], "caption": "A cat"})
    assert lost == {"caption": 1, "messages[].loss": 1}


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
NAMES = st.sampled_from(["stray", "image", "images", "conversations", "caption", "id", "weight", "ö"])
VALUES = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@given(strays=st.dictionaries(st.text(max_size=6).filter(lambda name: name not in LLAVA_ROW), VALUES, max_size=4))
def test_any_stray_field_goes_along_or_is_counted(strays):
    from scalselect_ray.corpus.fields import FIELDS

    strays = {name: value for name, value in strays.items() if name not in FIELDS}
    made, _ = row_of("llava", LLAVA_ROW | strays)
    assert made == LLAVA_ROW | strays
    _, lost = row_of("ms-swift", LLAVA_ROW | strays)
    assert set(lost) == {"id", "weight", "meta"} | {
        name for name, value in strays.items() if value not in (None, "", [], {})
    }


TEXTS = st.sampled_from(["<image>", "Hi <image>\n", "A", "", "\ud800", IMAGE, "none", "data:image/png;base64,aGk="])
CONTENTS = st.recursive(
    TEXTS | st.none() | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "image", "image_url", "url", "bytes", "path", "<image_00>"]), inner
        )
    ),
    max_leaves=6,
)
TURN = st.dictionaries(st.sampled_from(["role", "from", "content", "value", "loss", "system"]), CONTENTS, max_size=4)
PROPER = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "user", "system"]), "value": TEXTS | st.lists(CONTENTS, max_size=3)},
    optional={"loss": st.booleans(), "role": TEXTS, "content": CONTENTS},
)
RECORDS = st.dictionaries(
    st.sampled_from(["messages", "conversations", "image", "images", "system", "prompt", "completion", "id", "x"]),
    CONTENTS | st.lists(TURN, max_size=3) | st.lists(PROPER, min_size=2, max_size=4),
    min_size=1,
    max_size=5,
)
GOOD = st.sampled_from(["Q", "A ", "see <image>", "\n"])
PICTURE = {"type": "image", "image": IMAGE}
SEEN = GOOD | st.lists(st.just(PICTURE) | GOOD.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=3)


def conversation(key: str, role: str, text: str, said: list, more: list) -> dict[str, Any]:
    names = {"role": ("user", "assistant"), "from": ("human", "gpt")}[role]
    return {key: [{role: names[number % 2], text: each, **more[number % 2]} for number, each in enumerate(said)]}


TALKS = st.builds(
    lambda talk, images, more: talk | images | more,
    st.builds(
        conversation,
        st.sampled_from(["messages", "conversations"]),
        st.sampled_from(["role", "from"]),
        st.sampled_from(["content", "value"]),
        st.builds(lambda first, second: [first, *second], SEEN, st.lists(GOOD, min_size=1, max_size=3)),
        st.lists(
            st.dictionaries(st.sampled_from(["loss", "weight", "system"]), st.integers(0, 1)), min_size=2, max_size=2
        ),
    ),
    st.sampled_from([{}, {"image": IMAGE}, {"images": [IMAGE]}, {"image": "", "images": [{"path": IMAGE}]}])
    | st.sampled_from(
        [{"images": [IMAGE, "c.png"]}, {"image": {"bytes": "aGk="}}, {"image": "data:image/png;base64,aGk="}]
    ),
    st.dictionaries(st.sampled_from(["system", "image", "stray", "id", "objects", "tools"]), CONTENTS, max_size=2),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(record=RECORDS | TALKS, as_table=st.booleans())
def test_whatever_a_row_holds_it_goes_out_or_is_left_out_with_a_reason(record, as_table):
    try:
        row = exported(Record(record) if as_table else record)
    except SampleRejectedError:
        return
    images = tuple(replace(image, data=image.data or b"") for image in row.images)
    names = [f"{number}.png" for number in range(len(images))]
    json.dumps(_as_it_came(replace(row, images=images), names))
    if any(image.uri is None for image in row.images):
        row = replace(row, images=tuple(ExportImage(image.name, copy="images/0.png") for image in row.images))
    for form in (form for form in FORMATS.values() if isinstance(form, JsonFile)):
        try:
            form.check(row)
        except NotExportableError:
            continue
        made = form.row(row, PartReport(ImagePaths("/r/out", "/r", sole_root=False)))
        read = json.loads(json.dumps(made))
        named = read.get("images", read.get("image", []))
        assert len([named] if isinstance(named, str) else named) == len(row.images)
        said = [turn[form.layout.text] for turn in read[form.layout.turns]]
        expected = [turn for turn in row.turns if not (turn.role == "system" and form.no_system)]
        assert said == [text_of(turn) for turn in expected] or form.reads_system
        assert all(turn[form.layout.role] in form.layout.roles.values() for turn in read[form.layout.turns])


def inline(path: str) -> dict[str, Any]:
    content = [{"type": "image", "image": path, "detail": "low"}, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat"}], "extra": 1}


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"image": IMAGE, **{key: LLAVA_ROW[key] for key in ("conversations",)}}, ("image",)),
        ({**MESSAGES_ROW, "images": [{"path": IMAGE}]}, ("images", 0)),
        ({**MESSAGES_ROW, "images": None, "image": [None, IMAGE]}, ("image", 1)),
        (inline(IMAGE), ("messages", 0, "content", 0, "image")),
    ],
    ids=["a path", "a struct", "after a null", "in the text"],
)
def test_where_an_image_stands(record, place):
    assert exported(record).fields.images == (place,)


@pytest.mark.parametrize("record", [LLAVA_ROW, MESSAGES_ROW, inline(IMAGE)], ids=["llava", "messages", "typed"])
def test_a_tar_holds_any_row_as_it_came(record):
    made = _as_it_came(exported(record), ["1.png"])
    kept = {key: value for key, value in made.items() if key not in ("image", "images", "messages")}
    assert kept == {key: value for key, value in record.items() if key in kept}
    assert kept.keys() | {"image", "images", "messages"} >= record.keys()
    assert made.get("image", made.get("images")) in ("1.png", ["1.png"])
    if record == inline(IMAGE):
        assert made["messages"][0]["content"] == [{"type": "image", "detail": "low"}, {"type": "text", "text": "What?"}]


def read(path: Path) -> list[ExportRow]:
    file = CorpusFile("s", storage.stat(str(path)), "/r", 10, 1 << 20)
    return list(read_rows(plan_file(file), {row: (row + 1, 0.5) for row in range(100)}, with_members=False))


def test_rows_of_parquet_have_all_columns_and_no_nulls_of_other_rows(tmp_path):
    rows = [
        {"messages": MESSAGES_ROW["messages"], "images": [{"bytes": b"png", "path": IMAGE}], "loudness": 0.5},
        {"conversation": "no", "messages": MESSAGES_ROW["messages"], "images": [{"path": IMAGE}], "sound": b"RIFF"},
    ]
    schema = pa.Table.from_pylist([rows[1] | rows[0]]).schema
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert first.fields.record == {"messages": MESSAGES_ROW["messages"], "images": [None], "loudness": 0.5}
    assert first.fields.unread == ("loudness",)
    assert second.fields.no_json == ("sound",)
    assert "loudness" not in second.fields.record


def test_members_of_a_tar_that_are_no_part_of_the_sample_are_fields(tmp_path):
    members = {"k.json": json.dumps({"conversations": LLAVA_ROW["conversations"]}).encode(), "k.cls": b"7"}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in {**members, "k.png": b"png"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (row,) = read(tmp_path / "a.tar")
    assert row.fields.no_json == (".cls",)
    assert row.fields.record["id"] == "k"


def test_a_million_names_are_no_million_lines():
    report = PartReport(ImagePaths("/out", "/r", sole_root=True))
    for number in range(1000):
        report.leave_behind([f"name {number}", "always"])
    assert report.left_behind["always"] == 1000
    assert len(report.left_behind) < 200
    assert sum(report.left_behind.values()) == 2000


def test_a_format_says_which_rows_it_holds_as_they_came():
    for name, form in FORMATS.items():
        if isinstance(form, JsonFile):
            assert form.keeps == (f"rows of {form.layout.turns}" if form.verbatim else ""), name


def test_fields_are_known_by_value():
    assert exported(LLAVA_ROW).fields == Fields(LLAVA_ROW, (("image",),), ("weight", "meta"), ())


def test_a_row_of_many_or_deep_fields_costs_no_more_than_its_size(monkeypatch):
    """Fields that no sample is made of are not tried one by one, and none is so deep that the program ends."""
    from scalselect_ray.exports import fields

    asked = []
    original = fields.normalise

    def counted(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments[0])
        return original(*arguments, **named)

    monkeypatch.setattr(fields, "normalise", counted)
    many = {f"k{number}": number for number in range(5000)}
    assert row_of("llava", LLAVA_ROW | many)[0] == LLAVA_ROW | many
    assert len(asked) < 10
    deep: Any = "x"
    for _ in range(800):
        deep = [deep]
    made, lost = row_of("llava", LLAVA_ROW | {"deep": deep})
    assert made["conversations"] == [{key: turn[key] for key in ("from", "value")} for turn in SAID]
    assert list(lost) == [fields.TOO_DEEP]
