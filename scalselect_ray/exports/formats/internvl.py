"""InternVL: a meta file that names JSON lines and the folder of the images."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scalselect_ray.corpus import PLACEHOLDER
from scalselect_ray.exports.base import ExportRow, Finish, PartReport, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts
from scalselect_ray.io import storage


class InternVL(JsonFile):
    about = "InternVL: meta.json and JSON lines"
    keeps = "rows of conversations"

    def check(self, row: ExportRow) -> None:
        check_counts(row, ("user",))

    def images(self, row: ExportRow, turns: Sequence[Mapping[str, Any]], report: PartReport) -> dict[str, Any]:
        named = super().images(row, turns, report)
        if isinstance(named.get("image"), str) and PLACEHOLDER not in turns[0]["value"]:
            # The trainer would add one there.

            return {"image": [named["image"]]}
        return named

    def usage(self, finish: Finish, file: str) -> Usage:
        entry = {
            "root": finish.paths.folder,
            "annotation": file,
            "data_augment": False,
            "repeat_time": 1,
            "length": finish.count,
        }
        meta = storage.join(finish.target, "meta.json")
        storage.write(meta, json.dumps({"scalselect": entry}, indent=2).encode())
        return Usage([f"--meta_path {meta}"], smaller="a repeat_time below 1 in meta.json keeps the first part")
