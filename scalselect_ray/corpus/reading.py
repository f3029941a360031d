"""Slices to samples."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from scalselect_ray.corpus.conversation import known_id, normalise, rows_in
from scalselect_ray.corpus.fields import Columns, every_field, renamed, wanted
from scalselect_ray.corpus.formats import Broken, Cutting, Format, RowRange, UnreadableFileError, format_of
from scalselect_ray.corpus.images import resolver
from scalselect_ray.corpus.planning import CorpusFile, check_bytes, check_unchanged
from scalselect_ray.corpus.sample import Reason, Reject, Sample, SampleRejectedError, plain
from scalselect_ray.corpus.slices import Slice
from scalselect_ray.errors import CorpusChangedError, CorpusError, StorageError
from scalselect_ray.filters import RowFilter, parse_filter
from scalselect_ray.io import storage


def read_records(slices: Sequence[Slice], whole: bool = False) -> Iterator[tuple[Slice, list[object]]]:
    """The rows of slices of one file as they stand there, in order; `Broken` in the place of a broken row. `whole`:
    with what no sample is made of, where a format has that apart.

    Raises CorpusChangedError where the file is not the version any more that was planned; CorpusError, StorageError.
    """
    if not slices:
        return
    file = storage.FileInfo(slices[0].shard, slices[0].size, slices[0].version)
    ranges = [RowRange(slice_.first_row, slice_.stop_row, slice_.start_byte, slice_.stop_byte) for slice_ in slices]
    fields = every_field(slices[0].columns) if whole else _read_of(slices[0])
    form: Format | None = None
    try:
        try:
            form = format_of(file)
            for slice_, (range_, records) in zip(slices, form.read(file, ranges, fields), strict=True):
                if len(records) != range_.stop_row - range_.first_row:
                    raise UnreadableFileError(f"{len(records)} rows where {range_.stop_row - range_.first_row} were")
                check_unchanged(file)  # what is handed on was read from the version that names its slice
                check_bytes(form, slice_)
                yield slice_, records
        except UnreadableFileError as error:
            check_unchanged(file)
            for slice_ in slices:
                check_bytes(form, slice_)
            raise CorpusError(f"{file.uri} could be read when it was planned, and now not: {error}") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CorpusChangedError([file.uri]) from error
    except PermissionError as error:
        raise CorpusError(f"no permission to read {file.uri}") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{file.uri} cannot be read: {error}") from error


def read_slices(slices: Sequence[Slice]) -> Iterator[tuple[Slice, list[Sample | Reject]]]:
    """The rows of consecutive slices of one file, each row once, a slice at a time; those that a filter leaves out are
    left out. Raises as `read_records`."""
    made = samples_of(slices[0])
    for slice_, records in read_records([slice_ for slice_ in slices if slice_.problem is None]):
        yield slice_, made(slice_.first_row, records)
    for slice_ in slices:
        if slice_.problem is not None:
            check_unchanged(storage.FileInfo(slice_.shard, slice_.size, slice_.version))
            yield (
                slice_,
                [
                    Reject(
                        slice_.first_row,
                        None,
                        Reason.UNREADABLE_FILE,
                        plain(f"{slice_.shard}: {slice_.problem}"),
                        slice_.lost_bytes,
                    )
                ],
            )


def read_rows(file: CorpusFile, rows: Sequence[int]) -> dict[int, Sample | Reject]:
    """Some rows of one file by their number. It is read no further than the last of them; a row that is not there, or
    that a filter leaves out, is left out.

    Raises UnreadableFileError, FileNotFoundError, StorageError.
    """
    found: dict[int, Sample | Reject] = {}
    form, made, left = format_of(file.file), samples_of(file), set(rows)
    for range_ in form.scan(file.file, Cutting(file.slice_rows, file.slice_bytes)):
        here = left.intersection(range(range_.first_row, range_.stop_row))
        if here:
            for _, records in form.read(file.file, [range_], _read_of(file)):
                found |= {row.row: row for row in made(range_.first_row, records) if row.row in here}
        left -= here
        if not left:
            break
    return found


def samples_of(part: Slice | CorpusFile) -> Callable[[int, Sequence[object]], list[Sample | Reject]]:
    """What makes samples of consecutive records of a file, given the number of the first; of those that a filter
    leaves out none. What is broken, or no row, says nothing of its columns, and stays."""
    resolve, columns, kept = resolver(part.image_root, part.image_links), part.columns, _filter_of(part)

    def sample(row: int, record: object) -> Sample | Reject:
        if isinstance(record, Broken):
            return Reject(row, None, record.reason, plain(record.message), record.lost_bytes)
        try:
            return normalise(row, record, resolve, columns=columns)
        except SampleRejectedError as error:
            lost = _written_bytes(record) if error.reason == Reason.BROKEN_ROW and rows_in(record, columns) else 0
            return Reject(row, known_id(renamed(record, columns)), error.reason, error.message, lost)

    return lambda first_row, records: [
        sample(row, record)
        for row, record in enumerate(records, start=first_row)
        if kept is None or kept.keeps(record) or _is_no_row(record, columns)
    ]


def _written_bytes(record: object) -> int:
    """About what a row takes in its file."""
    return len(json.dumps(record, ensure_ascii=False, default=str))


def _is_no_row(record: object, columns: Columns) -> bool:
    return not isinstance(record, Mapping | list) or rows_in(record, columns) > 0


def _filter_of(part: Slice | CorpusFile) -> RowFilter | None:
    return None if part.filter is None else parse_filter(part.filter)


def _read_of(part: Slice | CorpusFile) -> Collection[str]:
    """The names of the fields that samples are made and chosen of."""
    kept = _filter_of(part)
    return wanted(part.columns) if kept is None else wanted(part.columns, kept.is_read)
