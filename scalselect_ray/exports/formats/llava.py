"""LLaVA 1.5: one JSON list; one image a row; user and assistant take turns."""

from typing import Any

from scalselect_ray.exports.base import ExportRow, Finish, NotExportableError, PartReport, Usage
from scalselect_ray.exports.formats.json_files import (
    JsonFile,
    check_counts,
    check_turns,
    one_or_list,
    row_id,
    without_system,
)


class Llava(JsonFile):
    about = "LLaVA 1.5: one JSON list"
    file = "data.json"

    def check(self, row: ExportRow) -> None:
        if len(row.images) > 1:
            raise NotExportableError("LLaVA 1.5 takes one image a row (llava-next takes several)")
        check_turns(row)
        check_counts(row, ("user", "assistant"))

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        turns = without_system(row, report, "LLaVA has one of its own")
        return {
            **row_id(row),
            **one_or_list([report.paths.of(image) for image in row.images]),
            "conversations": turns,
        }

    def usage(self, finish: Finish, file: str) -> Usage:
        return Usage([f"--data_path {file} --image_folder {finish.paths.folder}"])
