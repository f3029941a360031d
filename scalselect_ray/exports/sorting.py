"""The chosen rows in the order of their files, read by tasks, as sorted runs in the order of ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import ray
from ray import ObjectRef

from scalselect_ray.cluster.tasks import in_order
from scalselect_ray.corpus import CorpusFile, Slice, SliceId, plan_file, reading_units
from scalselect_ray.errors import CorpusError
from scalselect_ray.exports.base import SPOOL, ExportRow, Format, Images, NotExportableError
from scalselect_ray.exports.chosen import FILE_ROWS, ChosenRows, RowIndex, count_wanted, wanted
from scalselect_ray.exports.fields import NO_FIELDS
from scalselect_ray.exports.rows import copy_images, read_rows, stored_digests
from scalselect_ray.exports.spool import SortedRun, SortedRunWriter
from scalselect_ray.exports.work import Export
from scalselect_ray.io import storage
from scalselect_ray.store.files import RunFile

_RUN_BYTES = 64 << 20  # of a sorted run: a reading task holds it, and while it is written at most twice that
_TASK_BYTES = 128 << 20  # about so many bytes of the corpus in one reading task,
_TASK_ROWS, _TASKS = 5_000, 1_000  # and about so many chosen rows, or more where there would be more tasks than this


class Unit(NamedTuple):
    """Slices of one file that are read together, and have chosen rows."""

    number: int  # of the file
    slices: list[Slice]  # as the file is cut now
    extracted: tuple[SliceId, ...]  # as it was cut when features of these rows were extracted


def reading_tasks(chosen: ChosenRows, read: Sequence[RunFile]) -> list[list[Unit]]:
    """The reading units with chosen rows, grouped for tasks."""
    known = {file.file_key: file for file in read}
    numbers = [number for number, count in enumerate(chosen.by_file) if count]
    planned = in_order(_plan_wanted, [(chosen.files[number], number, chosen.parts) for number in numbers])
    most = max(_TASK_ROWS, -(-chosen.count // _TASKS))
    tasks: list[list[Unit]] = []
    rows = size = 0
    for number, units in zip(numbers, planned, strict=True):
        file = known[chosen.files[number].key]
        for unit, count in units:
            if not tasks or rows >= most or size >= _TASK_BYTES:
                tasks.append([])
                rows = size = 0
            tasks[-1].append(Unit(number, unit, file.slices_between(unit[0].first_row, unit[-1].stop_row)))
            rows += count
            size += unit[0].stop_byte - unit[0].start_byte
    return tasks


@ray.remote
def _plan_wanted(file: CorpusFile, number: int, parts: Sequence[ObjectRef[RowIndex]]) -> list[tuple[list[Slice], int]]:
    """The reading units of a file, of each the slices with chosen rows and how many these are."""
    known = ray.get(list(parts))
    found = []
    for unit in reading_units([slice_ for slice_ in plan_file(file) if slice_.problem is None]):
        counts = [count_wanted(known, number, slice_.first_row, slice_.stop_row) for slice_ in unit]
        if sum(counts):
            found.append(([slice_ for slice_, count in zip(unit, counts, strict=True) if count], sum(counts)))
    if sum(count for _, count in found) != count_wanted(known, number, 0, FILE_ROWS):
        raise CorpusError(
            f"{file.file.uri} cannot be read to its last chosen row: bring back the file as the run read it"
        )
    return found


@ray.remote
def read_units(
    work: Export,
    units: Sequence[Unit],
    parts: Sequence[ObjectRef[RowIndex]],
    name: str,
    first_keys: Sequence[int],
) -> tuple[list[SortedRun], set[str], bool]:
    """Sorted runs of the chosen rows of some units; the image roots they refer to; whether images were copied to
    files."""
    known = ray.get(list(parts))
    writer = SortedRunWriter(storage.join(work.target, SPOOL, "rows", name), first_keys, _RUN_BYTES)
    roots: set[str] = set()
    copied = False
    for number, slices, extracted in units:
        chosen = {
            row: (rank, None if np.isnan(score) else score)
            for row, rank, score in wanted(known, number, slices[0].first_row, slices[-1].stop_row)
        }
        digests = stored_digests(work.store, extracted, chosen) if work.mode is Images.COPY else {}
        rows: Iterator[ExportRow] = (
            _checked(row, work.format) for row in read_rows(slices, chosen, work.format.needs == "members", digests)
        )
        if work.mode is not None and not work.format.embeds:
            rows = copy_images(rows, work.mode, work.target)
        for row in rows:
            writer.add(work.format.order(row), row)
            roots.update(image.root for image in row.images if image.uri is not None and image.root is not None)
            copied |= any(image.copy is not None for image in row.images)
    writer.flush()
    return writer.runs, roots if not work.format.embeds else set(), copied


def _checked(row: ExportRow, known: Format) -> ExportRow:
    """The row, or what is left of it when the trainer could not read it. Without images when the format names none."""
    try:
        if row.problem is None:
            known.check(row)
    except NotExportableError as error:
        row = replace(row, problem=str(error))
    return (
        row if row.problem is None and known.modes else replace(row, turns=(), images=(), members=(), fields=NO_FIELDS)
    )
