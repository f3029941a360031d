"""Parquet: slices are rows, whole row groups where these are near the wanted size; only the columns of a sample are
read."""

import bisect
import contextlib
import io
import itertools
import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.corpus.fields import FIELDS, every_field
from scalselect_ray.corpus.formats import arrow_values
from scalselect_ray.corpus.formats.base import MAX_ROW_BYTES, Broken, Cutting, Format, RowRange, UnreadableFileError
from scalselect_ray.corpus.formats.parquet_footer import Chunk, columns_of
from scalselect_ray.corpus.sample import Reason, Record
from scalselect_ray.errors import StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_TAIL = 1 << 16  # bytes of a file's end that are read at first: most footers are shorter
_BATCH_ROWS = 64  # that are Arrow arrays at once
_SHARED_ROWS = 1024  # the same, where each batch has the whole dictionary
_FREE_BYTES = 1 << 26  # that any column of a row group may have once decompressed
_RATIO = 200  # what a larger one may have, in its compressed sizes
_SHARED_BYTES = 1 << 29  # that values of a dictionary may have in the rows of a range, each counted where it stands
_FREE_VALUES = 1 << 20  # that any column of a row group may have, in lists
_GROUP_ROWS, _GROUP_BYTES = 1000, 1 << 26  # of a row group that is written
_ROW_VALUES = 64  # and so many more for each row


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
            metadata = _open(stream, 1).parquet.metadata
        if not 0 <= metadata.num_rows <= file.size or any(
            metadata.row_group(n).num_rows < 0 for n in range(metadata.num_row_groups)
        ):
            raise UnreadableFileError(
                f"broken Parquet: its footer claims {metadata.num_rows:,} rows in {file.size:,} bytes"
            )
        return _around(_ranges(metadata, cutting.max_rows, cutting.max_bytes), cutting.kept)

    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        with storage.open_random(file.uri) as stream:
            opened = _open(stream, max(range_.stop_row - range_.first_row for range_ in ranges), fields)
            at = ranges[0].first_row
            rows = _rows(opened, at, ranges[-1].stop_row) if opened.columns else itertools.repeat(_without(opened))
            for range_ in ranges:
                records = list(itertools.islice(rows, range_.first_row - at, range_.stop_row - at))
                at = range_.stop_row
                yield range_, records

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        """All columns, with the schema and what else the file says of itself."""
        with storage.open_random(file.uri) as source:
            opened = _open(source, 1, every_field({}))
            metadata = opened.parquet.metadata
            parquet = pq.ParquetFile(source, metadata=metadata, pre_buffer=True)  # no column as a dictionary
            codec = metadata.row_group(0).column(0).compression if metadata.num_row_groups else "SNAPPY"
            codec = "NONE" if codec == "UNCOMPRESSED" else codec
            try:
                with pq.ParquetWriter(stream, parquet.schema_arrow, compression=codec) as writer:
                    return sum(_copied(writer, batches) for batches in _chosen(opened, parquet, rows))
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                if _is_trouble(error):
                    raise
                raise UnreadableFileError(f"it cannot be copied: {error}") from error


class _File(NamedTuple):
    """A file that is open."""

    parquet: pq.ParquetFile
    chunks: tuple[tuple[Chunk, ...], ...]  # the columns of each row group
    columns: list[str]  # those that are read
    unread: tuple[str, ...]  # the others
    batch_rows: int  # that are Arrow arrays at once


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


def _open(stream: BinaryIO, rows: int, fields: Collection[str] = FIELDS) -> _File:
    """The file, of which `rows` rows will be in memory at once, with the columns that are fields. Raises
    UnreadableFileError."""
    try:
        footer = _footer(stream)
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"))
        chunks = columns_of(footer)
        if len(chunks) != metadata.num_row_groups:
            raise ValueError("its footer has row groups twice")
        with_dictionary = _with_dictionary(metadata, chunks, rows)
        parquet = pq.ParquetFile(stream, metadata=metadata, read_dictionary=with_dictionary, pre_buffer=True)
        names = parquet.schema_arrow.names
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if _is_trouble(error):
            raise
        raise UnreadableFileError(f"broken Parquet: {error}") from error
    return _File(
        parquet,
        chunks,
        columns=[name for name in names if name in fields],
        unread=tuple(name for name in names if name not in fields),
        batch_rows=min(rows, _SHARED_ROWS) if with_dictionary else _BATCH_ROWS,
    )


def _footer(stream: BinaryIO) -> bytes:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    tail = stream.read(_TAIL)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or length + 12 > size:
        raise ValueError("it has no footer")
    if length + 8 > len(tail):
        stream.seek(size - length - 8)
        tail = stream.read(length + 8)
    return tail[-8 - length : -8]


def _with_dictionary(metadata: pq.FileMetaData, chunks: tuple[tuple[Chunk, ...], ...], rows: int) -> list[str]:
    """The columns with a dictionary of which `rows` rows could take far more memory than the file has bytes: as Arrow
    arrays they keep it, so that equal values are there once. For others it would only take time."""
    found = set()
    for number, columns in enumerate(chunks):
        for chunk in columns:
            if chunk.is_bytes and chunk.dictionary_offset is not None:
                # The largest value that the dictionary can hold; and values in so many rows, where the others have one.
                largest = chunk.data_offset - chunk.dictionary_offset + chunk.uncompressed - chunk.compressed
                values = chunk.values - metadata.row_group(number).num_rows + rows
                if values * largest > _SHARED_BYTES:
                    found.add(chunk.path)
    return sorted(found)


def _is_trouble(error: Exception) -> bool:
    """Whether it is the disk or the store that fails, and not what the file holds: Arrow raises an OSError for both."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and bool(error.errno))


def _without(file: _File) -> Record:
    """What each row is of a file that has none of a sample's columns."""
    record = Record()
    record.unread = file.unread
    return record


def _rows(file: _File, first: int, stop: int) -> Iterator[object]:
    """Rows [first, stop), each once; where a row group breaks, the rest of its rows are broken."""
    group_start = 0
    for number in range(file.parquet.metadata.num_row_groups):
        group_stop = group_start + file.parquet.metadata.row_group(number).num_rows
        at, end = max(first, group_start), min(stop, group_stop)
        problem = "it has fewer rows than the footer says"
        try:
            if at < end:
                for record in _group_rows(file, number, at - group_start, end - group_start):
                    yield record
                    at += 1
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if _is_trouble(error):
                raise
            problem = str(error)
        for _ in range(at, end):
            yield Broken(f"row group {number} cannot be read: {problem}", Reason.UNREADABLE_FILE)
        group_start = group_stop


def _group_rows(file: _File, group: int, start: int, stop: int) -> Iterator[object]:
    if too_costly := _too_costly(file, group):
        yield from itertools.repeat(Broken(f"row group {group}: {too_costly}", Reason.TOO_COSTLY), stop - start)
        return
    at = 0
    for batch in file.parquet.iter_batches(batch_size=file.batch_rows, row_groups=[group], columns=file.columns):
        if at + len(batch) > start:
            wanted = batch.slice(max(0, start - at), min(len(batch), stop - at) - max(0, start - at))
            for record in _records(wanted, arrow_values.row_sizes(wanted)):
                if isinstance(record, Record):
                    record.unread = file.unread
                yield record
        at += len(batch)
        if at >= stop:
            return


def _chosen(file: _File, parquet: pq.ParquetFile, rows: Container[int]) -> Iterator[list[pa.RecordBatch]]:
    """Some rows of a file, as much at once as a row group should have. Raises UnreadableFileError."""
    found: list[pa.RecordBatch] = []
    first = 0
    for group in range(parquet.metadata.num_row_groups):
        stop = first + parquet.metadata.row_group(group).num_rows
        if any(row in rows for row in range(first, stop)):
            if too_costly := _too_costly(file, group):
                raise UnreadableFileError(f"row group {group}: {too_costly}")
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                wanted = [index for index in range(len(batch)) if first + index in rows]
                found += [batch.take(pa.array(wanted))] if wanted else []
                first += len(batch)
                if sum(map(len, found)) >= _GROUP_ROWS or sum(each.nbytes for each in found) >= _GROUP_BYTES:
                    yield found
                    found = []
        first = stop
    if found:
        yield found


def _copied(writer: pq.ParquetWriter, batches: Sequence[pa.RecordBatch]) -> int:
    table = pa.Table.from_batches(batches)
    writer.write_table(table)
    return len(table)


def _too_costly(file: _File, group: int) -> str:
    """Why columns of a row group are not read: they would take far more memory than the file has bytes; else empty."""
    rows = file.parquet.metadata.row_group(group).num_rows
    for chunk in file.chunks[group]:
        if chunk.path.partition(".")[0] not in file.columns:
            continue
        if chunk.uncompressed > _FREE_BYTES + _RATIO * chunk.compressed:
            return f"column {chunk.path} has {chunk.compressed:,} bytes that become {chunk.uncompressed:,}: a bomb"
        if chunk.values > _FREE_VALUES + _ROW_VALUES * rows:
            return f"column {chunk.path} has {chunk.values:,} values in {rows:,} rows: a bomb"
    return ""


def _records(batch: pa.RecordBatch, sizes: arrow_values.Sizes) -> Iterator[object]:
    """The rows; `Broken` where one is too large, or has a value that is none, such as a text in another encoding."""
    if len(batch) and sizes.max() <= MAX_ROW_BYTES:
        with contextlib.suppress(ValueError, OverflowError):
            yield from arrow_values.rows(batch)
            return
    for index, size in enumerate(sizes.tolist()):
        if size > MAX_ROW_BYTES:
            yield Broken(
                f"the row takes {size:,} bytes (1,024 for each value in it), above the limit of {MAX_ROW_BYTES:,}",
                Reason.TOO_COSTLY,
            )
            continue
        try:
            yield arrow_values.rows(batch.slice(index, 1))[0]
        except (ValueError, OverflowError) as error:
            yield Broken(f"a value cannot be read: {error}")


FORMATS = (Parquet(),)
