"""Slices to samples."""

from collections.abc import Iterator, Sequence

from scalselect_ray.corpus.conversation import ImageResolver, known_id, normalise
from scalselect_ray.corpus.formats import Broken, Cutting, Run, UnreadableFileError, format_of
from scalselect_ray.corpus.images import resolver
from scalselect_ray.corpus.planning import CorpusFile, Slice
from scalselect_ray.corpus.sample import Reason, Reject, Sample, SampleRejectedError, plain
from scalselect_ray.errors import CorpusError, StorageError
from scalselect_ray.io import storage


def read_records(slices: Sequence[Slice]) -> Iterator[tuple[Slice, list[object]]]:
    """The rows of slices of one file as they stand there, in order; `Broken` in the place of a broken row.

    Raises CorpusError, StorageError.
    """
    if not slices:
        return
    file = storage.FileInfo(slices[0].shard, slices[0].size, "")
    runs = [Run(part.first_row, part.stop_row, part.start_byte, part.stop_byte) for part in slices]
    try:
        yield from zip(slices, (_whole(run, records) for run, records in format_of(file).read(file, runs)), strict=True)
    except PermissionError as error:
        raise CorpusError(f"no permission to read {storage.redact(file.uri)}") from error
    except (UnreadableFileError, FileNotFoundError) as error:
        raise CorpusError(
            f"{storage.redact(file.uri)} changed or went away while it was read: {error}; run again"
        ) from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{storage.redact(file.uri)} cannot be read: {error}") from error


def read_slices(slices: Sequence[Slice]) -> Iterator[tuple[Slice, list[Sample | Reject]]]:
    """The rows of consecutive slices of one file, each row once, a slice at a time. Raises CorpusError,
    StorageError."""
    resolve = resolver(slices[0].image_root)
    for part, records in read_records([part for part in slices if part.problem is None]):
        yield part, _samples(part.first_row, records, resolve)
    for part in slices:
        if part.problem is not None:
            yield part, [Reject(part.first_row, None, Reason.UNREADABLE_FILE, plain(f"{part.shard}: {part.problem}"))]


def read_rows(file: CorpusFile, rows: Sequence[int]) -> dict[int, Sample | Reject]:
    """Some rows of one file by their number. It is read no further than the last of them; a row that is not there is
    left out.

    Raises UnreadableFileError, FileNotFoundError, StorageError.
    """
    found: dict[int, Sample | Reject] = {}
    form, resolve, left = format_of(file.file), resolver(file.image_root), set(rows)
    for run in form.scan(file.file, Cutting(file.slice_rows, file.slice_bytes)):
        wanted = left.intersection(range(run.first_row, run.stop_row))
        if wanted:
            for _, records in form.read(file.file, [run]):
                found |= {row.row: row for row in _samples(run.first_row, records, resolve) if row.row in wanted}
        left -= wanted
        if not left:
            break
    return found


def _whole(run: Run, records: list[object]) -> list[object]:
    if len(records) != run.stop_row - run.first_row:
        raise UnreadableFileError(f"{len(records)} rows where {run.stop_row - run.first_row} were")
    return records


def _samples(first_row: int, records: list[object], resolve: ImageResolver) -> list[Sample | Reject]:
    rows: list[Sample | Reject] = []
    for row, record in enumerate(records, start=first_row):
        if isinstance(record, Broken):
            rows.append(Reject(row, None, record.reason, plain(record.message)))
            continue
        try:
            rows.append(normalise(row, record, resolve))
        except SampleRejectedError as error:
            rows.append(Reject(row, known_id(record), error.reason, error.message))
    return rows
