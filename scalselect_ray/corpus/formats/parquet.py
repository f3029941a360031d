"""Parquet: slices are rows, whole row groups where these are near the wanted size; only the columns of a sample are
read."""

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.corpus.conversation import COLUMNS
from scalselect_ray.corpus.formats.base import Broken, Cutting, Format, RowRange, UnreadableFileError
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.errors import StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo


class Parquet(Format):
    """Reads the footer to plan, and the row groups that a slice touches to read it.

    A range has the bytes from its first row group to its last, so that the parts of one large group are seen to share
    them."""

    title = "Parquet"
    suffixes = (".parquet",)
    indexed = True

    def begins(self, head: bytes) -> bool:
        return head.startswith(b"PAR1")

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        with storage.open_random(file.uri) as stream:
            metadata = _open(stream).metadata
        if not 0 <= metadata.num_rows <= file.size or any(
            metadata.row_group(n).num_rows < 0 for n in range(metadata.num_row_groups)
        ):
            raise UnreadableFileError(
                f"broken Parquet: its footer claims {metadata.num_rows:,} rows in {file.size:,} bytes"
            )
        return _around(_ranges(metadata, cutting.max_rows, cutting.max_bytes), cutting.kept)

    def read(self, file: FileInfo, ranges: Sequence[RowRange]) -> Iterator[tuple[RowRange, list[object]]]:
        with storage.open_random(file.uri) as stream:
            parquet = _open(stream)
            names = parquet.schema_arrow.names
            columns = [name for name in names if name in COLUMNS]
            at = ranges[0].first_row
            rows = _rows(parquet, columns, at, ranges[-1].stop_row) if columns else _without_columns(names)
            for range_ in ranges:
                records = list(itertools.islice(rows, range_.first_row - at, range_.stop_row - at))
                at = range_.stop_row
                yield range_, records


def _ranges(metadata: pq.FileMetaData, max_rows: int, max_bytes: int) -> Iterator[RowRange]:
    first = begin = end = 0
    pending = pending_bytes = 0
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        parts = max(math.ceil(group.num_rows / max_rows), math.ceil(group.total_byte_size / max_bytes), 1)
        parts = min(parts, max(group.num_rows, 1))
        if pending and (pending + group.num_rows > max_rows or pending_bytes + group.total_byte_size > max_bytes):
            yield RowRange(first, first + pending, begin, end)
            first, begin, pending, pending_bytes = first + pending, end, 0, 0
        end = begin + pending_bytes + group.total_byte_size
        if parts == 1:
            pending, pending_bytes = pending + group.num_rows, pending_bytes + group.total_byte_size
            continue
        for part in range(parts):  # a large group, in equal parts
            start, stop = (first + group.num_rows * edge // parts for edge in (part, part + 1))
            if stop > start:
                yield RowRange(start, stop, begin, end)
        first, begin = first + group.num_rows, end
    if pending:
        yield RowRange(first, first + pending, begin, end)


def _around(ranges: Iterator[RowRange], kept: Mapping[int, int]) -> Iterator[RowRange]:
    """The same rows with the ranges of `kept` (first row to stop row) as they are: what lies in one of them goes, the
    rest ends at it."""
    at, firsts = 0, sorted(kept)
    for range_ in ranges:
        at = max(at, range_.first_row)
        while at < range_.stop_row:
            following = firsts[bisect.bisect_right(firsts, at) :][:1]
            stop = kept.get(at) or min([range_.stop_row, *following])
            yield RowRange(at, stop, range_.start_byte, range_.stop_byte)
            at = stop


def _open(stream: BinaryIO) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(stream, pre_buffer=True)
        _ = parquet.schema_arrow  # made when it is asked for
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if _is_trouble(error):
            raise
        raise UnreadableFileError(f"broken Parquet: {error}") from error
    return parquet


def _is_trouble(error: Exception) -> bool:
    """Whether it is the disk or the store that fails, and not what the file holds: Arrow raises an OSError for both."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and bool(error.errno))


def _without_columns(names: list[str]) -> Iterator[object]:
    """What each row is of a file that has none of a sample's columns."""
    return itertools.repeat(
        Broken(f"no conversation: none of the columns {', '.join(COLUMNS)} among {sorted(names)[:12]}")
    )


def _rows(parquet: pq.ParquetFile, columns: list[str], first: int, stop: int) -> Iterator[object]:
    """Rows [first, stop), each once; where a row group breaks, the rest of its rows are broken."""
    group_start = 0
    for number in range(parquet.metadata.num_row_groups):
        group_stop = group_start + parquet.metadata.row_group(number).num_rows
        at, end = max(first, group_start), min(stop, group_stop)
        problem = "it has fewer rows than the footer says"
        try:
            for record in (
                _group_rows(parquet, columns, number, at - group_start, end - group_start) if at < end else ()
            ):
                yield record
                at += 1
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if _is_trouble(error):
                raise
            problem = str(error)
        for _ in range(at, end):
            yield Broken(f"row group {number} cannot be read: {problem}", Reason.UNREADABLE_FILE)
        group_start = group_stop


def _group_rows(parquet: pq.ParquetFile, columns: list[str], group: int, start: int, stop: int) -> Iterator[object]:
    at = 0
    for batch in parquet.iter_batches(batch_size=64, row_groups=[group], columns=columns):
        if at + len(batch) > start:
            part = batch.slice(max(0, start - at), min(len(batch), stop - at) - max(0, start - at))
            try:
                yield from part.to_pylist()
            except (ValueError, OverflowError):  # a text that is none, a date that Python has not
                yield from (_row(part.slice(index, 1)) for index in range(len(part)))
        at += len(batch)
        if at >= stop:
            return


def _row(batch: pa.RecordBatch) -> object:
    try:
        return batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return Broken(f"a value cannot be read: {error}")


FORMATS = (Parquet(),)
