"""ms-swift: JSON lines of messages and images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from scalselect_ray.exports.base import ExportRow, Finish, NotExportableError, PartReport, Usage, text_of
from scalselect_ray.exports.formats.json_files import MESSAGES, TableFile, check_counts

_OBJECTS = {"<ref-object>": "ref", "<bbox>": "bbox"}  # a placeholder in a text, and the list that it stands for


class MsSwift(TableFile):
    about = "ms-swift: JSON lines"
    keeps = "rows of messages"
    layout = MESSAGES
    reads_system = True
    places = (
        "tools",
        "objects",
        "channel",
        "label",
        "margin",
        "chat_template_kwargs",
        "rejected_response",
        "rejected_messages",
    )
    turn_places = ("loss", "loss_scale", "weight")
    settling: ClassVar[Mapping[str, Any]] = {"loss": False}  # read of answers alone; a user begins, or a system turn

    def check(self, row: ExportRow) -> None:
        check_counts(row, ("system", "user", "assistant"), ("<video>", "<audio>"))
        objects = row.fields.record.get("objects")
        said = "".join(text_of(turn) for turn in row.turns)
        for placeholder, name in _OBJECTS.items():
            listed = objects.get(name) if isinstance(objects, dict) else None
            held = len(listed) if isinstance(listed, list) else 0
            if (found := said.count(placeholder)) and found != held:
                raise NotExportableError(
                    f"the trainer would take {placeholder} in the text for a placeholder: there are {found} of it, and "
                    f"{held} in the row's objects.{name}"
                )

    def row(self, row: ExportRow, report: PartReport) -> dict[str, Any]:
        made = super().row(row, report)
        for turn in made["messages"]:
            if turn.get("loss") is None and turn.get("weight") in (0, 1):  # as OpenAI says the same
                turn["loss"] = bool(turn["weight"])
        return made

    def images(self, row: ExportRow, turns: Sequence[Mapping[str, Any]], report: PartReport) -> dict[str, Any]:
        return {"images": [report.paths.of(image) for image in row.images]}

    def usage(self, finish: Finish, file: str) -> Usage:
        warnings = ["a dataset given as FILE#N is a random sample of N: cut the file instead"]
        preferred = max(finish.carried["rejected_response"], finish.carried["rejected_messages"])
        if 0 < preferred < finish.count:
            warnings.append(
                f"{preferred:,} of {finish.count:,} rows have a rejected response: of such a file ms-swift takes these "
                "alone. Remove the field to train on all of them"
            )
        return Usage(
            [f"ROOT_IMAGE_DIR={finish.paths.folder} swift sft --dataset {file}"],
            warnings,
            smaller=f"head -n N {file}",
        )
