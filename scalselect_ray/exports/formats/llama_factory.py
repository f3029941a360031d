"""LLaMA-Factory: JSON lines in OpenAI's layout, and the entry of dataset_info.json."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scalselect_ray.exports.base import ExportRow, Finish, PartReport, Usage
from scalselect_ray.exports.formats.json_files import MESSAGES, TableFile, check_counts, check_turns
from scalselect_ray.io import storage

_COLUMNS = {"messages": "messages", "images": "images"}
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


class LlamaFactory(TableFile):
    about = "LLaMA-Factory: JSON lines and dataset_info.json"
    layout = MESSAGES
    verbatim = False  # it reads the named columns and tags alone
    places = ("tools",)

    def check(self, row: ExportRow) -> None:
        check_turns(row, pairs=True)
        check_counts(row, ("user", "assistant"), ("<video>", "<audio>"))

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        made = super().row(row, report)
        if "tools" in made and not isinstance(made["tools"], str):
            made["tools"] = json.dumps(made["tools"], ensure_ascii=False)
        return made

    def images(self, row: ExportRow, turns: Sequence[Mapping[str, Any]], report: PartReport) -> dict[str, Any]:
        return {"images": [report.paths.of(image) for image in row.images]}

    def always(self, finish: Finish) -> dict[str, Any]:
        return {"tools": ""} if finish.carried["tools"] else {}

    def usage(self, finish: Finish, file: str) -> Usage:
        columns = _COLUMNS | ({"tools": "tools"} if finish.carried["tools"] else {})
        entry = {"file_name": self.file, "formatting": "sharegpt", "columns": columns, "tags": _TAGS}
        written = json.dumps({"scalselect": entry}, indent=2)
        storage.write(storage.join(finish.target, "dataset_info.json"), written.encode())
        return Usage(
            [f"--dataset_dir {finish.target} --dataset scalselect --media_dir {finish.paths.folder}"],
            ["num_samples in dataset_info.json draws at random: use max_samples"],
            smaller="--max_samples N (the first N)",
        )
