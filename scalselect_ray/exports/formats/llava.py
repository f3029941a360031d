"""LLaVA 1.5: one JSON list; one image a row; user and assistant take turns."""

from scalselect_ray.exports.base import ExportRow, Finish, NotExportableError, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts, check_turns


class Llava(JsonFile):
    about = "LLaVA 1.5: one JSON list"
    keeps = "rows of conversations"
    file = "data.json"
    no_system = "LLaVA has one of its own"

    def check(self, row: ExportRow) -> None:
        if len(row.images) > 1:
            raise NotExportableError("LLaVA 1.5 takes one image a row (llava-next takes several)")
        check_turns(row)
        check_counts(row, ("user", "assistant"))

    def usage(self, finish: Finish, file: str) -> Usage:
        return Usage([f"--data_path {file} --image_folder {finish.paths.folder}"])
