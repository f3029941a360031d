"""The manifest as CSV, for everything that is no trainer."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from scalselect_ray.exports.base import Finish, Format, PartReport, Usage, join_parts
from scalselect_ray.io import storage

_COLUMNS = ["rank", "source", "shard", "row", "id", "score"]
_FORMULA = r"^[=+\-@\t\r]"  # a cell that begins so is a formula to a spreadsheet
_NOTE = "cells would be formulas in a spreadsheet: an apostrophe stands before each (--raw leaves them as they are)"


class RawCsvTable(Format):
    """Every cell as the manifest has it."""

    about = "the manifest as CSV, with cells that may be formulas in a spreadsheet"
    needs = "manifest"

    def write(self, items: Iterator[pa.Table], report: PartReport, stream: BinaryIO) -> int:
        count = 0
        for table in items:
            cells = self.cells(table.select(_COLUMNS), report)
            csv.write_csv(cells, stream, csv.WriteOptions(include_header=False))
            count += len(table)
        return count

    def cells(self, table: pa.Table, report: PartReport) -> pa.Table:
        """What is written of a table."""
        return table

    def finish(self, finish: Finish) -> Usage:
        uri = storage.join(finish.target, "chosen.csv")
        with storage.open_write(uri) as stream:
            stream.write(",".join(f'"{name}"' for name in _COLUMNS).encode() + b"\n")
            join_parts(stream, finish.parts)
        return Usage([f'pandas.read_csv("{uri}", dtype={{"id": str}})'], smaller="the first lines")


class CsvTable(RawCsvTable):
    """Cells that would be formulas have an apostrophe before them: texts of a corpus are anybody's."""

    about = "the manifest as CSV"
    raw: ClassVar[Format | None] = RawCsvTable()

    def cells(self, table: pa.Table, report: PartReport) -> pa.Table:
        for index, field in enumerate(table.schema):
            if pa.types.is_string(field.type):
                formula = pc.match_substring_regex(table[index], _FORMULA)
                found = pc.sum(formula).as_py() or 0
                if found:
                    report.notes[_NOTE] += found
                    marked = pc.binary_join_element_wise("'", table[index], "")
                    table = table.set_column(index, field, pc.if_else(formula, marked, table[index]))
        return table
