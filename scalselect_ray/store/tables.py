"""The tables that a run leaves in its folder: their columns, and how a part file of one is written and read."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalselect_ray.errors import DamagedObjectError, StorageError
from scalselect_ray.io import storage
from scalselect_ray.store.layout import FORMATS, check_format, format_name


class Key(NamedTuple):
    """What a sample of a run is known by; an id may be missing, or not its own."""

    source: str
    shard: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}:{self.shard}:{self.row}"


KEYS = [("source", pa.string()), ("shard", pa.string()), ("row", pa.int64()), ("id", pa.string())]
SCORES = pa.schema([*KEYS, ("score", pa.float64())], metadata={"format": format_name("scores")})
MANIFEST = pa.schema(
    [*KEYS, ("score", pa.float64()), ("rank", pa.int64())], metadata={"format": format_name("manifest")}
)
REJECTS = pa.schema(
    [*KEYS, ("reason", pa.string()), ("message", pa.string())], metadata={"format": format_name("rejects")}
)
_BATCH_ROWS = 65_536  # in memory at once where a table is gone through


def write_part(uri: str, table: pa.Table) -> None:
    """Writes a part file whole. Raises StorageError."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["source", "shard"], write_page_checksum=True)
    storage.write(uri, sink.getvalue())


def read_part(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A part file, or some columns of it. Raises DamagedObjectError; OutputError for another version; StorageError."""
    with _told(uri):
        data = pa.BufferReader(storage.read_bytes(uri))
        table = pq.read_table(data, columns=list(columns) if columns else None, page_checksum_verification=True)
        _check(table.schema, uri)
        return table


def read_batches(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a part file of any size, a bounded number of rows at a time. Raises as `read_part`."""
    with _told(uri), storage.open_random(uri) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        _check(file.schema_arrow, uri)
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
            yield pa.Table.from_batches([batch])


@contextmanager
def _told(uri: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise  # the store's trouble is no damage
    except (pa.ArrowException, OSError) as error:
        raise DamagedObjectError(uri, str(error)) from error


def _check(schema: pa.Schema, uri: str) -> None:
    found = (schema.metadata or {}).get(b"format", b"").decode()
    kind = found.removeprefix("scalselect.").partition("/")[0]
    if kind not in FORMATS:
        raise DamagedObjectError(uri, "it does not say which table it is")
    check_format(kind, found, uri)


def value_counts(column: Any) -> dict[str, int]:
    """How often each value occurs."""
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
