"""The part files of an export, each written by one task: of a part of the manifest, of rows in rank order, of a shard
or of a file of the corpus."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray import ObjectRef

from scalselect_ray.cluster.tasks import completed, in_order
from scalselect_ray.console import Console
from scalselect_ray.corpus import CorpusFile, plan_file
from scalselect_ray.corpus.formats import RowRange, UnreadableFileError, format_of
from scalselect_ray.corpus.formats.webdataset import WebDataset
from scalselect_ray.exports.base import SPOOL, ExportRow, Finish, ImagePaths, Images, PartReport, Shard, common_folder
from scalselect_ray.exports.chosen import FILE_ROWS, ChosenRows, RowIndex, wanted
from scalselect_ray.exports.formats import source
from scalselect_ray.exports.rows import check_still, fetch_images
from scalselect_ray.exports.sorting import read_units, reading_tasks
from scalselect_ray.exports.spool import SortedRun, merged
from scalselect_ray.exports.work import Export
from scalselect_ray.io import storage
from scalselect_ray.redaction import to_json
from scalselect_ray.store.files import RunFile
from scalselect_ray.store.tables import read_part

# Rows of a part file that is joined to others, or more where there would be more files than this.
_PART_ROWS, _PARTS = 20_000, 200


@dataclass
class Written:
    """What the driver knows once all part files are there."""

    finish: Finish
    reasons: Counter[str]  # of rows that were left out
    notes: Counter[str]
    left_behind: Counter[str]  # fields, and how many rows lost each
    left_out: list[str]  # URIs
    copied: bool = False


def write_manifest(work: Export, chosen: ChosenRows, advance: Any) -> Written:
    """One part file for each of the manifest."""
    paths = ImagePaths(work.target, work.target, False)
    return write_parts(work, paths, [(_from_manifest, uri) for uri in chosen.uris], advance)


def write_rows(work: Export, chosen: ChosenRows, read: Sequence[RunFile], advance: Any) -> Written:
    tasks = reading_tasks(chosen, read)
    known = work.format
    part_rows = (
        max(_PART_ROWS, -(-chosen.count // _PARTS)) if known.part_rows is None else known.part_rows or chosen.count
    )
    count = max(1, -(-chosen.count // part_rows))
    first_keys = [1 + number * part_rows for number in range(1, count)]
    runs: list[list[SortedRun]] = [[] for _ in tasks]
    roots: set[str] = set()
    copied = False
    for index, ref in completed(
        read_units, [(work, task, chosen.parts, f"{number:05d}", first_keys) for number, task in enumerate(tasks)]
    ):
        runs[index], found, has_copies = ray.get(ref)
        roots.update(found)
        copied |= has_copies
    folders = sorted(roots) + ([work.target] if copied else [])
    paths = ImagePaths(
        work.target, common_folder(folders) if folders else work.target, sole_root=len(folders) == 1 and not copied
    )
    shared: ObjectRef[list[SortedRun]] = ray.put([run for some in runs for run in some])
    written = write_parts(work, paths, [(_from_runs, (shared, part)) for part in range(count)], advance)
    written.copied = copied
    return written


def write_shards(work: Export, chosen: ChosenRows, console: Console, advance: Any) -> Written:
    """One part file for each tar with chosen samples."""
    numbers = [number for number, is_tar in enumerate(in_order(_is_tar, [(file,) for file in chosen.files])) if is_tar]
    elsewhere = chosen.count - int(chosen.by_file[numbers].sum())
    if elsewhere:
        console.warn(f"{elsewhere:,} chosen samples lie in files that are no plain tar: this export does not hold them")
    shards = [_shard(chosen, number) for number in numbers]
    suppliers = [
        (functools.partial(_from_tar, number=number, parts=chosen.parts), chosen.files[number].file)
        for number, shard in zip(numbers, shards, strict=True)
        if shard.chosen
    ]
    return write_parts(work, ImagePaths(work.target, work.target, False), suppliers, advance, shards)


def write_files(work: Export, chosen: ChosenRows, advance: Any) -> Written:
    """One part file for each file with chosen samples."""
    numbers = [number for number, count in enumerate(chosen.by_file) if count]
    suppliers = [
        (functools.partial(_from_file, number=number, parts=chosen.parts), chosen.files[number]) for number in numbers
    ]
    shards = [_shard(chosen, number) for number in numbers]
    paths = ImagePaths(work.target, work.target, False)
    return write_parts(work, paths, suppliers, advance, shards, source.file_names(shards))


def _shard(chosen: ChosenRows, number: int) -> Shard:
    file = chosen.files[number]
    count = int(chosen.by_file[number])
    return Shard(
        file.source, file.file.uri, file.file.size, count, file.image_root, tuple(file.image_links), dict(file.columns)
    )


@ray.remote
def _is_tar(file: CorpusFile) -> bool:
    try:
        kind = format_of(file.file)
    except (UnreadableFileError, OSError):
        return False
    return isinstance(kind, WebDataset) and not kind.sequential


def _from_manifest(uri: str, work: Export) -> Iterator[pa.Table]:
    yield read_part(uri)


def _from_runs(supplied: tuple[ObjectRef[list[SortedRun]], int], work: Export) -> Iterator[ExportRow]:
    runs, part = supplied
    rows = merged([run.range(part) for run in ray.get(runs)])
    return fetch_images(rows) if work.format.embeds and work.mode is Images.COPY else rows


def _from_tar(
    file: storage.FileInfo, work: Export, number: int, parts: Sequence[ObjectRef[RowIndex]]
) -> Iterator[tuple[str, bool]]:
    rows = {row for row, _, _ in wanted(ray.get(list(parts)), number, 0, FILE_ROWS)}
    for row, key in enumerate(WebDataset().keys(file)):
        yield key, row in rows
    check_still(file)


def _from_file(
    file: CorpusFile, work: Export, number: int, parts: Sequence[ObjectRef[RowIndex]]
) -> Iterator[source.ChosenRows]:
    rows = frozenset(row for row, _, _ in wanted(ray.get(list(parts)), number, 0, FILE_ROWS))
    ranges = [
        RowRange(slice_.first_row, slice_.stop_row, slice_.start_byte, slice_.stop_byte)
        for slice_ in plan_file(file)
        if slice_.problem is None and any(row in rows for row in range(slice_.first_row, slice_.stop_row))
    ]
    yield source.ChosenRows(file.file, ranges, rows)
    check_still(file.file)


def write_parts(
    work: Export,
    paths: ImagePaths,
    suppliers: Sequence[tuple[Any, Any]],
    advance: Any,
    shards: Sequence[Shard] = (),
    names: Sequence[str] = (),
) -> Written:
    count = len(suppliers)
    names = names or [work.format.part_name(number, count) for number in range(count)]
    uris = [storage.join(work.target, name) for name in names]
    counts = [0] * len(uris)
    left_out: list[str | None] = [None] * len(uris)
    finish = Finish(paths, uris, counts, work.run_id, shards)
    written = Written(finish, Counter(), Counter(), Counter(), [])

    tasks = [
        (work, paths, *supplier, index, uri) for index, (supplier, uri) in enumerate(zip(suppliers, uris, strict=True))
    ]
    for index, ref in completed(_write_part, tasks):
        counts[index], reasons, report = ray.get(ref)
        written.reasons.update(reasons)
        written.notes.update(report.notes)
        written.left_behind.update(report.left_behind)
        finish.carried.update(report.carried)
        left_out[index] = _left_out_uri(work, index) if reasons else None
        advance(counts[index])
    written.left_out += [uri for uri in left_out if uri]
    return written


def _left_out_uri(work: Export, part: int) -> str:
    return storage.join(work.target, SPOOL, "left-out", f"{part:05d}")


@ray.remote
def _write_part(
    work: Export, paths: ImagePaths, supply: Any, supplied: Any, part: int, uri: str
) -> tuple[int, Counter[str], PartReport]:
    """Streams one part file: (items, rows left out by reason, the report without these rows)."""
    report = PartReport(paths)
    with storage.open_write(uri) as stream:
        count = work.format.write(supply(supplied, work), report, stream)
    if report.left_out:
        lines = "".join(to_json(row) + "\n" for row in report.left_out)
        storage.write(_left_out_uri(work, part), lines.encode())
    return count, Counter(row["reason"] for row in report.left_out), replace(report, left_out=[])
