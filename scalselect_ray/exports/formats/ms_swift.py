"""ms-swift: JSON lines of messages and images."""

from typing import Any

from scalselect_ray.exports.base import ExportRow, Finish, PartReport, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts, messages


class MsSwift(JsonFile):
    about = "ms-swift: JSON lines"

    def check(self, row: ExportRow) -> None:
        check_counts(row, ("system", "user", "assistant"), ("<video>", "<audio>", "<bbox>", "<ref-object>"))

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        return {"messages": messages(row), "images": [report.paths.of(image) for image in row.images]}

    def usage(self, finish: Finish, file: str) -> Usage:
        return Usage(
            [f"ROOT_IMAGE_DIR={finish.paths.folder} swift sft --dataset {file}"],
            ["a dataset given as FILE#N is a random sample of N: cut the file instead"],
            smaller=f"head -n N {file}",
        )
