"""InternVL: a meta file that names JSON lines and the folder of the images."""

import json
from typing import Any

from scalselect_ray.corpus import PLACEHOLDER
from scalselect_ray.exports.base import ExportRow, Finish, PartReport, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts, conversations, one_or_list, row_id
from scalselect_ray.io import storage


class InternVL(JsonFile):
    about = "InternVL: meta.json and JSON lines"

    def check(self, row: ExportRow) -> None:
        check_counts(row, ("user",))

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        turns = conversations(row)
        paths = [report.paths.of(image) for image in row.images]
        image = one_or_list(paths)
        if paths and PLACEHOLDER not in turns[0]["value"]:
            image = {
                "image": paths
            }  # to a row with one path and no placeholder in its first turn the trainer adds one there
        return {**row_id(row), **image, "conversations": turns}

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
