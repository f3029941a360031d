"""One corpus in three formats with the oddities of real ones, selected once for all tests of exports."""

import base64
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CORPUS = Path(__file__).parent / "golden" / "llava"
ROWS = json.loads((CORPUS / "samples.json").read_text())
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}
Turns = list[tuple[str, str]]


@dataclass
class Selected:
    """A finished run over a corpus that is known row by row."""

    output: Path
    folder: Path  # of the corpus
    rows: dict[
        tuple[str, int], tuple[Turns, list[bytes]]
    ]  # by (source, row): (role, text) of the turns, bytes of the images

    @property
    def run_id(self) -> str:
        return json.loads((self.output / "latest.json").read_text())["run_id"]

    @property
    def manifest(self) -> list[dict[str, Any]]:
        return manifest_of(self.output)

    @property
    def expected(self) -> list[tuple[Turns, list[bytes]]]:
        """What each chosen sample says and shows, best first."""
        return [self.rows[row["source"], row["row"]] for row in self.manifest]


def manifest_of(output: Path) -> list[dict[str, Any]]:
    run = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    parts = [pq.read_table(path) for path in sorted((run / "manifest").iterdir())]
    return pa.concat_tables(parts).to_pylist()


def texts(row: dict[str, Any]) -> Turns:
    return [(turn["role"], turn["content"]) for turn in row["messages"]]


def conversations(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"from": ROLES[role], "value": text} for role, text in texts(row)]


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for name, data in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size, info.mtime = len(data), 1
                tar.addfile(info, io.BytesIO(data))


def make(folder: Path) -> tuple[list[dict[str, object]], dict[tuple[str, int], tuple[Turns, list[bytes]]]]:
    """Writes the corpus; answers its sources, and what each (source, row) says and shows.

    A JSON list (a data URI, a system turn, ids of all kinds, text-only rows), Parquet with bytes, a WebDataset tar.
    """
    images = {name: (CORPUS / name).read_bytes() for row in ROWS for name in row["images"]}
    known: dict[tuple[str, int], tuple[Turns, list[bytes]]] = {}

    def learn(source: str, number: int, row: dict[str, Any], turns: Turns | None = None) -> None:
        known[source, number] = (turns or texts(row), [images[name] for name in row["images"]])

    (folder / "list" / "images").mkdir(parents=True)
    for name, data in images.items():
        (folder / "list" / name).write_bytes(data)
    listed: list[dict[str, Any]] = []
    for number, row in enumerate(ROWS):
        record: dict[str, Any] = {
            "id": number if number % 2 else f"../../{number}",
            "conversations": conversations(row),
            "stray": [1],
        }
        record["image"] = row["images"][0] if len(row["images"]) == 1 else row["images"]
        turns = None
        if number == 3:
            inline = "data:image/png;base64," + base64.b64encode(images[row["images"][0]]).decode()
            record["image"] = inline
        if number == 4:
            record["conversations"].insert(0, {"from": "system", "value": " Be\u00a0brief. "})
            turns = [("system", " Be\u00a0brief. "), *texts(row)]
        listed.append(record)
        learn("list", number, row, turns)
    for number in range(len(ROWS), len(ROWS) + 4):
        turns = [("user", f" How much is {number} + 1?\n"), ("assistant", f"{number + 1} \U0001f600")]
        listed.append({"id": number, "conversations": [{"from": ROLES[role], "value": text} for role, text in turns]})
        known["list", number] = (turns, [])
    (folder / "list" / "list.json").write_text(json.dumps(listed))

    structs = []
    for number, row in enumerate(ROWS):
        structs.append(
            {
                **row,
                "id": "the same",
                "images": [{"bytes": images[name], "path": f"../{name}"} for name in row["images"]],
            }
        )
        learn("parquet", number, row)
    pq.write_table(pa.Table.from_pylist(structs), folder / "rows.parquet", row_group_size=20)

    samples: dict[str, dict[str, bytes]] = {}
    for number, row in enumerate(ROWS):
        members = {f"img{i}.{name.rpartition('.')[2]}": images[name] for i, name in enumerate(row["images"])}
        members |= {"json": json.dumps({"conversations": conversations(row)}, indent=1).encode(), "cls": b"7"}
        samples[f"sample{number:04d}"] = members
        learn("tar", number, row)
    write_tar(folder / "shard.tar", samples)
    sources: list[dict[str, object]] = [
        {"name": "list", "paths": [str(folder / "list" / "list.json")]},
        {"name": "parquet", "paths": [str(folder / "rows.parquet")]},
        {"name": "tar", "paths": [str(folder / "shard.tar")]},
    ]
    return sources, known
