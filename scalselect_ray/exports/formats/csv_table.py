"""The manifest as CSV, for everything that is no trainer."""

from collections.abc import Iterator
from typing import BinaryIO, Literal

import pyarrow as pa
from pyarrow import csv

from scalselect_ray import storage
from scalselect_ray.exports.base import SPOOL, Finish, Part, Row, Usage, join_parts

_COLUMNS = ["rank", "source", "shard", "row", "id", "score"]


class CsvTable:
    about = "the manifest as CSV"
    needs: Literal["manifest"] = "manifest"
    modes = ()
    embeds = False
    part_rows = None

    def part(self, number: int, parts: int) -> str:
        return f"{SPOOL}/parts/{number:05d}"

    def order(self, row: Row) -> int:
        return row.rank

    def check(self, row: Row) -> None:
        """Every row will do."""

    def write(self, items: Iterator[pa.Table], part: Part, stream: BinaryIO) -> int:
        count = 0
        for table in items:
            csv.write_csv(table.select(_COLUMNS), stream, csv.WriteOptions(include_header=False))
            count += len(table)
        return count

    def finish(self, finish: Finish) -> Usage:
        uri = storage.join(finish.target, "chosen.csv")
        with storage.open_write(uri) as stream:
            stream.write(",".join(f'"{name}"' for name in _COLUMNS).encode() + b"\n")
            join_parts(stream, finish.parts)
        return Usage([f'pandas.read_csv("{uri}", dtype={{"id": str}})', "a smaller budget: the first lines"])
