"""Every export of the mixed corpus in one folder, with what is expected of it. Usage: python make_exports.py FOLDER"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import mixed_corpus

from scalselect_ray.cli import main
from scalselect_ray.cluster.session import session
from scalselect_ray.console import Console
from scalselect_ray.exports import FORMATS


def make(folder: Path) -> None:
    sources, rows = mixed_corpus.make(folder)
    config = {
        "corpus": {"sources": sources},
        "extractor": {"model": str(mixed_corpus.CORPUS / "model"), "dtype": "float32"},
        "selection": {"budget": 0.7, "text_only": "keep", "text_only_share": 1.0},
        "output": str(folder / "output"),
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    with session(Console()):  # one for all
        assert main(["run", str(folder / "config.yaml")]) == 0
        for name in FORMATS:
            assert (
                main(["export", str(folder / "config.yaml"), "--to", name, "--out", str(folder / "exports" / name)])
                == 0
            )
    selected = mixed_corpus.Selected(folder / "output", folder, rows)
    expected = [
        {**manifest, "turns": turns, "images": [hashlib.sha256(image).hexdigest() for image in images]}
        for manifest, (turns, images) in zip(selected.manifest, selected.expected, strict=True)
    ]
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    make(folder)
