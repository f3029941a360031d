"""Parquet: slices are rows, whole row groups where these are near the wanted size; only the columns of a sample are
read."""

import io
import itertools
from collections.abc import Collection, Container, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.corpus.fields import FIELDS, IMAGE_NAME, every_field
from scalselect_ray.corpus.formats import arrow_values
from scalselect_ray.corpus.formats.base import (
    Broken,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    is_trouble,
    ranges_of_groups,
)
from scalselect_ray.corpus.formats.parquet_footer import Chunk, columns_of
from scalselect_ray.corpus.sample import Reason, Record
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
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        return ranges_of_groups([(group.num_rows, group.total_byte_size) for group in groups], cutting)

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
                if is_trouble(error):
                    raise
                raise UnreadableFileError(f"it cannot be copied: {error}") from error


class _File(NamedTuple):
    """A file that is open."""

    parquet: pq.ParquetFile
    chunks: tuple[tuple[Chunk, ...], ...]  # the columns of each row group
    columns: list[str]  # those that are read
    unread: tuple[str, ...]  # the others
    pictures: tuple[str, ...]  # those of them that hold pictures
    batch_rows: int  # that are Arrow arrays at once


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
        schema = parquet.schema_arrow
        unread = tuple(name for name in schema.names if name not in fields)
        pictures = _pictures(unread, schema, chunks)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if is_trouble(error):
            raise
        raise UnreadableFileError(f"broken Parquet: {error}") from error
    return _File(
        parquet,
        chunks,
        columns=[name for name in schema.names if name in fields],
        unread=unread,
        pictures=pictures,
        batch_rows=min(rows, _SHARED_ROWS) if with_dictionary else _BATCH_ROWS,
    )


def _pictures(unread: Sequence[str], schema: pa.Schema, chunks: Sequence[Sequence[Chunk]]) -> tuple[str, ...]:
    """The columns that are not read and hold pictures: by their type, or by the least of the texts in them, which the
    footer may have."""
    texts = {chunk.path: (chunk.least or b"").decode("utf-8", "replace") for chunk in chunks[0]} if chunks else {}
    kinds = {name: schema.field(name).type for name in unread if len(schema.get_all_field_indices(name)) == 1}
    return tuple(
        name
        for name, kind in kinds.items()
        if arrow_values.holds_pictures(kind)
        or (arrow_values.is_text(kind) and IMAGE_NAME.fullmatch(texts.get(name, "")) is not None)
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


def _without(file: _File) -> Record:
    """What each row is of a file that has none of a sample's columns."""
    record = Record()
    record.unread, record.pictures = file.unread, file.pictures
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
            if is_trouble(error):
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
            yield from arrow_values.records(wanted, file.unread, file.pictures)
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


FORMATS = (Parquet(),)
