"""LLaVA 1.5: one JSON list; one image a row; user and assistant take turns."""

from typing import Any

from scalselect_ray.exports.base import Finish, NotExportableError, Part, Row, Usage
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

    def check(self, row: Row) -> None:
        if len(row.pictures) > 1:
            raise NotExportableError("LLaVA 1.5 takes one image a row (llava-next takes several)")
        check_turns(row)
        check_counts(row, ("user", "assistant"))

    def row(self, row: Row, part: Part) -> dict[str, Any]:
        turns = without_system(row, part, "LLaVA has one of its own")
        return {
            **row_id(row),
            **one_or_list([part.places.path(picture) for picture in row.pictures]),
            "conversations": turns,
        }

    def usage(self, finish: Finish, file: str) -> Usage:
        return Usage([f"--data_path {file} --image_folder {finish.places.folder}"])
