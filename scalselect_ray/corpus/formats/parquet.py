"""Parquet: slices are rows, whole row groups where these are near the wanted size; only the columns of a sample are read."""

import math
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray import storage
from scalselect_ray.corpus.conversation import COLUMNS
from scalselect_ray.corpus.formats.base import Broken, Run, UnreadableFileError
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.storage import FileInfo


class Parquet:
    """Reads the footer to plan, and the row groups that a slice touches to read it."""

    def scan(self, file: FileInfo, max_rows: int, max_bytes: int) -> Iterator[Run]:
        with storage.open_read(file.uri) as stream:
            try:
                metadata = pq.ParquetFile(stream).metadata
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                raise UnreadableFileError(f"broken Parquet: {error}") from error
        first = 0
        pending = pending_bytes = 0
        for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
            parts = max(math.ceil(group.num_rows / max_rows), math.ceil(group.total_byte_size / max_bytes), 1)
            if pending and (pending + group.num_rows > max_rows or pending_bytes + group.total_byte_size > max_bytes):
                yield Run(first, first + pending, 0, 0)
                first, pending, pending_bytes = first + pending, 0, 0
            if parts == 1:
                pending, pending_bytes = pending + group.num_rows, pending_bytes + group.total_byte_size
                continue
            for part in range(parts):  # a large group, in equal parts
                start, stop = (first + group.num_rows * edge // parts for edge in (part, part + 1))
                if stop > start:
                    yield Run(start, stop, 0, 0)
            first += group.num_rows
        if pending:
            yield Run(first, first + pending, 0, 0)

    def read(self, file: FileInfo, runs: Sequence[Run]) -> Iterator[tuple[Run, list[object]]]:
        with storage.open_read(file.uri) as stream:
            try:
                parquet = pq.ParquetFile(stream, pre_buffer=True)
            except (pa.ArrowInvalid, OSError) as error:
                raise UnreadableFileError(str(error)) from error
            columns = [name for name in parquet.schema_arrow.names if name in COLUMNS]
            for run in runs:
                yield run, list(_rows(parquet, columns, run))


def _rows(parquet: pq.ParquetFile, columns: list[str], run: Run) -> Iterator[object]:
    group_start = 0
    for number in range(parquet.metadata.num_row_groups):
        group_stop = group_start + parquet.metadata.row_group(number).num_rows
        start, stop = max(run.first_row, group_start), min(run.stop_row, group_stop)
        if start < stop:
            at = start
            try:
                for record in _group_rows(parquet, columns, number, start - group_start, stop - group_start):
                    yield record
                    at += 1
            except (pa.ArrowException, OSError, ValueError) as error:
                for _ in range(at, stop):
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
