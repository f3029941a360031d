"""Layouts that ecosystems write, in every container: the same sample from each; and what a reject says of a row that
has none."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalselect_ray import config
from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import ImagePlaceholder, Reason, Reject, Sample, fields, list_files, plan_file, read_slices
from scalselect_ray.corpus.formats import base, jsonl

ASKED, ANSWERED = "What is it?", " A cat. "
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": ANSWERED}]}
TURNS = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": ANSWERED}]
SEEN = [("user", (ImagePlaceholder(0), ASKED)), ("assistant", (ANSWERED,))]
SYSTEM = ("system", ("Answer in French.",))
BEFORE = [("user", (ImagePlaceholder(0), "Hi")), ("assistant", ("Hello",))]
PLAIN = [("user", (ASKED,)), ("assistant", (ANSWERED,))]
TWO = {"images": ["a.png", "b.png"]}


def typed(**image: object) -> dict:
    content = [{"type": "image", **image}, {"type": "text", "text": ASKED}]
    return {"messages": [{"role": "user", "content": content}, ANSWER]}


LAYOUTS = {
    "a system field": ({"system": "Answer in French.", "image": "a.png", "conversations": TURNS}, [SYSTEM, *SEEN]),
    "a system field, and messages": (
        {"system": "Answer in French.", "images": ["a.png"], "messages": [USER, ASSISTANT]},
        [SYSTEM, *SEEN],
    ),
    "a system field beside a system turn": (
        {
            "system": "Be brief.",
            "image": "a.png",
            "conversations": [{"from": "system", "value": "Answer in French."}, *TURNS],
        },
        [SYSTEM, *SEEN],
    ),
    "a system field that is empty": ({"system": "", "image": "a.png", "conversations": TURNS}, SEEN),
    "prompt and completion as texts": ({"image": "a.png", "prompt": ASKED, "completion": ANSWERED}, SEEN),
    "prompt and completion as turns": ({"images": ["a.png"], "prompt": [USER], "completion": [ASSISTANT]}, SEEN),
    "query and response": ({"images": ["a.png"], "query": f"<image>{ASKED}", "response": ANSWERED}, SEEN),
    "query and response with a history": (
        {"images": ["a.png"], "history": [["<image>Hi", "Hello"]], "query": ASKED, "response": ANSWERED},
        [*BEFORE, *PLAIN],
    ),
    "alpaca": (
        {"images": ["a.png"], "instruction": "What", "input": "is it?", "output": ANSWERED},
        [("user", (ImagePlaceholder(0), "What\nis it?")), ("assistant", (ANSWERED,))],
    ),
    "alpaca without input": ({"image": "a.png", "instruction": ASKED, "input": "", "output": ANSWERED}, SEEN),
    "alpaca with system and history": (
        {
            "system": "Answer in French.",
            "images": ["a.png"],
            "history": [["Hi", "Hello"]],
            "instruction": ASKED,
            "input": "",
            "output": ANSWERED,
        },
        [SYSTEM, *BEFORE, *PLAIN],
    ),
    "question and answer": ({"image": "a.png", "question": ASKED, "answer": ANSWERED}, SEEN),
    "an answer that is None": (
        {"image": "a.png", "question": ASKED, "answer": "None"},
        [SEEN[0], ("assistant", ("None",))],
    ),
    "several answers": ({"image": "a.png", "question": ASKED, "answer": [ANSWERED, "Cat"]}, SEEN),
    "turns as a text of JSON": ({"image": "a.png", "conversations": json.dumps(TURNS)}, SEEN),
    "pairs as a text of JSON": (
        {"image": "a.png", "texts": json.dumps([{"user": ASKED, "assistant": ANSWERED}])},
        SEEN,
    ),
    "images as a text of JSON": ({"images": '["a.png"]', "conversations": TURNS}, SEEN),
    "an object of lists": (
        {"image": "a.png", "conversations": {"from": ["human", "gpt"], "value": [f"<image>{ASKED}", ANSWERED]}},
        SEEN,
    ),
    "an object of lists of pairs": ({"image": "a.png", "texts": {"user": [ASKED], "assistant": [ANSWERED]}}, SEEN),
    "turns under the name of pairs": ({"image": "a.png", "conversation": TURNS}, SEEN),
    "pairs of input and output, the first with a system text": (
        {
            "image": "a.png",
            "conversation": [{"system": "Answer in French.", "input": ASKED, "output": ANSWERED}],
        },
        [SYSTEM, *SEEN],
    ),
    **{
        f"typed: {key}": (typed(**{key: "a.png"}), SEEN)
        for key in ("image", "url", "path", "source", "value", "content")
    },
    "typed: image_url in an object": (typed(image_url={"url": "a.png"}), SEEN),
    "typed: by Anthropic": (typed(source={"type": "url", "url": "a.png"}), SEEN),
    "typed: input_image and input_text": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": "a.png"},
                        {"type": "input_text", "text": ASKED},
                    ],
                },
                {"role": "assistant", "content": [{"type": "output_text", "text": ANSWERED}]},
            ]
        },
        SEEN,
    ),
    "typed without a type": (
        {
            "messages": [
                {"role": "user", "content": [{"image": "a.png"}, {"text": ASKED}]},
                {"role": "assistant", "content": [{"text": ANSWERED}]},
            ]
        },
        SEEN,
    ),
    "images by their placeholders": (
        {
            "image": {"<image_00>": "a.png", "<image_01>": "b.png"},
            "conversations": [
                {"role": "user", "content": "Is <image_01> larger than\n<image_00>"},
                {"role": "assistant", "content": ANSWERED},
            ],
        },
        [
            ("user", ("Is", ImagePlaceholder(0), "larger than", ImagePlaceholder(1))),
            ("assistant", (ANSWERED,)),
        ],
    ),
    "images by placeholders that stand nowhere": (
        {"image": {"<image_00>": "a.png", "<image_01>": "b.png"}, "messages": [USER, ASSISTANT]},
        [("user", (ImagePlaceholder(0), ImagePlaceholder(1), ASKED)), ("assistant", (ANSWERED,))],
    ),
    **{
        f"placeholders written as {first}": (
            {**TWO, "messages": [{"role": "user", "content": f"Is {first} larger than\n{second}"}, ASSISTANT]},
            [("user", ("Is", ImagePlaceholder(0), "larger than", ImagePlaceholder(1))), ("assistant", (ANSWERED,))],
        )
        for first, second in (
            ("<|image_1|>", "<|image_2|>"),
            ("<image_0>", "<image_1>"),
            ("<image 1>", "<image 2>"),
            ("<ImageHere>", "<ImageHere>"),
            ("<image_placeholder>", "<image_placeholder>"),
            ("<img>a.png</img>", "<img>b.png</img>"),
        )
    },
    "images by their paths in the texts": ({"query": f"<img>a.png</img>\n{ASKED}", "response": ANSWERED}, SEEN),
    "images in a field of their turn": (
        {
            "conversations": [
                {"role": "User", "content": f"<image_placeholder>{ASKED}", "images": ["a.png"]},
                {"role": "Assistant", "content": ANSWERED},
                {"role": "User", "content": "And this?", "image": "b.png"},
                {"role": "Assistant", "content": ANSWERED},
            ]
        },
        [*SEEN, ("user", (ImagePlaceholder(1), "And this?")), ("assistant", (ANSWERED,))],
    ),
    "typed: images by their numbers": (
        {
            **TWO,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "index": index} for index in (1, 0)),
                        {"type": "text", "text": ASKED},
                    ],
                },
                ANSWER,
            ],
        },
        [("user", (ImagePlaceholder(0), ImagePlaceholder(1), ASKED)), ("assistant", (ANSWERED,))],
    ),
    "typed contents as texts of JSON": (
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": json.dumps([{"type": "image"}, {"type": "text", "text": ASKED}])},
                {"role": "assistant", "content": json.dumps([{"type": "text", "text": ANSWERED}])},
            ],
        },
        SEEN,
    ),
    "several captions": (
        {"image": "a.png", "caption": [ANSWERED, "A pet."]},
        [("user", (ImagePlaceholder(0),)), SEEN[1]],
    ),
    "a number for an answer": ({"image": "a.png", "question": ASKED, "answer": 5}, [SEEN[0], ("assistant", ("5",))]),
    "numbers for values": (
        {"image": "a.png", "conversations": [{"from": "human", "value": 7}, {"from": "gpt", "value": 5}]},
        [("user", (ImagePlaceholder(0), "7")), ("assistant", ("5",))],
    ),
    **{
        f"roles called {user} and {assistant}": (
            {"image": "a.png", "messages": [{**USER, "role": user}, {**ASSISTANT, "role": assistant}]},
            SEEN,
        )
        for user, assistant in (("<|User|>", "<|Assistant|>"), ("Human:", "AI"), ("USER", "model"))
    },
    "a developer": (
        {"image": "a.png", "messages": [{"role": "developer", "content": "Answer in French."}, USER, ASSISTANT]},
        [SYSTEM, *SEEN],
    ),
    "parts": (
        {
            "image": "a.png",
            "messages": [
                {"role": "user", "parts": [{"text": ASKED}]},
                {"role": "model", "parts": [{"text": ANSWERED}]},
            ],
        },
        SEEN,
    ),
    **{
        f"what was thought in {name}": (
            {"image": "a.png", "messages": [USER, {**ASSISTANT, "content": "A cat.", name: "Ears.\n"}]},
            [SEEN[0], ("assistant", ("<think>\nEars.\n</think>\n\nA cat.",))],
        )
        for name in ("reasoning_content", "reasoning", "thinking")
    },
    "what was thought in the answer as well": (
        {
            "image": "a.png",
            "messages": [USER, {**ASSISTANT, "content": "<think>Ears.</think>A cat.", "reasoning_content": "Ears."}],
        },
        [SEEN[0], ("assistant", ("<think>Ears.</think>A cat.",))],
    ),
    "as many questions as answers": (
        {"image": "a.png", "question": ["Hi", ASKED], "answer": ["Hello", ANSWERED]},
        [*BEFORE, *PLAIN],
    ),
}
ORDER = {"images by their placeholders": ["b.png", "a.png"], "typed: images by their numbers": ["b.png", "a.png"]}


def tar(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def written(row: dict, container: str, with_images: bool = True) -> bytes:
    """A file of this one row; the images of a tar are members."""
    if container == "json":
        return json.dumps([row]).encode()
    if container == "jsonl":
        return json.dumps(row).encode()
    if container == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([row]), sink)
        return sink.getvalue()
    text = json.dumps(row)
    images = {f"0.{name}": name.encode() for name in ("a.png", "b.png") if name in text and with_images}
    return tar({"0.json": text.encode(), **images})


def read(path: Path, columns: dict[str, str] | None = None) -> list[Sample | Reject]:
    corpus = CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path)], columns=columns or {})])
    return [row for file in list_files(corpus) for _, rows in read_slices(plan_file(file)) for row in rows]


@pytest.mark.parametrize("container", ["json", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_alike_from_every_container(layout: str, container: str, tmp_path: Path):
    row, expected = LAYOUTS[layout]
    path = tmp_path / f"a.{container}"
    path.write_bytes(written(row, container))
    (sample,) = read(path)
    assert isinstance(sample, Sample), sample
    assert [(turn.role, turn.stripped().content) for turn in sample.turns] == expected
    names = ORDER.get(layout) or [name for name in TWO["images"] if name in json.dumps(row)]
    if container == "tar":
        assert [image.data for image in sample.images] == [name.encode() for name in names]
    else:
        assert [image.uri for image in sample.images] == [str(tmp_path / name) for name in names]


REJECTS = {  # what the message must name
    "fields of no layout": ({"image": "a.png", "dialogue_tree": [1], "lang": "en"}, ["dialogue_tree", "lang"]),
    "a question without an answer": ({"image": "a.png", "question": ASKED, "golden": "x"}, ["golden"]),
    "an image in a field of its own": (
        {"photo_path": "a.png", "conversations": [{**TURNS[0], "value": "Hi"}, TURNS[1]]},
        ["photo_path"],
    ),
    "a placeholder, and the image in a field of its own": (
        {"photo_path": "a.png", "conversations": TURNS},
        ["photo_path"],
    ),
    "a typed image with a key of its own": (typed(picture="a.png"), ["picture of an image in messages[0]"]),
    "turns with keys of their own": (
        {"image": "a.png", "messages": [{"speaker": "user", "utterance": ASKED}]},
        ["messages[0]", "speaker", "utterance"],
    ),
    "a role of its own": ({"image": "a.png", "messages": [{**USER, "role": "wizard"}]}, ["messages[0]", "wizard"]),
    "turns that are no JSON": ({"image": "a.png", "conversations": "Human: hi"}, ["conversations", "Human: hi"]),
    "lists of other lengths": (
        {"image": "a.png", "conversations": {"from": ["human", "gpt"], "value": ["hi"]}},
        ["from: 2", "value: 1"],
    ),
    "typed video": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}, ANSWER]},
        ["messages[0]", "video"],
    ),
    "a placeholder of a map that stands nowhere": (
        {
            "image": {"<image_00>": "a.png", "<image_01>": "b.png"},
            "messages": [{**USER, "content": "<image_00>"}, ASSISTANT],
        },
        ["<image_01>"],
    ),
}


@pytest.mark.parametrize("container", ["json", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize("kind", REJECTS)
def test_a_reject_names_what_was_seen_and_not_used(kind: str, container: str, tmp_path: Path):
    row, named = REJECTS[kind]
    path = tmp_path / f"a.{container}"
    path.write_bytes(written(row, container, with_images="of a map" in kind))
    (reject,) = read(path)
    assert isinstance(reject, Reject), reject
    assert not [name for name in named if name not in reject.message], reject.message


def test_columns_of_which_parquet_reads_none_are_named(tmp_path: Path):
    rows = [{"photo": b"x", "dialogue": [{"speaker": "user", "utterance": "Hi"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (reject,) = read(tmp_path / "a.parquet")
    assert isinstance(reject, Reject)
    assert "photo, dialogue" in reject.message


OWN = {  # rows under names of their own, and what maps them
    "turns": (
        {"pic": "a.png", "dialog": [{"speaker": "Q", "utterance": ASKED}, {"speaker": "A", "utterance": ANSWERED}]},
        {
            "images": "pic",
            "messages": "dialog",
            "role_tag": "speaker",
            "content_tag": "utterance",
            "user_tag": "Q",
            "assistant_tag": "A",
        },
    ),
    "a question and an answer": (
        {"pic": "a.png", "q": ASKED, "a": ANSWERED},
        {"images": "pic", "prompt": "q", "response": "a"},
    ),
    "before what would be read else": (
        {"image": "b.png", "pic": "a.png", "conversations": [TURNS[1]], "q": ASKED, "a": ANSWERED},
        {"images": "pic", "prompt": "q", "response": "a"},
    ),
    "a name that is one of ours": (
        {"images": ["a.png"], "answer": ASKED, "question": ANSWERED},
        {"prompt": "answer", "response": "question"},
    ),
}


@pytest.mark.parametrize("container", ["json", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize("kind", OWN)
def test_names_of_a_corpus_are_mapped(kind: str, container: str, tmp_path: Path):
    row, columns = OWN[kind]
    path = tmp_path / f"a.{container}"
    path.write_bytes(written({**row, "key": "7"}, container))
    (sample,) = read(path, {"id": "key", **columns})
    assert isinstance(sample, Sample), sample
    assert [(turn.role, turn.stripped().content) for turn in sample.turns] == SEEN
    assert [image.name for image in sample.images] == ["a.png" if container != "tar" else "0.a.png"]
    assert sample.id == "7"


def test_a_mapped_field_that_is_not_there_is_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(written({"pic": "a.png", "talk": []}, "jsonl"))
    (reject,) = read(path, {"messages": "dialog", "images": "pic"})
    assert isinstance(reject, Reject)
    assert "not in the row: dialog (mapped to messages); not read: talk" in reject.message


def test_rows_that_are_read_with_another_mapping_have_slices_of_their_own(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(written({"image": "a.png", "conversations": TURNS}, "jsonl"))

    def key(columns: dict[str, str]) -> str:
        source = SourceConfig(name="s", paths=[str(path)], columns=columns)
        return list_files(CorpusConfig(sources=[source]))[0].key

    mapped = {"messages": "conversations", "images": "image"}
    assert len({key({}), key(mapped), key({"messages": "conversations"})}) == 3
    assert key(mapped) == key(dict(reversed(mapped.items())))
    file = list_files(CorpusConfig(sources=[SourceConfig(name="s", paths=[str(path)])]))[0]
    known = repr((2, "s", str(path), file.file.size, file.file.version, str(tmp_path)))  # as before there were mappings
    assert file.key == hashlib.sha256(known.encode()).hexdigest()[:16]


def test_the_config_knows_the_names_that_can_be_mapped():
    assert config.COLUMNS == fields.COLUMNS


MEMBERS = {
    "a caption beside metadata": (
        {"0.jpg": b"1", "0.json": b'{"url": "http://x", "key": "7"}', "0.txt": b"a cat"},
        ["a cat"],
    ),
    "a conversation before a caption": (
        {"0.jpg": b"1", "0.txt": b"a cat", "0.json": json.dumps({"conversations": TURNS}).encode()},
        [ANSWERED],
    ),
    "fields that are members": ({"0.jpg": b"1", "0.question.txt": b"What?", "0.answer.txt": b"A cat."}, ["A cat."]),
    "turns that are a member": (
        {"0.jpg": b"1", "0.json": b'{"width": 1}', "0.conversations.json": json.dumps(TURNS).encode()},
        [ANSWERED],
    ),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_members_of_a_tar_are_the_fields_that_they_are_called(kind: str, tmp_path: Path):
    members, answers = MEMBERS[kind]
    (tmp_path / "a.tar").write_bytes(tar(members))
    (sample,) = read(tmp_path / "a.tar")
    assert isinstance(sample, Sample), sample
    assert [turn.content[0] for turn in sample.turns if turn.role == "assistant"] == answers
    assert [image.data for image in sample.images] == [b"1"]


@pytest.mark.parametrize("names", [["0.second.png", "0.first.png"], ["second.png", "first.png"], ["second", "first"]])
def test_members_stand_in_the_order_in_which_a_record_names_them(names: list[str], tmp_path: Path):
    row = {"images": names, "messages": [USER, ASSISTANT]}
    members = {"0.first.png": b"1", "0.second.png": b"2", "0.json": json.dumps(row).encode()}
    (tmp_path / "a.tar").write_bytes(tar(members))
    (sample,) = read(tmp_path / "a.tar")
    assert isinstance(sample, Sample), sample
    assert [image.data for image in sample.images] == [b"2", b"1"]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"0.jpg": b"1", "0.npy": b"2"}, ["0.jpg", "0.npy", ".json or .txt"]),
        (
            {"www.site.com_0.jpg": b"1", "www.site.com_0.json": b"{}", "www.site.com_1.json": b"{}"},
            ["www.site.com_0.json", "first dot"],
        ),
        (
            {"0.json": json.dumps({"conversations": TURNS, "image": "coco/1.jpg"}).encode()},
            ["coco/1.jpg", "no such member"],
        ),
        ({"0.json": json.dumps({"conversations": TURNS}).encode(), "0.heic": b"1"}, ["0.heic"]),
        ({"0.json": json.dumps({"conversations": TURNS}).encode(), "0.jpg": None}, ["0.jpg (a link)"]),
    ],
)
def test_members_that_were_dropped_are_named(members: dict[str, bytes | None], named: list[str], tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere.jpg"
            file.addfile(info, io.BytesIO(data or b""))
    (reject,) = read(tmp_path / "a.tar")
    assert isinstance(reject, Reject), reject
    assert not [name for name in named if name not in reject.message], reject.message


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"image_url": "https://example.org/a.jpg", "question": ASKED, "answer": ANSWERED}, "image_url"),
        ({"photo": {"path": "a.PNG"}, "messages": [USER, ASSISTANT]}, "photo"),
        ({"frames": ["a.webp"], "messages": [USER, ASSISTANT]}, "frames"),
        ({"messages": [{**USER, "content": f"<image 1> {ASKED}"}, ASSISTANT]}, "<image 1>"),
        ({"messages": [USER, {**ASSISTANT, "images": ["a.png"]}]}, "images of messages[1]"),
    ],
)
def test_a_row_whose_image_is_not_read_is_not_taken_for_one_of_text_alone(row: dict, named: str, tmp_path: Path):
    for container in ("json", "jsonl", "parquet", "tar"):
        path = tmp_path / f"a.{container}"
        path.write_bytes(written(row, container, with_images=False))
        (reject,) = read(path)
        assert isinstance(reject, Reject), reject
        assert named in reject.message
        if container != "parquet" or "image" in named:  # of a column that is not read there is but its name
            assert reject.reason == Reason.PLACEHOLDER_MISMATCH, container
    path = tmp_path / "b.jsonl"
    path.write_bytes(written({"messages": [USER, ASSISTANT], "image": "", "source": "web", "n": 1}, "jsonl"))
    assert [row.reason for row in read(path) if isinstance(row, Reject)] == [Reason.TEXT_ONLY]


@pytest.mark.parametrize("row", [{"image": [1, 2], "messages": [USER, ASSISTANT]}, {"images": [{"src": "a.png"}]}])
def test_an_image_that_is_none_is_told_with_its_field(row: dict, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(written({"messages": [USER, ASSISTANT], **row}, "jsonl"))
    (reject,) = read(tmp_path / "a.jsonl")
    assert isinstance(reject, Reject)
    assert f"(in {next(iter(row))})" in reject.message


def test_a_list_of_rows_in_the_place_of_a_row_is_said(tmp_path: Path):
    rows = [{"image": "a.png", "conversations": TURNS}] * 3
    (tmp_path / "a.json").write_text(json.dumps([rows]))
    (reject,) = read(tmp_path / "a.json")
    assert isinstance(reject, Reject)
    assert "a list of 3 rows, in the place of one" in reject.message


def test_fields_that_make_no_conversation_are_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(written({"image": "a.png", "caption": {"en": ANSWERED}}, "jsonl"))
    (reject,) = read(tmp_path / "a.jsonl")
    assert isinstance(reject, Reject)
    assert "it has caption, image" in reject.message


def test_neighbours_of_one_key_whose_members_repeat_are_samples_of_their_own(tmp_path: Path):
    row = json.dumps({"conversations": TURNS}).encode()
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in [("0.png", b"1"), ("0.json", row), ("0.png", b"2"), ("0.json", row)]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    samples = [sample for sample in read(tmp_path / "a.tar") if isinstance(sample, Sample)]
    assert [[image.data for image in sample.images] for sample in samples] == [[b"1"], [b"2"]]


@pytest.mark.parametrize("between", ["", " ", "\r", "\0" * 100])
def test_rows_that_share_a_line_are_said_to_be_several(between: str, tmp_path: Path):
    line = json.dumps({"image": "a.png", "conversations": TURNS})
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}{between}{line}\n{line}\n")
    _, reject, _ = read(tmp_path / "a.jsonl")
    assert isinstance(reject, Reject)
    assert "several rows in the place of one" in reject.message
    assert reject.lost_bytes == 2 * len(line) + len(between)


def test_no_bytes_are_lost_of_a_tar_that_is_cut_in_the_padding_of_its_last_member(tmp_path: Path):
    whole = tar({"0.png": b"1", "0.json": json.dumps({"conversations": TURNS}).encode()})
    (tmp_path / "a.tar").write_bytes(whole[: 3 * 512 + 200])
    sample, reject = read(tmp_path / "a.tar")
    assert isinstance(sample, Sample)
    assert isinstance(reject, Reject)
    assert reject.lost_bytes == 0


BOTH = {  # (image, images, placeholders): what is meant; nothing where that is not plain
    ("a", ("a",), 1): ("a",),
    ("a", ("a", "b"), 2): ("a", "b"),
    ("a", ("a", "b"), 0): ("a", "b"),
    ("c", ("a", "b"), 1): ("c",),
    ("c", ("a", "b"), 2): ("a", "b"),
    (("a", "b"), ("a",), 2): ("a", "b"),
    (("a", "b"), ("a",), 1): ("a",),
    ("c", ("a", "b"), 3): (),
    ("c", ("a", "b"), 0): (),
    ("c", ("a",), 1): (),
}


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
@pytest.mark.parametrize("row", BOTH, ids=str)
def test_of_image_beside_images_those_count_that_have_placeholders(row, container: str, tmp_path: Path):
    image, images, placeholders = row
    image = image if isinstance(image, str) else list(image)
    record = {"image": image, "images": list(images), "question": "<image>" * placeholders + ASKED, "answer": ANSWERED}
    (tmp_path / f"a.{container}").write_bytes(written(record, container))
    (found,) = read(tmp_path / f"a.{container}")
    if isinstance(found, Sample):
        assert tuple(image.name for image in found.images) == BOTH[row]
    else:
        assert not BOTH[row], found.message
        assert found.reason == Reason.PLACEHOLDER_MISMATCH
        assert "in images and others" in found.message


def test_one_picture_under_two_names_is_one(tmp_path: Path):
    struct = {"bytes": b"1", "path": "x/a.png"}
    for image in (struct, "x/a.png", {"bytes": b"1", "path": None}):
        same = [struct] if image != {"bytes": b"1", "path": None} else [image]
        rows = [{"image": image, "images": same, "question": ASKED, "answer": ANSWERED}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        (sample,) = read(tmp_path / "a.parquet")
        assert isinstance(sample, Sample), sample
        assert [image.data for image in sample.images] == [b"1"]


PICTURES = {
    "bytes": b"1",
    "a struct": {"bytes": b"1", "path": None},
    "structs": [{"bytes": b"1", "path": None}],
    "a path": "x/a.PNG",
}


@pytest.mark.parametrize("container", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_column_that_holds_pictures_is_told_whatever_its_name(kind: str, container: str, tmp_path: Path):
    table = pa.Table.from_pylist([{"scene": PICTURES[kind], "note": "none", "question": ASKED, "answer": ANSWERED}])
    path = tmp_path / f"a.{container}"
    if container == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    (reject,) = read(path)
    assert isinstance(reject, Reject)
    assert (reject.reason, "though it has scene;" in reject.message) == (Reason.PLACEHOLDER_MISMATCH, True)
    (sample,) = read(path, {"images": "scene"})
    assert isinstance(sample, Sample)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["img1", "img10", "img2"], ["img1", "img2", "img10"]),  # as tar --sort=name has them
        (["img10", "img2", "img1"], ["img10", "img2", "img1"]),  # as somebody put them
        (["01", "02", "10"], ["01", "02", "10"]),
        (["10", "9a", "9b"], ["9a", "9b", "10"]),
    ],
)
def test_members_that_are_sorted_by_their_letters_stand_as_they_are_counted(names, order, tmp_path: Path):
    row = json.dumps({"messages": [USER, ASSISTANT]}).encode()
    (tmp_path / "a.tar").write_bytes(tar({f"0.{name}.png": name.encode() for name in names} | {"0.json": row}))
    (sample,) = read(tmp_path / "a.tar")
    assert isinstance(sample, Sample), sample
    assert [image.data for image in sample.images] == [name.encode() for name in order]


def test_a_caption_is_text_of_utf_8_and_no_other(tmp_path: Path):
    members = {"0.png": b"1", "0.txt": "\ufeffun café".encode(), "1.png": b"1", "1.txt": "un café".encode("latin-1")}
    (tmp_path / "a.tar").write_bytes(tar(members))
    sample, reject = read(tmp_path / "a.tar")
    assert isinstance(sample, Sample)
    assert sample.turns[1].content == ("un café",)
    assert isinstance(reject, Reject)
    assert reject.reason == Reason.BROKEN_ROW
    assert "1.txt: not UTF-8" in reject.message


ROWS = [{"id": str(number), "image": "a.png", "conversations": TURNS} for number in range(40)]
TABLES = {  # rows in the place of one
    "a list": [ROWS],
    "by their names": {row["id"]: row for row in ROWS},
    "one by its name": {"0": ROWS[0]},
    "in columns": {name: {row["id"]: row[name] for row in ROWS} for name in ROWS[0]},
    "lists of columns": {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "split": {"columns": list(ROWS[0]), "index": list(range(40)), "data": [list(row.values()) for row in ROWS]},
}


@pytest.mark.parametrize("kind", TABLES)
def test_rows_in_the_place_of_one_weigh_what_they_are(kind: str, tmp_path: Path):
    table = TABLES[kind]
    (tmp_path / "a.json").write_text(json.dumps(table))
    (reject,) = read(tmp_path / "a.json")
    assert isinstance(reject, Reject)
    count = 1 if kind.startswith("one") else 40
    assert f"of {count} rows, in the place of one" in reject.message
    assert abs(reject.lost_bytes - (tmp_path / "a.json").stat().st_size) < 10


@pytest.mark.parametrize("kind", ["a list", "by their names", "in columns"])
def test_so_do_rows_that_are_too_many_to_be_parsed_as_one(kind: str, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(base, "MAX_ROW_VALUES", 100)
    table = TABLES[kind] if kind != "a list" else ROWS
    lines = [json.dumps(table), json.dumps({**ROWS[0], "more": [[]] * 200})]
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(ROWS[0]), *lines]) + "\n")
    _, rows, row = read(tmp_path / "a.jsonl")
    assert isinstance(rows, Reject)
    assert isinstance(row, Reject)
    assert (rows.reason, row.reason) == (Reason.TOO_COSTLY, Reason.TOO_COSTLY)
    assert (rows.lost_bytes, row.lost_bytes) == (len(lines[0]), 0)


def test_a_file_that_is_one_row_which_nobody_reads_weighs_what_it_holds(monkeypatch, tmp_path: Path):
    for module in (base, jsonl):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 300)
    table, path = json.dumps(TABLES["by their names"]), tmp_path / "a.json"
    path.write_text(table)
    assert [row.lost_bytes for row in read(path) if isinstance(row, Reject)] == [len(table)]
    path.write_text(json.dumps(ROWS[0]) + "\n" + table)
    assert [row.lost_bytes for row in read(path) if isinstance(row, Reject)] == [0]


ONE = [ROWS[0], {"0": {"id": 1}, "image": "a.png"}, {"meta": {"width": 1}}, {"data": [[1]]}, {}]


@pytest.mark.parametrize("row", ONE, ids=str)
def test_a_row_weighs_as_one(row: dict, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (found,) = read(tmp_path / "a.jsonl")
    assert isinstance(found, Sample) or found.lost_bytes == 0
