"""The manifest as CSV, for everything that is no trainer."""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
from pyarrow import csv

from scalselect_ray.exports.base import Finish, Format, PartReport, Usage, join_parts
from scalselect_ray.io import storage

_COLUMNS = ["rank", "source", "shard", "row", "id", "score"]


class CsvTable(Format):
    about = "the manifest as CSV"
    needs = "manifest"

    def write(self, items: Iterator[pa.Table], report: PartReport, stream: BinaryIO) -> int:
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
        return Usage([f'pandas.read_csv("{uri}", dtype={{"id": str}})'], smaller="the first lines")
