"""The finetuning scripts of Qwen-VL: JSON lines, and the entry of qwenvl/data/__init__.py."""

import json

from scalselect_ray.corpus import PLACEHOLDER, ImagePlaceholder
from scalselect_ray.exports.base import ExportRow, Finish, NotExportableError, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts
from scalselect_ray.io import storage


class QwenVL(JsonFile):
    about = "Qwen-VL finetuning: JSON lines and the entry to paste"
    keeps = "rows of conversations"
    no_system = "the trainer takes every turn that is not the user's for an answer"

    def check(self, row: ExportRow) -> None:
        if any(
            turn.role != "user" and any(isinstance(item, ImagePlaceholder) for item in turn.content)
            for turn in row.turns
        ):
            raise NotExportableError(f"only user turns may hold {PLACEHOLDER}")
        check_counts(row, ("user",), ("<video>",))

    def usage(self, finish: Finish, file: str) -> Usage:
        entry = {"annotation_path": file, "data_path": finish.paths.folder}
        line = f'data_dict["scalselect"] = {json.dumps(entry)}'
        storage.write(storage.join(finish.target, "data_dict.txt"), f"{line}\n".encode())
        return Usage(
            [f"in qwenvl/data/__init__.py: {line}", "then: --dataset_use scalselect"],
            ["--dataset_use scalselect%50 draws half of the rows at random: cut the file instead"],
            smaller=f"head -n N {file}",
        )
