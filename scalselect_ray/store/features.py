"""One committed object a slice. The listing of these objects is the ledger of a run: there is no other record of what
is done."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.errors import DamagedObjectError, StorageError
from scalselect_ray.io import checksum, storage

_FORMAT = "scalselect.features/2"
COUNTS = ("num_tokens", "num_vision_tokens", "num_query_tokens", "num_attended_tokens")


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """The features of one extractor below an output folder. Holds only strings: it may travel to any worker."""

    output: str
    extractor_id: str

    @property
    def folder(self) -> str:
        return storage.join(self.output, "features", self.extractor_id)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Writes `extractor.json` once, so that a person can tell the folders apart."""
        uri = storage.join(self.folder, "extractor.json")
        if not storage.exists(uri):
            storage.write(uri, json.dumps(description, indent=2).encode())

    def differences(self) -> str:
        """What tells this extractor from the one in the same output that is most like it; empty when it is the only
        one."""
        parent = storage.join(self.output, "features")
        names = [self.extractor_id, *(name for name in storage.list_folders(parent) if name != self.extractor_id)]
        ours, *others = [_description(storage.join(parent, name, "extractor.json")) for name in names]
        others = [other for other in others if other]
        changes = [[name for name in ours | other if ours.get(name) != other.get(name)] for other in others]
        nearest = min(zip(changes, others, strict=True), key=lambda item: len(item[0]), default=([], {}))
        return ", ".join(f"{name} is {ours.get(name)} and was {nearest[1].get(name)}" for name in nearest[0])

    def committed(self) -> set[str]:
        """Ids of the slices that are done: one listing."""
        return {name.removesuffix(".parquet") for name in storage.list_names(self.folder) if name.endswith(".parquet")}

    def commit(self, slice_id: str, table: pa.Table) -> int:
        """Writes one slice's features whole, and returns the bytes. Writing a slice again writes the same bytes."""
        sink = io.BytesIO()
        table = table.replace_schema_metadata(self._metadata(slice_id))
        with pq.ParquetWriter(
            sink,
            table.schema,
            compression={
                **{name: "zstd" for name in table.column_names if name != "feature"},
                "feature.list.element": "none",
            },
            use_dictionary=["source", "shard", "reason"],
            write_page_checksum=True,  # for other readers; `read` has one checksum over everything
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({"seal": checksum.BLANK})
        data = checksum.sealed(sink.getvalue())
        storage.write(self._uri(slice_id), data)
        return len(data)

    def read(self, slice_id: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a slice. Raises DamagedObjectError when it is gone or is not, to the byte, what was committed
        for this slice."""
        uri = self._uri(slice_id)
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            raise DamagedObjectError(uri, "it is gone") from error
        if not checksum.holds(data):
            raise DamagedObjectError(uri, "its checksum differs")
        try:
            table = pq.read_table(pa.BufferReader(data), columns=list(columns) if columns else None)
        except (pa.ArrowException, OSError) as error:
            raise DamagedObjectError(uri, str(error)) from error
        found = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        for name, expected in self._metadata(slice_id).items():
            if found.get(name) != expected:
                raise DamagedObjectError(uri, f"its {name} is {found.get(name)}, expected {expected}")
        return table

    def peek(self, slice_id: str, columns: Sequence[str]) -> pa.Table | None:
        """Some small columns of a slice, without the features beside them and without its checksum; None when it is
        gone or damaged."""
        try:
            with storage.open_random(self._uri(slice_id)) as stream:
                return pq.read_table(stream, columns=list(columns))
        except StorageError:
            raise
        except (pa.ArrowException, OSError):
            return None

    def _metadata(self, slice_id: str) -> dict[str, str]:
        return {"format": _FORMAT, "slice": slice_id, "extractor": self.extractor_id}

    def _uri(self, slice_id: str) -> str:
        return storage.join(self.folder, f"{slice_id}.parquet")


def _description(uri: str) -> dict[str, Any]:
    """What an `extractor.json` says, flat; empty when there is none to be read."""
    try:
        description = json.loads(storage.read_bytes(uri))
        return {**{name: value for name, value in description.items() if name != "settings"}, **description["settings"]}
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def feature_table(rows: Sequence[Mapping[str, Any]], dim: int) -> pa.Table:
    """The table of one slice from its rows; `feature` and the counts are null for a reject, `reason` and `message` for
    the others."""
    schema = pa.schema(
        [
            ("source", pa.string()),
            ("shard", pa.string()),
            ("row", pa.int64()),
            ("id", pa.string()),
            ("reason", pa.string()),
            ("message", pa.string()),
            *((name, pa.int32()) for name in COUNTS),
        ]
    )
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)
    chosen = np.array([row.get("feature") is not None for row in rows], dtype=bool)
    values = np.zeros((len(rows), dim), dtype=np.float32)
    for index in np.flatnonzero(chosen).tolist():
        values[index] = rows[index]["feature"]
    feature = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim, mask=pa.array(~chosen))
    return table.append_column("feature", feature)


def features_of(table: pa.Table) -> np.ndarray:
    """The features of the rows that have one, in order. (n, d) float32."""
    column = table["feature"].combine_chunks().drop_null()
    dim = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(-1, dim)
