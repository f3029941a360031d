"""Tars of the chosen samples in rank order. Members of tars stay what they were, byte for byte; only their keys are
new. Other rows are the `.json` as they came, unless a tar cannot hold them so."""

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from scalselect_ray.corpus import ImageRef, SampleRejectedError, normalise
from scalselect_ray.exports.base import ExportRow, Finish, Format, Images, PartReport, Usage
from scalselect_ray.exports.fields import replaced, without
from scalselect_ray.exports.formats.json_files import messages, row_id
from scalselect_ray.exports.rows import suffix_of
from scalselect_ray.io import storage

_LISTED = ("image", "images")  # the fields of a record by which a reader of tars orders the members


class WebDatasetShards(Format):
    about = "WebDataset: new tars with the original bytes"
    keeps = "any row"
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
    report.leave_behind(row.fields.no_json)
    record = _as_it_came(row, [name for name, _ in images])
    return [(f"{key}.json", json.dumps(record).encode()), *images]


def _as_it_came(row: ExportRow, names: list[str]) -> dict[str, Any]:
    """The row with the names of its members in the place of its images; where it would then say something else, its
    turns as messages."""
    record = row.fields.record
    listed = {place: name for place, name in zip(row.fields.images, names, strict=False) if place[0] in _LISTED}
    inside = [place for place in row.fields.images if place not in listed]
    if inside:  # a tar has its images beside the turns
        record = {**without(record, inside), "images": names}
    else:
        record = replaced(record, listed)
        record = {name: value for name, value in record.items() if names or name not in _LISTED}
    if _reads_alike(record, row):
        return record
    known = {name: record[name] for name in row.fields.unread}
    return {**row_id(row), **known, "messages": messages(row), "images": names}


def _reads_alike(record: dict[str, Any], row: ExportRow) -> bool:
    """Whether a tar with this record says what the row says."""
    members = [{"bytes": image.data, "path": image.name} for image in row.images]
    try:
        sample = normalise(row.row, {**record, "image": None, "images": members}, _as_bytes, verbatim=True)
    except SampleRejectedError:
        return False
    return sample.turns == row.turns and [image.data for image in sample.images] == [image.data for image in row.images]


def _as_bytes(image: object) -> ImageRef:
    return ImageRef("", data=image["bytes"] if isinstance(image, dict) else b"")
