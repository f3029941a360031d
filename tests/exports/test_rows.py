"""One row: what each trainer gets to read, and which rows it could not read."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import braceexpand
import mixed_corpus
import pytest
from PIL import Image

from scalselect_ray.corpus import CorpusFile, ImagePlaceholder, SliceId, Turn, normalise, plan_file, resolver
from scalselect_ray.corpus.formats.webdataset import WebDataset
from scalselect_ray.errors import ConfigError, CorpusChangedError
from scalselect_ray.exports import FORMATS, parts
from scalselect_ray.exports.base import (
    ExportImage,
    ExportRow,
    ImagePaths,
    NotExportableError,
    PartReport,
    common_folder,
    text_of,
)
from scalselect_ray.exports.formats.datacomp import key_of
from scalselect_ray.exports.formats.energon import escaped
from scalselect_ray.exports.rows import read_rows, stored_digests, suffix_of
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore, feature_table
from scalselect_ray.store.layout import Output


def row(*turns: tuple[str, str], images: int = 1, **more: object) -> ExportRow:
    made = normalise(
        0,
        {"messages": [{"role": role, "content": text} for role, text in turns]} | {"images": ["a.png"] * images},
        resolver("/r"),
        True,
    )
    kept = tuple(ExportImage(image.name, "/r", image.uri) for image in made.images)
    return ExportRow(1, "s", "/c/x.json", 7, "an id", 0.5, turns=made.turns, images=kept, **more)


REPORT = PartReport(ImagePaths("/out", "/r", sole_root=True))


@pytest.mark.parametrize(
    ("record", "texts"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": " <image>\n\nWhat? <image> "},
                    {"role": "assistant", "content": " A\n"},
                ]
            },
            [" <image>\n\nWhat? <image> ", " A\n"],
        ),
        (
            {"conversations": [{"from": "human", "value": "\tWhat?"}, {"from": "gpt", "value": "A <image>"}]},
            ["<image>\n<image>\n\tWhat?", "A <image>"],
        ),
        (
            {"texts": [{"user": "Q1 ", "assistant": "A1"}, {"user": "Q2", "assistant": "A2"}]},
            ["<image>\n<image>\nQ1 ", "A1", "Q2", "A2"],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image"}, {"type": "text", "text": " Q "}, {"type": "image"}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                ]
            },
            ["<image>\n Q <image>\n", "A"],
        ),
    ],
    ids=["text", "no placeholder", "texts", "typed"],
)
def test_texts_stay_as_they_are(record, texts):
    sample = normalise(0, record | {"images": ["a.png", "b.png"]}, resolver("/r"), verbatim=True)
    assert [text_of(turn) for turn in sample.turns] == texts
    assert [part.index for turn in sample.turns for part in turn.content if isinstance(part, ImagePlaceholder)] == [
        0,
        1,
    ]


Q, A = ("user", "<image>\nQ"), ("assistant", "A")


@pytest.mark.parametrize(
    ("name", "turns", "images", "words"),
    [
        ("llava", [("user", "<image><image>Q"), A], 2, "one image a row"),
        ("llava", [Q, ("assistant", "an <image>")], 1, "2 <image> for 1 images"),
        ("llava", [Q, A, A], 1, "take turns"),
        ("llava-next", [("user", "Q <image>"), ("user", "Q"), A], 1, "take turns"),
        ("llama-factory", [Q, A, ("user", "Q")], 1, "last turn"),
        ("llama-factory", [Q, ("assistant", "see <video>")], 1, "<video>"),
        ("llama-factory", [Q, ("assistant", "see <image>")], 1, "2 <image> for 1 images"),
        ("ms-swift", [("system", "<image>"), Q, A], 1, "2 <image> for 1 images"),
        ("ms-swift", [Q, ("assistant", "<bbox>")], 1, "<bbox>"),
        ("qwen-vl", [("user", "<image> <video>"), A], 1, "<video>"),
    ],
)
def test_rows_that_a_trainer_could_not_read_are_refused(name, turns, images, words):
    with pytest.raises(NotExportableError, match=words):
        FORMATS[name].check(row(*turns, images=images))


@pytest.mark.parametrize("name", ["qwen-vl", "internvl"])
def test_a_placeholder_in_an_answer_is_text_where_only_questions_are_searched(name):
    FORMATS[name].check(row(Q, ("assistant", "an <image>")))


def test_internvl_adds_a_placeholder_to_rows_with_one_path_unless_it_is_a_list():
    to_row = FORMATS["internvl"].row
    assert to_row(row(Q, A), REPORT)["image"] == "a.png"
    assert to_row(row(("system", "S"), Q, A), REPORT)["image"] == ["a.png"]
    assert to_row(row(("user", "Q"), A, ("user", "<image>Q"), A), REPORT)["image"] == ["a.png"]


def test_system_turns_go_where_the_trainer_knows_them_and_are_missed_elsewhere():
    made = row(("system", " S"), Q, A)
    for name, roles in (
        ("llava", ["human", "gpt"]),
        ("qwen-vl", ["human", "gpt"]),
        ("internvl", ["system", "human", "gpt"]),
    ):
        report = PartReport(REPORT.paths)
        assert [turn["from"] for turn in FORMATS[name].row(made, report)["conversations"]] == roles
        assert sum(report.notes.values()) == (len(roles) == 2)


def test_paths_are_the_rows_own_below_the_one_image_root():
    image = ExportImage("a/b.png", "/r", "/r/a/b.png")
    assert ImagePaths("/out", "/r", sole_root=True).of(image) == "a/b.png"
    assert ImagePaths("/out", "/r", sole_root=True).of(ExportImage("./a//b.png", "/r", "/r/a/b.png")) == "a/b.png"
    assert ImagePaths("/r/out", "/", sole_root=False).of(image) == "r/a/b.png"
    assert (
        ImagePaths("s3://b/out", "s3://b", sole_root=False).of(ExportImage("x", copy="images/0.png"))
        == "out/images/0.png"
    )


def test_the_common_folder():
    assert common_folder(["/a/b", "/a/bc"]) == "/a"
    assert common_folder(["s3://b/x/y", "s3://b/x"]) == "s3://b/x"
    for folders in (["/a", "s3://a"], ["s3://a/x", "s3://b/x"]):
        with pytest.raises(ConfigError, match="--images copy"):
            common_folder(folders)


def test_datacomp_keys_are_the_rows_own_or_a_hash_of_its_place():
    uid = "139e4a9b22a614771f06c700a8ebe150"
    plain = ExportRow(1, "s", "/c/x.json", 7, "an id", 0.5)
    assert key_of(ExportRow(1, "s", "/c/x.json", 7, 5, 0.5, uid=uid)) == (int(uid, 16), True)
    assert key_of(ExportRow(1, "s", "/c/x.json", 7, uid.upper(), 0.5)) == (int(uid, 16), True)
    assert key_of(plain) == key_of(ExportRow(9, "s", "/c/x.json", 7, None, None))
    assert not key_of(plain)[1]
    assert key_of(plain) != key_of(ExportRow(1, "s", "/c/x.json", 8, "an id", 0.5))


def test_suffixes_come_from_a_known_list_or_the_first_bytes():
    drawn = io.BytesIO()
    Image.new("RGB", (2, 2)).save(drawn, "WEBP")
    assert suffix_of("a.JPEG", b"") == "jpeg"
    assert suffix_of("a.png/../../etc", drawn.getvalue()) == "webp"
    assert suffix_of("bytes", b"nothing") == "img"


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Two samples, which the fixture's user may replace."""
    path = tmp_path / "a.tar"
    samples = {key: {"json": b'{"conversations": []}', "txt": b"the old one"} for key in ("a", "b")}
    mixed_corpus.write_tar(path, samples)
    return path


def replaced(path: Path, gone: bool) -> None:
    """Another version of the same size, or none."""
    data = path.read_bytes().replace(b"the old one", b"the new one")
    path.unlink()
    if not gone:
        path.write_bytes(data)
        os.utime(path, (5, 5))


@pytest.mark.parametrize("gone", [False, True], ids=["another version", "gone"])
def test_members_of_a_tar_that_changes_meanwhile_are_not_exported(gone, tar, monkeypatch):
    """The members are read after the records, whose file was looked at before."""
    file = CorpusFile("s", storage.stat(str(tar)), str(tar.parent), 10, 1 << 20)
    slices = plan_file(file)
    (old, _) = read_rows(slices, {0: (1, 0.5), 1: (2, 0.5)}, with_members=True)
    assert dict(old.members)["a.txt"] == b"the old one"
    members = WebDataset.members

    def late(self: WebDataset, *arguments: Any) -> Iterator[Any]:
        found = list(members(self, *arguments)) if gone else []
        replaced(tar, gone)
        yield from found or members(self, *arguments)

    monkeypatch.setattr(WebDataset, "members", late)
    with pytest.raises(CorpusChangedError, match=r"a\.tar"):
        list(read_rows(slices, {0: (1, 0.5), 1: (2, 0.5)}, with_members=True))


def test_keys_of_a_tar_that_changes_meanwhile_are_not_exported(tar, monkeypatch):
    monkeypatch.setattr(parts.ray, "get", lambda refs: [])
    keys = parts._from_tar(storage.stat(str(tar)), None, 0, [])
    assert next(keys) == ("a", False)
    replaced(tar, gone=False)
    with pytest.raises(CorpusChangedError, match=r"a\.tar"):
        list(keys)


@pytest.mark.parametrize("name", ["shard{1,2}.tar/a", "a,b", "back\\slash", "{", "}x{", "{a..c}"])
def test_energon_reads_names_with_braces_as_they_are(name):
    assert list(braceexpand.braceexpand(escaped(name))) == [name]


def test_turns_are_known_by_value():
    assert Turn("user", (ImagePlaceholder(0, written=False),)) == Turn("user", (ImagePlaceholder(0),))


def test_a_digest_of_pictures_that_is_damaged_is_none(tmp_path):
    """It would say of good pictures that they were replaced."""
    store, slice_id = FeatureStore(Output(str(tmp_path)), "abc"), SliceId("0123456789abcdef", 0, 2, 2)
    rows = [{"source": "s", "shard": "/a", "row": row, "images_digest": f"{row:032x}", "reason": "x"} for row in (0, 1)]
    store.commit(slice_id, feature_table(rows, 3))
    assert stored_digests(store, [slice_id], {1}) == {1: f"{1:032x}"}
    path = tmp_path / "features" / "abc" / f"{slice_id}.parquet"
    data = path.read_bytes()
    for place in range(0, len(data), 50):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        assert stored_digests(store, [slice_id], {0, 1}) == {}
    path.unlink()
    assert stored_digests(store, [slice_id], {0, 1}) == {}
