"""Slices to samples."""

from collections.abc import Iterator, Sequence

from scalselect_ray import storage
from scalselect_ray.corpus.conversation import normalise
from scalselect_ray.corpus.formats import Broken, Run, UnreadableFileError, format_of
from scalselect_ray.corpus.images import resolver
from scalselect_ray.corpus.planning import CorpusFile, Slice
from scalselect_ray.corpus.sample import Reason, Reject, Sample, SampleRejectedError
from scalselect_ray.errors import CorpusError


def read_slices(slices: Sequence[Slice]) -> Iterator[tuple[Slice, list[Sample | Reject]]]:
    """The rows of consecutive slices of one file, each row once, a slice at a time. Raises CorpusError without permission."""
    readable = [part for part in slices if part.problem is None]
    if readable:
        file = storage.FileInfo(readable[0].shard, readable[0].size, "")
        resolve = resolver(readable[0].image_root)
        runs = [Run(part.first_row, part.stop_row, part.start_byte, part.stop_byte) for part in readable]
        try:
            yield from zip(readable, (_samples(run, rows, resolve) for run, rows in format_of(file).read(file, runs)), strict=True)
        except PermissionError as error:
            raise CorpusError(f"no permission to read {storage.redact(file.uri)}") from error
        except (UnreadableFileError, FileNotFoundError) as error:
            raise CorpusError(f"{storage.redact(file.uri)} changed or went away while it was read: {error}; run again") from error
    for part in slices:
        if part.problem is not None:
            yield part, [Reject(part.first_row, None, Reason.UNREADABLE_FILE, f"{storage.redact(part.shard)}: {part.problem}")]


def read_rows(file: CorpusFile, rows: Sequence[int]) -> dict[int, Sample | Reject]:
    """Some rows of one file by their number. It is read no further than the last of them; a row that is not there is left out.

    Raises UnreadableFileError, FileNotFoundError, StorageError.
    """
    found: dict[int, Sample | Reject] = {}
    form, resolve, left = format_of(file.file), resolver(file.image_root), set(rows)
    for run in form.scan(file.file, file.slice_rows, file.slice_bytes):
        wanted = left.intersection(range(run.first_row, run.stop_row))
        if wanted:
            for _, records in form.read(file.file, [run]):
                found |= {row.row: row for row in _samples(run, records, resolve) if row.row in wanted}
        left -= wanted
        if not left:
            break
    return found


def _samples(run: Run, records: list[object], resolve: object) -> list[Sample | Reject]:
    rows: list[Sample | Reject] = []
    for row, record in enumerate(records, start=run.first_row):
        if isinstance(record, Broken):
            rows.append(Reject(row, None, record.reason, record.message))
            continue
        try:
            rows.append(normalise(row, record, resolve))  # type: ignore[arg-type]
        except SampleRejectedError as error:
            name = record.get("id") if isinstance(record, dict) else None
            rows.append(Reject(row, None if name is None else str(name)[:1000], error.reason, error.message))
    return rows
