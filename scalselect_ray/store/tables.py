"""The tables that a run leaves in its folder: their columns, and how a part of one is written and read."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalselect_ray.errors import DamagedObjectError, StorageError
from scalselect_ray.io import storage


class Key(NamedTuple):
    """What a sample of a run is known by; an id may be missing, or not its own."""

    source: str
    shard: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}:{storage.redact(self.shard)}:{self.row}"


KEYS = [("source", pa.string()), ("shard", pa.string()), ("row", pa.int64()), ("id", pa.string())]
SCORES = pa.schema([*KEYS, ("score", pa.float64())], metadata={"format": "scalselect.scores/1"})
MANIFEST = pa.schema(
    [*KEYS, ("score", pa.float64()), ("rank", pa.int64())], metadata={"format": "scalselect.manifest/1"}
)
REJECTS = pa.schema(
    [*KEYS, ("reason", pa.string()), ("message", pa.string())], metadata={"format": "scalselect.rejects/1"}
)
_BATCH_ROWS = 65_536  # in memory at once where a table is gone through


def part_uris(run_folder: str, table: str) -> list[str]:
    """URIs of the parts of a table (`scores`, `manifest`), in order."""
    folder = storage.join(run_folder, table)
    return [storage.join(folder, name) for name in storage.list_names(folder)]


def rejects_uri(run_folder: str) -> str:
    """The one file of rejects."""
    return storage.join(run_folder, "rejects.parquet")


def text_only_uri(run_folder: str) -> str:
    """The last part of the manifest, where text-only samples are kept."""
    return storage.join(run_folder, "manifest", "text-only.parquet")


def write_part(uri: str, table: pa.Table) -> None:
    """Writes a part whole. Raises StorageError."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["source", "shard"], write_page_checksum=True)
    storage.write(uri, sink.getvalue())


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part, or some columns of it. Raises DamagedObjectError, StorageError."""
    try:
        data = pa.BufferReader(storage.read_bytes(uri))
        return pq.read_table(data, columns=list(columns) if columns else None, page_checksum_verification=True)
    except StorageError:
        raise  # the store's trouble is no damage
    except (pa.ArrowException, OSError) as error:
        raise DamagedObjectError(uri, str(error)) from error


def read_batches(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a part of any size, a bounded number of rows at a time. Raises DamagedObjectError,
    StorageError."""
    try:
        with storage.open_random(uri) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DamagedObjectError(uri, str(error)) from error


def value_counts(column: Any) -> dict[str, int]:
    """How often each value occurs."""
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
