"""Bad rows between good ones, by the job's command line: every good one is scored as if the bad were not there, every
bad one says why."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

from scalselect_ray.cli import main

pytestmark = pytest.mark.usefixtures("cluster")

CORPUS = GOLDEN / "llava"
ROWS = json.loads((CORPUS / "samples.json").read_text())
SAID = ROWS[0]["messages"]
IMAGE = ROWS[0]["images"][0]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def thin_png() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (1, 60_000), "red").save(sink, "PNG")
    return sink.getvalue()


BAD_IMAGES = {
    "truncated.jpg": ((CORPUS / ROWS[2]["images"][0]).read_bytes()[:600], "image_unreadable", "truncated"),
    "empty.png": (b"", "image_unreadable", "is empty"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "image_unreadable", "not an image (starts with b'<!DOCTYPE ht'"),
    "bomb.png": (png_header(60_000, 60_000), "image_too_large", "bomb"),
    "large.png": (png_header(12_000, 12_000), "image_too_large", "12000x12000"),
    "thin.png": (thin_png(), "image_too_large", "1x60000"),
}
OUTSIDE = {
    "../secret.png": "outside the image root",
    "images/../../secret.png": "outside the image root",
    "/etc/passwd": "outside the image root",
    "images/link.png": "by the link",
    "images/link.png::x": "could take for another",
    "http://example.com/a.png": "a URL is never fetched, and no option allows it",
    "https://example.com/a.png": "a URL is never fetched, and no option allows it",
    "http://169.254.169.254/latest/meta-data/iam": "a URL is never fetched, and no option allows it",
    "file:///etc/passwd": "outside the image root",
    "s3://other/a.png": "a URL is never fetched, and no option allows it",
    "a" * 100_000: "a path of 100,000 characters",
    "images/\0.png": "is no path",
    "images/\ud800.png": "is no path",
}


def with_image(image: object, **more: object) -> str:
    return json.dumps({"messages": SAID, "images": [image], **more})


def with_turns(*turns: tuple[str, object], images: object = (IMAGE,)) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns], "images": images})


ANSWER = ("assistant", "Yes.")
BAD_ROWS: list[tuple[str | bytes, str, str]] = [
    *((with_image(f"images/{name}"), reason, words) for name, (_, reason, words) in BAD_IMAGES.items()),
    *((with_image(path), "image_refused", words) for path, words in OUTSIDE.items()),
    (with_image("images/nowhere.png"), "image_missing", "images/nowhere.png"),
    (with_image("images"), "image_missing", "no file"),
    (with_image({"bytes": 10**15}), "image_unreadable", "found int"),
    (with_image({"bytes": "iVBORw0KGgo="}), "image_unreadable", "no base64 of a known image"),
    (with_image("data:image/png;base64,%%%"), "image_unreadable", "base64"),
    (with_image(IMAGE, id="x" * 1_000_000, video="a.mp4"), "unsupported_media", "video"),
    ('{"messages": [', "broken_row", "not JSON"),
    (b'{"id": "\xff\xfe"}', "broken_row", "not JSON"),
    (b'{"id": "a\0b"}', "broken_row", "not JSON"),
    ("[" * 100_000, "broken_row", "not JSON"),
    ('{"id": ' + "9" * 5000 + "}", "broken_row", "not JSON"),
    ("7", "broken_row", "found int"),
    ("null", "broken_row", "found NoneType"),
    ('"text"', "broken_row", "found str"),
    ("{}", "bad_conversation", "no conversation"),
    (with_turns(("wizard", "<image>Hi"), ANSWER), "bad_conversation", "unknown role 'wizard'"),
    (with_turns(("user", {"a": 1}), ANSWER), "bad_conversation", "found dict"),
    (with_turns(("user", "<image>a\0b"), ANSWER), "bad_conversation", "NUL character"),
    (with_turns(("user", "<image>a\ud800b"), ANSWER), "bad_conversation", "half a character"),
    (with_turns(("user", "<image>Hi")), "bad_conversation", "assistant turn"),
    (with_turns(("user", "<image><image>"), ANSWER), "placeholder_mismatch", "2 image placeholders but 1 images"),
    (with_turns(("user", "<image>"), ANSWER, images=[IMAGE] * 3), "placeholder_mismatch", "1 image placeholders but 3 "
    "images"),
    (with_turns(("user", "<image>"), ("assistant", "an <image>")), "special_token", "a text of the assistant holds "
    "<image>"),
    (with_turns(("user", "<image>"), ("assistant", "long " * 2000)), "too_long", "tokens, more than the limit of 4096"),
    (with_turns(("user", "<image>"), ("assistant", "long " * 100_000)), "too_long", "500,000 characters"),
    (with_turns(("user", "<image>"), *[ANSWER, ("user", "?")] * 3000), "too_long", "6,001 parts"),
    (with_turns(("user", "<image>"), ANSWER, images=[]), "placeholder_mismatch", "1 image placeholders but 0 images"),
    (with_turns(("user", "<image> ~"), ANSWER), "non_finite", "NaN"),
    (with_turns(("system", "~"), ("user", "<image>"), ANSWER), "non_finite", "NaN"),
]  # fmt: skip


def model_with_a_nan(folder: Path) -> Path:
    """The golden model, but the embedding of `~`, which no golden sample says, is NaN."""
    model = folder / "model"
    shutil.copytree(CORPUS / "model", model)
    tensors = load_file(model / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name][AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("~")] = np.nan
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def test_bad_rows_are_rejected_with_their_reason_and_good_ones_are_scored_as_if_alone(tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(CORPUS / "images", root / "images")
    for name, (data, _, _) in BAD_IMAGES.items():
        (root / "images" / name).write_bytes(data)
    shutil.copy(CORPUS / IMAGE, tmp_path / "secret.png")
    (root / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    good = [json.dumps(row) for row in ROWS]
    lines = [
        line
        for pair in zip(BAD_ROWS, [*good, *[None] * len(BAD_ROWS)], strict=False)
        for line in (pair[0][0], pair[1])
        if line
    ]
    data = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    (tmp_path / "rows.jsonl").write_bytes(data)
    source = {"name": "mixed", "paths": [str(tmp_path / "rows.jsonl")], "image_root": str(root)}

    assert (
        main(["run", str(write_config(tmp_path, [source], model_with_a_nan(tmp_path))), "rejects.max_fraction=0.9"])
        == 0
    )

    said = capsys.readouterr().err
    assert "Traceback" not in said
    run = next((tmp_path / "output" / "runs").iterdir())
    rejects = pq.read_table(run / "rejects.parquet").sort_by("row").to_pylist()
    found = [
        (row["reason"], expected in row["message"], row["message"])
        for row, (_, _, expected) in zip(rejects, BAD_ROWS, strict=True)
    ]
    assert [item for item, (_, reason, _) in zip(found, BAD_ROWS, strict=True) if item[:2] != (reason, True)] == []
    assert max(len(row["message"]) for row in rejects) <= 1000, "messages are bounded"
    assert max(len(row["id"] or "") for row in rejects) == 1000, "ids are bounded"
    scores = pq.read_table(run / "scores").sort_by("row")
    assert scores["id"].to_pylist() == [str(row["id"]) for row in ROWS]
    np.testing.assert_allclose(scores["score"], np.load(CORPUS / "expected.npz")["scores"], atol=1e-6)
