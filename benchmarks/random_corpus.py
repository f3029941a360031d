"""The corpus of the random driver: its files as they are and were."""

import io
import itertools
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

TESTS = Path(__file__).parents[1] / "tests"
GOLDEN = TESTS / "golden" / "llava"
SOURCES = ("lists", "tables")  # each a folder of the corpus
SUFFIXES = {"lists": (".json", ".jsonl"), "tables": (".parquet", ".tar")}
Row = Any  # a record of the corpus; what is no dict is a broken row


def _text_only(number: int) -> Row:
    turns = [{"role": "user", "content": f"{number} + 1?"}, {"role": "assistant", "content": f"{number + 1}"}]
    return {"id": f"t{number}", "messages": turns, "images": []}


class Version(NamedTuple):
    """A file of the corpus as it is or was."""

    data: bytes
    rows: tuple[Row, ...]
    time_ns: int


class Corpus:
    """The files of the corpus, on the disk and in memory, with a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Version] = {}  # by "source/name"
        self.past: list[tuple[str, Version]] = []  # what was removed or replaced
        self.missing: set[str] = set()  # images that are away
        self._seconds = itertools.count(1_750_000_000)
        self._numbers = itertools.count()
        golden = json.loads((GOLDEN / "samples.json").read_text())
        self.images = {name: (GOLDEN / name).read_bytes() for row in golden for name in row["images"]}
        mismatched = [{**row, "id": f"m{row['id']}", "images": row["images"] * 2} for row in golden[:2]]
        self._good: list[Row] = golden
        self._others: list[Row] = [*map(_text_only, range(4)), *mismatched]
        for name, data in self.images.items():
            self._image(name).parent.mkdir(parents=True, exist_ok=True)
            self._image(name).write_bytes(data)

    def new_name(self, source: str, dice: random.Random) -> str:
        return f"{source}/{next(self._numbers):04d}{dice.choice(SUFFIXES[source])}"

    def new_rows(self, name: str, dice: random.Random) -> list[Row]:
        """Four to eight rows, most of them good, no two the same."""
        rows = dice.sample(self._good, dice.randint(4, 6))
        rows += dice.sample(self._others, dice.choice((0, 0, 1, 2)))
        if name.startswith("lists/") and dice.random() < 0.2:
            rows.append(dice.choice(("no row", [], 7)))
        dice.shuffle(rows)
        return rows

    def version(self, name: str, rows: list[Row]) -> Version:
        return Version(self._encoded(name, rows), tuple(rows), next(self._seconds) * 10**9)

    def put(self, name: str, version: Version) -> None:
        """Writes a file in its place, with the time of its version."""
        if name in self.files:
            self.past.append((name, self.files[name]))
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(version.data)
        os.utime(path, ns=(version.time_ns, version.time_ns))
        self.files[name] = version

    def remove(self, name: str) -> None:
        self.past.append((name, self.files.pop(name)))
        (self.folder / name).unlink()

    def rename(self, name: str, other: str) -> None:
        self.files[other] = self.files.pop(name)
        (self.folder / name).rename(self.folder / other)

    def take_away(self, image: str) -> None:
        self.missing.add(image)
        self._image(image).rename(self._image(image).with_suffix(".away"))

    def bring_back(self, image: str) -> None:
        self.missing.remove(image)
        self._image(image).with_suffix(".away").rename(self._image(image))

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _image(self, name: str) -> Path:
        return self.folder / name

    def _encoded(self, name: str, rows: list[Row]) -> bytes:
        if name.endswith(".json"):
            return json.dumps(rows).encode()
        if name.endswith(".jsonl"):
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        sink = io.BytesIO()
        if name.endswith(".parquet"):
            images = [[{"bytes": self.images[image], "path": image} for image in row["images"]] for row in rows]
            structs = [{**row, "images": some} for row, some in zip(rows, images, strict=True)]
            image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            turn = pa.struct([("role", pa.string()), ("content", pa.string())])
            schema = pa.schema([("id", pa.string()), ("messages", pa.list_(turn)), ("images", pa.list_(image))])
            pq.write_table(pa.Table.from_pylist(structs, schema), sink, row_group_size=3)
        else:
            with tarfile.open(fileobj=sink, mode="w") as tar:
                for number, row in enumerate(rows):
                    members = {f"{at}.{image[-3:]}": self.images[image] for at, image in enumerate(row["images"])}
                    for member, data in {**members, "json": json.dumps({"messages": row["messages"]}).encode()}.items():
                        info = tarfile.TarInfo(f"{number:03d}.{member}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        return sink.getvalue()
