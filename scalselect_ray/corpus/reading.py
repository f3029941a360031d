"""Slices to samples."""

from collections.abc import Iterator, Sequence

from scalselect_ray import storage
from scalselect_ray.corpus.conversation import normalise
from scalselect_ray.corpus.formats import Broken, Run, UnreadableFileError, format_of
from scalselect_ray.corpus.images import resolver
from scalselect_ray.corpus.planning import Slice
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
