"""DataComp's subset file: a sorted array of 128-bit keys.

The key of a row is its `uid`, or else its `id`, where that is 32 hexadecimal digits; of any other row the first 128
bits of the SHA-256 of source, shard URI and row number, joined by NUL."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from scalselect_ray.exports.base import ExportRow, Finish, Format, PartReport, Usage, join_parts
from scalselect_ray.io import storage

_UID = re.compile(r"^[0-9a-fA-F]{32}$")


class DataComp(Format):
    about = "DataComp: a sorted .npy of 128-bit keys"
    part_rows = 0  # keys are not spread as ranks are

    def order(self, row: ExportRow) -> int:
        return key_of(row)[0]

    def write(self, items: Iterator[ExportRow], report: PartReport, stream: BinaryIO) -> int:
        count, last = 0, -1
        for key, own in report.each(items, _key):
            if not own:
                report.notes["rows have no 128-bit uid: their key is a hash of (source, shard, row)"] += 1
            if key == last:
                report.notes["rows repeat the uid of another row, and are written once"] += 1
                continue
            stream.write((key >> 64).to_bytes(8, "little") + (key & (2**64 - 1)).to_bytes(8, "little"))
            count, last = count + 1, key
        return count

    def finish(self, finish: Finish) -> Usage:
        uri = storage.join(finish.target, "subset.npy")
        header: dict[str, Any] = {
            "descr": [("f0", "<u8"), ("f1", "<u8")],
            "fortran_order": False,
            "shape": (finish.count,),
        }
        with storage.open_write(uri) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            join_parts(stream, finish.parts)
        return Usage([f"python resharder.py -i SHARDS -o OUT -s {uri}"])


def _key(row: ExportRow, report: PartReport) -> tuple[int, bool]:
    return key_of(row)


def key_of(row: ExportRow) -> tuple[int, bool]:
    """The key of a row, and whether it is the row's own."""
    for name in (row.uid, row.id):
        if isinstance(name, str) and _UID.match(name):
            return int(name, 16), True
    position = f"{row.source}\0{row.shard}\0{row.row}".encode()
    return int.from_bytes(hashlib.sha256(position).digest()[:16], "big"), False
