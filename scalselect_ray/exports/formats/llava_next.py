"""LLaVA-NeXT: JSON lines, and a YAML file that names them with a sampling strategy; several images a row."""

import json

from scalselect_ray.exports.base import ExportRow, Finish, Usage
from scalselect_ray.exports.formats.json_files import JsonFile, check_counts, check_turns
from scalselect_ray.io import storage


class LlavaNext(JsonFile):
    about = "LLaVA-NeXT, LLaVA-OneVision: datasets.yaml and JSON lines"
    keeps = "rows of conversations"
    no_system = "LLaVA-NeXT has one of its own"

    def check(self, row: ExportRow) -> None:
        check_turns(row)
        check_counts(row, ("user", "assistant"))

    def usage(self, finish: Finish, file: str) -> Usage:
        listed = storage.join(finish.target, "datasets.yaml")
        entry = f"  - json_path: {json.dumps(file)}\n    sampling_strategy: all\n"  # a JSON string is one of YAML
        storage.write(listed, f"datasets:\n{entry}".encode())
        return Usage(
            [f"--data_path {listed} --image_folder {finish.paths.folder}"],
            ["sampling_strategy 'random' does not take the best: use 'first'"],
            smaller="sampling_strategy: first:N",
        )
