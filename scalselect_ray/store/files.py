"""Of which files a run was made: `files.parquet`, one row a file, with the slices that its features lie in."""

import io
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.corpus.planning import Plan
from scalselect_ray.corpus.slices import SliceId, shard_name
from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.store.layout import RunFolder, format_name
from scalselect_ray.store.tables import read_part

_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("shard", pa.string()),  # as in the other tables of a run
        ("file_key", pa.string()),
        ("rows", pa.int64()),
        ("slices", pa.list_(pa.string())),
    ],
    metadata={"format": format_name("files")},
)


@dataclass(frozen=True, slots=True)
class RunFile:
    """One file of the corpus as a run has read it."""

    source: str
    shard: str  # its name in the tables of the run: the URI, without secrets
    file_key: str  # of `CorpusFile.key`: another one means that the file has changed
    rows: int
    slices: tuple[SliceId, ...]  # in the order of their rows

    def slice_of(self, row: int) -> SliceId | None:
        """The slice that holds a row."""
        return next((slice_id for slice_id in self.slices if slice_id.first_row <= row < slice_id.stop_row), None)

    def slices_between(self, first_row: int, stop_row: int) -> tuple[SliceId, ...]:
        """The slices that hold any of the rows [first_row, stop_row)."""
        begin = bisect_right(self.slices, first_row, key=lambda slice_id: slice_id.stop_row)
        end = bisect_left(self.slices, stop_row, key=lambda slice_id: slice_id.first_row)
        return self.slices[begin:end]


def files_of(plan: Plan) -> list[RunFile]:
    """The files of a plan, in its order; those without rows are left out."""
    slices = {
        key: tuple(slice_ids)
        for key, slice_ids in itertools.groupby(plan.slice_ids, lambda slice_id: slice_id.file_key)
    }
    return [
        RunFile(
            file.source,
            shard_name(file.file.uri),
            file.key,
            sum(slice_id.rows for slice_id in slices[file.key]),
            slices[file.key],
        )
        for file in plan.files
        if file.key in slices
    ]


def write_files(files: Sequence[RunFile], folder: RunFolder) -> None:
    """Writes the files of a run. Raises StorageError."""
    columns = {
        "source": [file.source for file in files],
        "shard": [file.shard for file in files],
        "file_key": [file.file_key for file in files],
        "rows": [file.rows for file in files],
        "slices": [[str(slice_id) for slice_id in file.slices] for file in files],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, _SCHEMA), sink, compression="zstd", write_page_checksum=True)
    storage.write(folder.files, sink.getvalue())


def read_files(folder: RunFolder) -> list[RunFile]:
    """The files of a run. Raises OutputError when the run is of version 0.1, which kept no such table,
    or where it is damaged; StorageError."""
    if not storage.exists(folder.files):
        raise OutputError(
            f"{folder.uri} is a run of scalselect 0.1, which did not keep of which files it was made: run "
            "again (nothing is extracted twice), and use the new run"
        )
    try:
        table = read_part(folder.files)
    except DamagedObjectError as error:  # of a finished run: no run mends it
        (problem,) = error.damage.values()
        raise OutputError(f"{folder.files} is damaged ({problem}): run again, and use the new run") from error
    return [
        RunFile(row["source"], row["shard"], row["file_key"], row["rows"], tuple(map(SliceId.parse, row["slices"])))
        for row in table.to_pylist()
    ]
