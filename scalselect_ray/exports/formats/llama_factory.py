"""LLaMA-Factory: JSON lines in OpenAI's layout, and the entry of dataset_info.json."""

import json
from typing import Any

from scalselect_ray.exports.base import ExportRow, Finish, PartReport, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts, check_turns, messages
from scalselect_ray.io import storage

_ENTRY = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


class LlamaFactory(JsonFile):
    about = "LLaMA-Factory: JSON lines and dataset_info.json"

    def check(self, row: ExportRow) -> None:
        check_turns(row, pairs=True)
        check_counts(row, ("user", "assistant"), ("<video>", "<audio>"))

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        return {"messages": messages(row), "images": [report.paths.of(image) for image in row.images]}

    def usage(self, finish: Finish, file: str) -> Usage:
        entry = {"scalselect": {"file_name": self.file, **_ENTRY}}
        storage.write(storage.join(finish.target, "dataset_info.json"), json.dumps(entry, indent=2).encode())
        return Usage(
            [f"--dataset_dir {finish.target} --dataset scalselect --media_dir {finish.paths.folder}"],
            ["num_samples in dataset_info.json draws at random: use max_samples"],
            smaller="--max_samples N (the first N)",
        )
