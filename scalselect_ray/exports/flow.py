"""The flow of an export: manifest and corpus -> rows in the order of files -> sorted runs -> part files in the order
of ranks -> the export.

Tasks do the reading and the writing; the driver sees slices, counts and the URIs of sorted runs.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray import ObjectRef

from scalselect_ray.cluster.preflight import missing_by_node
from scalselect_ray.cluster.session import own_errors, session
from scalselect_ray.cluster.tasks import completed, in_order
from scalselect_ray.config import JobConfig
from scalselect_ray.config_files import parse_config
from scalselect_ray.console import Console
from scalselect_ray.corpus import CorpusFile, Slice, SliceId, list_files, plan_file, reading_units
from scalselect_ray.corpus.formats import RowRange, UnreadableFileError, format_of
from scalselect_ray.corpus.formats.webdataset import WebDataset
from scalselect_ray.errors import ConfigError, CorpusError, OutputError
from scalselect_ray.exports import FORMATS
from scalselect_ray.exports.base import (
    SPOOL,
    ExportRow,
    Finish,
    Format,
    ImagePaths,
    Images,
    NotExportableError,
    PartReport,
    Shard,
    Usage,
    common_folder,
    join_parts,
)
from scalselect_ray.exports.chosen import FILE_ROWS, ChosenRows, RowIndex, count_wanted, wanted
from scalselect_ray.exports.formats import source
from scalselect_ray.exports.rows import check_still, copy_images, fetch_images, read_rows, stored_digests
from scalselect_ray.exports.spool import SortedRun, SortedRunWriter, merged
from scalselect_ray.exports.target import Identity, check_location, claim_of, claimed
from scalselect_ray.io import storage
from scalselect_ray.redaction import to_json
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.files import RunFile, read_files
from scalselect_ray.store.layout import Output, RunFolder, format_name
from scalselect_ray.store.runs import Runs
from scalselect_ray.store.tables import read_part

_RUN_BYTES = 64 << 20  # of a sorted run: a reading task holds it, and while it is written at most twice that
_TASK_BYTES = 128 << 20  # about so many bytes of the corpus in one reading task,
_TASK_ROWS, _TASKS = 5_000, 1_000  # and about so many chosen rows, or more where there would be more tasks than this
_PART_ROWS, _PARTS = 20_000, 200  # the same for part files that are joined to one


@dataclass(frozen=True)
class Export:
    """What is exported, how and to where."""

    run_id: str
    folder: RunFolder  # of the run
    name: str
    format: Format
    mode: Images | None
    target: str
    raw: bool
    store: FeatureStore  # of the run's extractor

    @property
    def identity(self) -> Identity:
        known = {"run_id": self.run_id, "to": self.name, "images": self.mode}
        return {**known, "raw": True} if self.raw else known


def export(
    output: Output, run_id: str, name: str, target: str, images: str | None, console: Console, raw: bool = False
) -> dict[str, Any]:
    """Writes the selection of a finished run (its id, or latest) for one trainer; returns what `export.json` holds.

    `raw`: of a table, the cells as they are. Raises ScalSelectError.
    """
    known, mode = _format_of(name, images, raw)
    runs = Runs(output)
    record = runs.find(run_id)
    store = FeatureStore(output, record.extractor)
    work = Export(record.run_id, runs.folder(record.run_id), name, known, mode, storage.absolute(target), raw, store)
    config = _config_of(work)
    read = read_files(work.folder)
    check_location(work.target, config.corpus, output.uri)
    with claimed(work.target, work.identity), session(console), own_errors():
        files = list_files(config.corpus)
        chosen = ChosenRows(work.folder, files)
        chosen.check_unchanged(read)
        _open_target(work)
        with console.stage("export", chosen.count, "samples") as stage:
            if known.needs == "manifest":
                written = _write_parts(
                    work,
                    ImagePaths(work.target, work.target, False),
                    [(_from_manifest, uri) for uri in chosen.uris],
                    stage.advance,
                )
            elif known.needs == "shards":
                written = _write_shards(work, chosen, console, stage.advance)
            elif known.needs == "files":
                written = _write_files(work, chosen, stage.advance)
            else:
                written = _write_rows(work, chosen, read, stage.advance)
            if not written.finish.count:
                reasons = "; ".join(sorted(written.reasons)) or "no chosen sample is in a file that it can use"
                raise OutputError(f"nothing can be exported to {name}: {reasons}")
            usage = ray.get(_finish.remote(work, written.finish, written.left_out))
            if usage.smaller and not config.selection.per_source:
                usage = replace(usage, lines=[*usage.lines, f"a smaller budget: {usage.smaller}"])
    return _commit(work, chosen.count, written, usage, console)


def _format_of(name: str, images: str | None, raw: bool) -> tuple[Format, Images | None]:
    """The format of this name, and what becomes of images. Raises ConfigError."""
    known = FORMATS.get(name)
    if known is None:
        listed = [f"  {known_name:<15}{each.about}" for known_name, each in FORMATS.items()]
        raise ConfigError(f"'{name}' is no export format; these are:", *listed)
    if images is not None and images not in known.modes:
        can = f"only {' or '.join(known.modes)}" if known.modes else "it names no images"
        raise ConfigError(f"export to {name} does not support --images {images}: {can}")
    if raw and known.raw is None:
        raise ConfigError(f"export to {name} does not support --raw: it changes no texts")
    mode = Images(images) if images is not None else next(iter(known.modes), None)
    return known.raw if raw and known.raw else known, mode


def _config_of(work: Export) -> JobConfig:
    uri = work.folder.config
    return parse_config(storage.read_bytes(uri).decode(), where=uri)


def _open_target(work: Export) -> None:
    """The export is not finished from here on. Raises OutputError where a node does not see its folder."""
    storage.delete([storage.join(work.target, "export.json")])
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) > 1 and storage.is_local(work.target) and any(missing_by_node(nodes, [claim_of(work.target)])):
        raise OutputError(
            f"{work.target} is not there on every node of the cluster: write to a bucket, or to a folder that all "
            "nodes share"
        )


@dataclass
class _Written:
    """What the driver knows once all part files are there."""

    finish: Finish
    reasons: Counter[str]  # of rows that were left out
    notes: Counter[str]
    left_behind: Counter[str]  # fields, and how many rows lost each
    left_out: list[str]  # URIs
    copied: bool = False


def _write_rows(work: Export, chosen: ChosenRows, read: Sequence[RunFile], advance: Any) -> _Written:
    tasks = _reading_tasks(chosen, read)
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
        _read, [(work, task, chosen.parts, f"{number:05d}", first_keys) for number, task in enumerate(tasks)]
    ):
        runs[index], found, has_copies = ray.get(ref)
        roots.update(found)
        copied |= has_copies
    folders = sorted(roots) + ([work.target] if copied else [])
    paths = ImagePaths(
        work.target, common_folder(folders) if folders else work.target, sole_root=len(folders) == 1 and not copied
    )
    shared: ObjectRef[list[SortedRun]] = ray.put([run for some in runs for run in some])
    written = _write_parts(work, paths, [(_from_runs, (shared, part)) for part in range(count)], advance)
    written.copied = copied
    return written


class _Unit(NamedTuple):
    """Slices of one file that are read together, and have chosen rows."""

    number: int  # of the file
    slices: list[Slice]  # as the file is cut now
    extracted: tuple[SliceId, ...]  # as it was cut when features of these rows were extracted


def _reading_tasks(chosen: ChosenRows, read: Sequence[RunFile]) -> list[list[_Unit]]:
    """The reading units with chosen rows, grouped for tasks."""
    known = {file.file_key: file for file in read}
    numbers = [number for number, count in enumerate(chosen.by_file) if count]
    planned = in_order(_plan_wanted, [(chosen.files[number], number, chosen.parts) for number in numbers])
    most = max(_TASK_ROWS, -(-chosen.count // _TASKS))
    tasks: list[list[_Unit]] = []
    rows = size = 0
    for number, units in zip(numbers, planned, strict=True):
        file = known[chosen.files[number].key]
        for unit, count in units:
            if not tasks or rows >= most or size >= _TASK_BYTES:
                tasks.append([])
                rows = size = 0
            tasks[-1].append(_Unit(number, unit, file.slices_between(unit[0].first_row, unit[-1].stop_row)))
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
def _read(
    work: Export,
    units: Sequence[_Unit],
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
    return row if row.problem is None and known.modes else replace(row, turns=(), images=(), members=())


def _write_shards(work: Export, chosen: ChosenRows, console: Console, advance: Any) -> _Written:
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
    return _write_parts(work, ImagePaths(work.target, work.target, False), suppliers, advance, shards)


def _write_files(work: Export, chosen: ChosenRows, advance: Any) -> _Written:
    """One part file for each file with chosen samples."""
    numbers = [number for number, count in enumerate(chosen.by_file) if count]
    suppliers = [
        (functools.partial(_from_file, number=number, parts=chosen.parts), chosen.files[number]) for number in numbers
    ]
    shards = [_shard(chosen, number) for number in numbers]
    paths = ImagePaths(work.target, work.target, False)
    return _write_parts(work, paths, suppliers, advance, shards, source.file_names(shards))


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


def _write_parts(
    work: Export,
    paths: ImagePaths,
    suppliers: Sequence[tuple[Any, Any]],
    advance: Any,
    shards: Sequence[Shard] = (),
    names: Sequence[str] = (),
) -> _Written:
    count = len(suppliers)
    names = names or [work.format.part_name(number, count) for number in range(count)]
    uris = [storage.join(work.target, name) for name in names]
    counts = [0] * len(uris)
    left_out: list[str | None] = [None] * len(uris)
    finish = Finish(paths, uris, counts, work.run_id, shards)
    written = _Written(finish, Counter(), Counter(), Counter(), [])

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


@ray.remote
def _finish(work: Export, finish: Finish, left_out: Sequence[str]) -> Usage:
    if left_out:
        with storage.open_write(storage.join(work.target, "left-out.jsonl")) as stream:
            join_parts(stream, left_out)
    return work.format.finish(finish)


def _commit(work: Export, chosen: int, written: _Written, usage: Usage, console: Console) -> dict[str, Any]:
    """`export.json` is written last: an export without it is not finished."""
    record = {
        **work.identity,
        "format": format_name("export"),
        "target": work.target,
        "chosen": chosen,
        "written": written.finish.count,
        "left_out": dict(sorted(written.reasons.items())),
        "left_behind": dict(sorted((written.left_behind + Counter(usage.left_behind)).items())),
        "image_folder": written.finish.paths.folder if _names_images(work) else None,
        "use": list(usage.lines),
    }
    storage.write(storage.join(work.target, "export.json"), to_json(record, indent=2).encode())
    storage.delete_folder(storage.join(work.target, SPOOL))
    console.note(f"{written.finish.count:,} of {chosen:,} chosen samples of run {work.run_id} to {work.target}")
    for reason, count in written.reasons.most_common():
        console.warn(f"{count:,} left out (see left-out.jsonl): {reason}")
    if lost := written.left_behind:
        console.warn(
            f"fields left behind, for which {work.name} has no place (--to source keeps all): {_counted(lost)}"
        )
    if late := usage.left_behind:
        console.warn(
            "fields left behind, which do not fit into the columns of the first rows, by which the trainer's reader "
            f"settles names and types: {_counted(late)}"
        )
    for note, count in written.notes.most_common():
        console.warn(f"{count:,} {note}")
    if written.copied:
        console.note("  images that are bytes in the corpus, or were to be copied, are in images/")
    for line in usage.lines:
        console.note(f"  {line}")
    if not storage.is_local(work.target) and _names_images(work):
        console.note("  the trainer reads local files: copy or mount them first")
    for warning in usage.warnings:
        console.warn(warning)
    return record


def _names_images(work: Export) -> bool:
    """Whether rows have paths that lead from one folder to their images."""
    return bool(work.format.modes) and not work.format.embeds and work.format.needs == "rows"


def _counted(fields: Mapping[str, int]) -> str:
    """Fields and how many rows lost them, the most first."""
    listed = sorted(fields.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count:,} rows)" if count > 1 else f"{name} (1 row)" for name, count in listed)
