"""Parquet: slices are rows, whole row groups where these are near the wanted size; only the columns of a sample are read."""

import itertools
import math
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray import storage
from scalselect_ray.corpus.conversation import COLUMNS
from scalselect_ray.corpus.formats.base import Broken, Run, UnreadableFileError
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.errors import StorageError
from scalselect_ray.storage import FileInfo


class Parquet:
    """Reads the footer to plan, and the row groups that a slice touches to read it.

    A run has the bytes from its first row group to its last, so that the parts of one large group are seen to share them.
    """

    def scan(self, file: FileInfo, max_rows: int, max_bytes: int) -> Iterator[Run]:
        with storage.open_random(file.uri) as stream:
            try:
                metadata = pq.ParquetFile(stream).metadata
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UnreadableFileError(f"broken Parquet: {error}") from error
        first = begin = end = 0
        pending = pending_bytes = 0
        for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
            parts = max(math.ceil(group.num_rows / max_rows), math.ceil(group.total_byte_size / max_bytes), 1)
            if pending and (pending + group.num_rows > max_rows or pending_bytes + group.total_byte_size > max_bytes):
                yield Run(first, first + pending, begin, end)
                first, begin, pending, pending_bytes = first + pending, end, 0, 0
            end = begin + pending_bytes + group.total_byte_size
            if parts == 1:
                pending, pending_bytes = pending + group.num_rows, pending_bytes + group.total_byte_size
                continue
            for part in range(parts):  # a large group, in equal parts
                start, stop = (first + group.num_rows * edge // parts for edge in (part, part + 1))
                if stop > start:
                    yield Run(start, stop, begin, end)
            first, begin = first + group.num_rows, end
        if pending:
            yield Run(first, first + pending, begin, end)

    def read(self, file: FileInfo, runs: Sequence[Run]) -> Iterator[tuple[Run, list[object]]]:
        with storage.open_random(file.uri) as stream:
            try:
                parquet = pq.ParquetFile(stream, pre_buffer=True)
            except pa.ArrowInvalid as error:
                raise UnreadableFileError(str(error)) from error
            columns = [name for name in parquet.schema_arrow.names if name in COLUMNS]
            at = runs[0].first_row
            rows = _rows(parquet, columns, at, runs[-1].stop_row)
            for run in runs:
                records = list(itertools.islice(rows, run.first_row - at, run.stop_row - at))
                at = run.stop_row
                yield run, records


def _rows(parquet: pq.ParquetFile, columns: list[str], first: int, stop: int) -> Iterator[object]:
    """Rows [first, stop), each once; where a row group breaks, the rest of its rows are broken."""
    group_start = 0
    for number in range(parquet.metadata.num_row_groups):
        group_stop = group_start + parquet.metadata.row_group(number).num_rows
        at, end = max(first, group_start), min(stop, group_stop)
        try:
            for record in _group_rows(parquet, columns, number, at - group_start, end - group_start) if at < end else ():
                yield record
                at += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, StorageError):
                raise
            for _ in range(at, end):
                yield Broken(f"row group {number} cannot be read: {error}", Reason.UNREADABLE_FILE)
        group_start = group_stop


def _group_rows(parquet: pq.ParquetFile, columns: list[str], group: int, start: int, stop: int) -> Iterator[object]:
    at = 0
    for batch in parquet.iter_batches(batch_size=64, row_groups=[group], columns=columns):
        if at + len(batch) > start:
            yield from batch.slice(max(0, start - at), min(len(batch), stop - at) - max(0, start - at)).to_pylist()
        at += len(batch)
        if at >= stop:
            return
