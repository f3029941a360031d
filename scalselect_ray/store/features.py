"""One committed object a slice. The listing of these objects is the ledger of a run: there is no other record of what
is done."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.corpus.slices import Slice, SliceId
from scalselect_ray.errors import DamagedObjectError, StorageError
from scalselect_ray.io import checksum, storage
from scalselect_ray.redaction import to_json
from scalselect_ray.store.layout import Output, check_format, format_name

IMAGES_DIGEST = "images_digest"
"""Column of `corpus.images_digest` of each row: null where it has no images or they could not be fetched."""

LOST_BYTES = "lost_bytes"
"""Column of the bytes that could not be read of a file, beside the one reject that stands for them; else null."""

_ADDED = {IMAGES_DIGEST: pa.string(), LOST_BYTES: pa.int64()}
"""Columns that files of version 0.1 do not have: they are read as nulls."""

_THREADS = 16  # that look into feature files
COUNTS = ("num_tokens", "num_vision_tokens", "num_query_tokens", "num_attended_tokens")


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """The features of one extractor below an output folder. Holds only strings: it may travel to any worker."""

    output: Output
    extractor_id: str
    """Names its folder; the records of runs have it as well."""
    current_id: str = ""
    """The id that this version gives the extractor, where its folder was named by an earlier one."""

    @property
    def folder(self) -> str:
        return self.output.features(self.extractor_id)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Writes `extractor.json`, by which people and `find_store` tell the folders apart; in a store each time, which
        shows before any work that objects can be written there. Raises StorageError."""
        uri = self.output.extractor(self.extractor_id)
        if not storage.is_local(uri) or not _says(uri, description):
            storage.write(uri, to_json(description, indent=2).encode())

    def is_described(self) -> bool:
        """Whether `describe` was called before, by whatever run. Raises StorageError."""
        return storage.exists(self.output.extractor(self.extractor_id))

    def is_of(self, extractor_id: str) -> bool:
        """Whether it holds the features of an extractor, by its id in this version."""
        return (self.current_id or self.extractor_id) == extractor_id

    def differences(self) -> str:
        """What tells this extractor from the one in the same output that is most like it; empty when it is the only
        one."""
        names = [self.extractor_id, *(name for name in self.output.extractors() if name != self.extractor_id)]
        ours, *others = [_description(self.output.extractor(name)) for name in names]
        others = [other for other in others if other]
        changes = [[name for name in ours | other if ours.get(name) != other.get(name)] for other in others]
        nearest = min(zip(changes, others, strict=True), key=lambda item: len(item[0]), default=([], {}))
        absent = "its default"  # keys that are newer than features name themselves only where they are another
        return ", ".join(
            f"{name} is {ours.get(name, absent)} and was {nearest[1].get(name, absent)}" for name in nearest[0]
        )

    def committed(self) -> set[SliceId]:
        """The slices that are done: one listing. Raises StorageError."""
        found = set()
        for name in storage.list_names(self.folder):
            with suppress(ValueError):  # what is not ours
                if name.endswith(".parquet"):
                    found.add(SliceId.parse(name.removesuffix(".parquet")))
        return found

    def commit(self, slice_id: SliceId, table: pa.Table, digest: str = "") -> int:
        """Writes one slice's features whole, and returns the bytes. Writing a slice again writes the same bytes.
        `digest`: of the rows that they are of, as `Slice` has it."""
        sink = io.BytesIO()
        table = table.replace_schema_metadata(self._metadata(slice_id) | ({"digest": digest} if digest else {}))
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
        data = checksum.stamped(sink.getvalue())
        storage.write(self._uri(slice_id), data)
        return len(data)

    def read(self, slice_id: SliceId, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a slice. Raises DamagedObjectError when it is gone or is not, to the byte, what was committed
        for this slice."""
        uri = self._uri(slice_id)
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            raise DamagedObjectError(uri, "it is gone") from error
        if not checksum.matches(data):
            raise DamagedObjectError(uri, "its checksum differs")
        try:
            table = _read_table(pa.BufferReader(data), columns)
        except _UNREADABLE as error:
            raise DamagedObjectError(uri, str(error)) from error
        found = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        check_format("features", found.get("format"), uri)
        for name, expected in self._metadata(slice_id).items():
            if found.get(name) != expected:
                raise DamagedObjectError(uri, f"its {name} is {found.get(name)}, expected {expected}")
        return table

    def read_all(self, slice_ids: Iterable[SliceId], columns: Sequence[str]) -> Iterator[pa.Table]:
        """The tables of slices, in order. Raises DamagedObjectError, but not before all that is damaged among them is
        known: it names every one. StorageError."""
        damage: dict[str, str] = {}
        for slice_id in slice_ids:
            try:
                table = self.read(slice_id, columns)
            except DamagedObjectError as error:
                damage |= error.damage
            if not damage:
                yield table
        if damage:
            (uri, problem), *others = damage.items()
            raise DamagedObjectError(uri, problem, dict(others))

    def peek(self, slice_id: SliceId, columns: Sequence[str]) -> pa.Table | None:
        """Some small columns of a slice, without the features beside them and without its checksum: for what people
        are shown, and what may be wrong. None when it is gone or cannot be read."""
        try:
            with storage.open_random(self._uri(slice_id)) as stream:
                return _read_table(stream, columns)
        except StorageError:
            raise
        except _UNREADABLE:
            return None

    def check_rows(self, slices: Sequence[Slice]) -> None:
        """That committed slices are of the bytes that these have, where both tell. Raises DamagedObjectError with all
        that are not, StorageError."""

        def digest(slice_: Slice) -> str:
            table = self.peek(slice_.id, ["row"]) if slice_.digest else None
            return (table.schema.metadata or {}).get(b"digest", b"").decode() if table is not None else ""

        with ThreadPoolExecutor(_THREADS) as threads:
            stored = list(threads.map(digest, slices))
        others = [slice_ for slice_, known in zip(slices, stored, strict=True) if known and known != slice_.digest]
        if others:
            damage = {self._uri(slice_.id): f"{slice_.shard} has other bytes now" for slice_ in others}
            raise DamagedObjectError(*next(iter(damage.items())), damage)

    def _metadata(self, slice_id: SliceId) -> dict[str, str]:
        return {"format": format_name("features"), "slice": str(slice_id), "extractor": self.extractor_id}

    def _uri(self, slice_id: SliceId) -> str:
        return self.output.feature_file(self.extractor_id, slice_id)


_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
"""What `_read_table` raises of a damaged file: ValueError where a name is no UTF-8, KeyError where it is another."""


def _read_table(source: Any, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a feature file (None: all it has). Raises as `_UNREADABLE` has it."""
    if columns is None:
        return pq.read_table(source)
    added = [name for name in columns if name in _ADDED]
    there = pq.read_schema(source).names if added else []
    missing = [name for name in added if name not in there]
    table = pq.read_table(source, columns=[name for name in columns if name not in missing])
    for name in missing:
        table = table.append_column(name, pa.nulls(len(table), _ADDED[name]))
    return table.select(list(columns))


def find_store(
    output: Output, extractor_id: str, description: Mapping[str, Any], earlier_id: Callable[[], str | None]
) -> FeatureStore:
    """Where an extractor has its features: below its id; or, so that nothing is extracted twice, where an earlier
    version has put them, below `earlier_id()`, where that is one: from then on that folder is known by what its
    `extractor.json` says. Raises StorageError, and what `earlier_id` raises."""
    names = output.extractors()
    if extractor_id not in names:
        for name in names:
            if _says(output.extractor(name), description):
                return FeatureStore(output, name, extractor_id)
        if names and (earlier := earlier_id()) in names:
            return FeatureStore(output, earlier, extractor_id)
    return FeatureStore(output, extractor_id)


def _says(uri: str, description: Mapping[str, Any]) -> bool:
    """Whether an `extractor.json` says so, whatever it says beside it."""
    return _flat(description).items() <= _description(uri).items()


def _description(uri: str) -> dict[str, Any]:
    """What an `extractor.json` says, flat; empty when there is none to be read."""
    try:
        return _flat(json.loads(storage.read_bytes(uri)))
    except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    settings = description.get("settings", {})
    return {**{name: value for name, value in description.items() if name != "settings"}, **settings}


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
            *_ADDED.items(),
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
