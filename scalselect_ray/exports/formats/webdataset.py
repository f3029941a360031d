"""Tars of the chosen samples in rank order. Members of tars stay what they were, byte for byte; only their keys are
new."""

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from scalselect_ray.exports.base import ExportRow, Finish, Format, Images, PartReport, Usage
from scalselect_ray.exports.formats.json_files import messages
from scalselect_ray.exports.rows import suffix_of
from scalselect_ray.io import storage


class WebDatasetShards(Format):
    about = "WebDataset: new tars with the original bytes"
    needs = "members"
    modes = (Images.COPY,)
    embeds = True
    part_rows = 5000

    def part_name(self, number: int, parts: int) -> str:
        return f"{number:05d}.tar"

    def write(self, items: Iterator[ExportRow], report: PartReport, stream: BinaryIO) -> int:
        count = 0
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for members in report.each(items, _members):
                for name, data in members:
                    info = tarfile.TarInfo(name)  # no time, no owner: the same bytes each time
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                count += 1
        return count

    def finish(self, finish: Finish) -> Usage:
        last = len(finish.parts) - 1
        shards = f"{{{0:05d}..{last:05d}}}.tar" if last else "00000.tar"
        return Usage(
            [f'webdataset.WebDataset("{storage.join(finish.target, shards)}", shardshuffle=False)'],
            smaller=f"the first shards; each holds {self.part_rows:,} samples",
        )


def _members(row: ExportRow, report: PartReport) -> list[tuple[str, bytes]]:
    """(name, content); keys are ranks, which sort and never repeat, as keys of many corpora do."""
    key = f"{row.rank:09d}"
    if row.members:
        return [(f"{key}.{posixpath.basename(name).partition('.')[2]}", data) for name, data in row.members]
    images = []
    for number, image in enumerate(row.images):
        position = f"img{number + 1}." if len(row.images) > 1 else ""
        images.append((f"{key}.{position}{suffix_of(image.name, image.data or b'')}", image.data or b""))
    record = {"id": row.id, "source": row.source, "shard": row.shard, "row": row.row, "messages": messages(row)}
    return [(f"{key}.json", json.dumps({**record, "images": [name for name, _ in images]}).encode()), *images]
