"""As `check_trainers.py`, for ms-swift, which needs newer `datasets` than LLaMA-Factory takes."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["EXPORTS"])
EXPORTS = FOLDER / "exports"
EXPECTED: list[dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text())
os.environ["HF_HUB_OFFLINE"] = "1"


def digests(paths: list[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def image_folder(name: str) -> str:
    return json.loads((EXPORTS / name / "export.json").read_text())["image_folder"]


def test_ms_swift(monkeypatch):
    monkeypatch.setenv("ROOT_IMAGE_DIR", image_folder("ms-swift"))
    from swift.dataset import load_dataset
    from swift.template.vision_utils import load_image

    rows, _ = load_dataset([str(EXPORTS / "ms-swift" / "data.jsonl")], strict=True)
    assert len(rows) == len(EXPECTED)
    for row, expected in zip(rows, EXPECTED, strict=True):
        assert [[turn["role"], turn["content"]] for turn in row["messages"]] == expected["turns"]
        paths = [image["path"] for image in row["images"] or []]
        assert digests([os.path.join(image_folder("ms-swift"), path) for path in paths]) == expected["images"]
        assert all(load_image(path).size for path in paths)
