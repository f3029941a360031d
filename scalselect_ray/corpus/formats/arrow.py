"""Arrow IPC, as files (Feather) and as streams (what `datasets.save_to_disk` writes): slices are rows, whole record
batches where these are near the wanted size."""

import functools
import itertools
import struct
from collections.abc import Collection, Container, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from scalselect_ray.corpus.fields import FIELDS, IMAGE_NAME
from scalselect_ray.corpus.formats import arrow_values
from scalselect_ray.corpus.formats.base import Broken, Cutting, Format, RowRange, UnreadableFileError, ranges_of_groups
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_MAGIC = b"ARROW1\0\0"  # of a file; a stream has none
_FEATHER_1 = b"FEA1"
_CONTINUES = b"\xff\xff\xff\xff"  # before the length of a message
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # kinds of messages
_HEAD = 4096  # bytes of a message that are read at first: most say in these what they hold
_MAX_METADATA = 1 << 24  # bytes
_BATCH_ROWS = 64  # that are Python objects at once
_FREE_BYTES = 1 << 26  # that any batch may have once decompressed
_RATIO = 200  # what a larger one may have, in its own sizes
_FREE_VALUES = 1 << 20  # that any array of a batch may have
_ROW_VALUES = 64  # and so many more for each row


class _Message(NamedTuple):
    """A message of a file, and where it lies."""

    kind: int
    start: int
    body: int
    stop: int
    rows: int  # 0 but in a batch
    most_values: int  # of one of its arrays
    buffers: tuple[int, ...]  # bytes from `body` to each buffer that is compressed


class _Layout(NamedTuple):
    """The messages of a file, and why there are no more where it breaks off."""

    messages: tuple[_Message, ...]
    problem: str


class ArrowIpc(Format):
    """Messages say how long they are: to plan only their heads are read."""

    title = "Arrow"
    suffixes = (".arrow", ".feather", ".ipc")
    indexed = True

    def begins(self, head: bytes) -> bool:
        return head.startswith((_MAGIC, _CONTINUES)) and len(head) > len(_MAGIC)

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        layout = _layout(file)
        batches = [message for message in layout.messages if message.kind == _BATCH]
        rows = sum(batch.rows for batch in batches)
        if rows > file.size:
            raise UnreadableFileError(f"broken Arrow: it claims {rows:,} rows in {file.size:,} bytes")
        yield from ranges_of_groups([(batch.rows, batch.stop - batch.start) for batch in batches], cutting)
        if layout.problem:
            stop = layout.messages[-1].stop if layout.messages else 0
            raise UnreadableFileError(
                f"the Arrow file breaks off after row {rows - 1}: {layout.problem}", file.size - stop
            )

    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        at = ranges[0].first_row
        with storage.open_random(file.uri) as stream:
            rows = _rows(stream, _layout(file), at, ranges[-1].stop_row, fields)
            for range_ in ranges:
                records = list(itertools.islice(rows, range_.first_row - at, range_.stop_row - at))
                at = range_.stop_row
                yield range_, records

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        """All columns, as a file or as a stream, as `file` is."""
        is_file = storage.read_start(file.uri, len(_MAGIC)) == _MAGIC
        count = 0
        writer = None
        with storage.open_random(file.uri) as source:
            for first, _, batch in _batches(source, _layout(file), 0, ranges[-1].stop_row if ranges else 0):
                if isinstance(batch, Broken):
                    raise UnreadableFileError(f"it cannot be copied: {batch.message}")
                if writer is None:
                    writer = (pa.ipc.new_file if is_file else pa.ipc.new_stream)(stream, batch.schema)
                wanted = [index for index in range(len(batch)) if first + index in rows]
                if wanted:
                    writer.write_batch(batch.take(pa.array(wanted)))
                    count += len(wanted)
        if writer is not None:
            writer.close()
        return count


def _rows(stream: BinaryIO, layout: _Layout, first: int, stop: int, fields: Collection[str]) -> Iterator[object]:
    """Rows [first, stop), each once."""
    for begins, rows, batch in _batches(stream, layout, first, stop):
        start = max(0, first - begins)
        length = min(rows, stop - begins) - start
        if isinstance(batch, Broken):
            yield from itertools.repeat(batch, length)
            continue
        names = batch.schema.names
        wanted = batch.slice(start, length).select([name for name in names if name in fields])
        unread = tuple(name for name in names if name not in fields)
        pictures = tuple(name for name, column in zip(names, batch.columns, strict=True) if _is_picture(column))
        for at in range(0, length, _BATCH_ROWS):
            yield from arrow_values.records(wanted.slice(at, _BATCH_ROWS), unread, pictures)


def _is_picture(column: pa.Array) -> bool:
    """By the type of a column, or by the first of the texts in it."""
    if arrow_values.holds_pictures(column.type):
        return True
    first = column[:1].to_pylist() if arrow_values.is_text(column.type) else []
    return any(isinstance(name, str) and IMAGE_NAME.fullmatch(name) is not None for name in first)


def _batches(
    stream: BinaryIO, layout: _Layout, first: int, stop: int
) -> Iterator[tuple[int, int, pa.RecordBatch | Broken]]:
    """(first row, rows, batch) of the batches that hold rows [first, stop)."""
    before: list[bytes] = []  # the schema, and the dictionaries so far
    too_costly = ""  # why one of these is not read
    at = 0
    for message in layout.messages:
        if at >= stop:
            return
        if message.kind != _BATCH or at + message.rows > first:
            stream.seek(message.start)
            data = stream.read(message.stop - message.start)
            too_costly_itself = _too_costly(message, data)
            if message.kind != _BATCH:
                before.append(data)
                too_costly = too_costly or too_costly_itself
            elif why := too_costly or too_costly_itself:
                yield at, message.rows, Broken(f"the batch from row {at:,} on: {why}", Reason.TOO_COSTLY)
            else:
                yield at, message.rows, _batch(message, [*before, data], at)
        at += message.rows


def _batch(message: _Message, messages: list[bytes], at: int) -> pa.RecordBatch | Broken:
    try:
        batch = pa.ipc.open_stream(pa.BufferReader(b"".join(messages))).read_next_batch()
        batch.validate(full=True)  # its buffers are not looked at before, and may lie; nor are its names
        _ = batch.schema.names
        if len(batch) != message.rows:
            raise ValueError(f"it has {len(batch)} rows where {message.rows} are claimed")
    except (pa.ArrowException, OSError, ValueError, KeyError, StopIteration) as error:
        return Broken(f"the batch from row {at:,} on cannot be read: {error}", Reason.UNREADABLE_FILE)
    return batch


def _too_costly(message: _Message, data: bytes) -> str:
    """Why a message is not read: it would take far more memory than it has bytes; else empty."""
    if message.most_values > _FREE_VALUES + _ROW_VALUES * message.rows:
        return f"an array of {message.most_values:,} values for {message.rows:,} rows: a bomb"
    body = message.body - message.start
    sizes = [int.from_bytes(data[body + at : body + at + 8], "little", signed=True) for at in message.buffers]
    inflated = sum(max(0, size) for size in sizes)
    if inflated > _FREE_BYTES + _RATIO * len(data):
        return f"{len(data):,} bytes that become {inflated:,}: a bomb"
    return ""


@functools.lru_cache(maxsize=64)
def _layout(file: FileInfo) -> _Layout:
    """Raises UnreadableFileError where it is no Arrow at all; OSError."""
    messages: list[_Message] = []
    problem = ""
    with storage.open_random(file.uri) as stream:
        head = stream.read(len(_MAGIC))
        if head.startswith(_FEATHER_1):
            raise UnreadableFileError("Feather of version 1, which is no Arrow IPC: write it anew with a later version")
        at = len(_MAGIC) if head == _MAGIC else 0
        while not problem and at < file.size:
            try:
                message = _message(stream, at, file.size)
            except (struct.error, ValueError, IndexError) as error:
                problem = f"broken Arrow at byte {at:,}: {error}"
                break
            if message is None:
                break
            messages.append(message)
            at = message.stop
    if not messages or messages[0].kind != _SCHEMA:
        raise UnreadableFileError(problem or "broken Arrow: it has no schema")
    return _Layout(tuple(messages), problem)


def _message(stream: BinaryIO, at: int, size: int) -> _Message | None:
    """The message at a byte of a file; None at the end mark. Raises struct.error, ValueError, IndexError."""
    stream.seek(at)
    head = stream.read(min(_HEAD, size - at))
    begins = 8 if head.startswith(_CONTINUES) else 4  # before version 0.15 there was but the length
    (length,) = struct.unpack_from("<i", head, begins - 4)
    if length == 0:
        return None
    body = at + begins + length
    if not 0 < length <= _MAX_METADATA or body > size:
        raise ValueError(f"a message claims {length:,} bytes")
    metadata = head[begins : begins + length]
    if len(metadata) < length:
        metadata += stream.read(length - len(metadata))
    table = _Table.root(metadata)
    kind, stop = table.number(1, "<B"), body + table.number(3, "<q")
    if not body <= stop <= size:
        raise ValueError(f"a message claims {stop - body:,} bytes, and {size - body:,} follow")
    batch = table.table(2)
    if kind == _DICTIONARY:
        batch = batch.table(1)
    elif kind == _SCHEMA:
        return _Message(kind, at, body, stop, 0, 0, ())
    elif kind != _BATCH:
        raise ValueError(f"a message of kind {kind}, which is no table")
    rows = batch.number(0, "<q")
    if rows < 0:
        raise ValueError(f"a batch of {rows:,} rows")
    values = int(batch.pairs(1)[:, 0].max(initial=0))
    starts = [int(start) for start, length in batch.pairs(2) if length >= 8] if batch.has(3) else []
    return _Message(kind, at, body, stop, rows if kind == _BATCH else 0, values, tuple(starts))


class _Table(NamedTuple):
    """A table of a FlatBuffer, of which Arrow's messages are made."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, *struct.unpack_from("<I", data, 0))

    def _place(self, field: int) -> int:
        """Where a field lies; 0 where it is not given."""
        vtable = self.at - int(self._read("<i", self.at))
        size = int(self._read("<H", vtable))
        offset = int(self._read("<H", vtable + 4 + 2 * field)) if 4 + 2 * field < size else 0
        return self.at + offset if offset else 0

    def _read(self, form: str, at: int) -> int:
        if at < 0:
            raise ValueError("an offset before its beginning")
        return int(struct.unpack_from(form, self.data, at)[0])

    def has(self, field: int) -> bool:
        return bool(self._place(field))

    def number(self, field: int, form: str) -> int:
        place = self._place(field)
        return self._read(form, place) if place else 0

    def table(self, field: int) -> "_Table":
        place = self._place(field)
        if not place:
            raise ValueError("a table is missing")
        return _Table(self.data, place + self._read("<I", place))

    def pairs(self, field: int) -> npt.NDArray[np.int64]:
        """A list of structs of two integers. (n, 2)."""
        place = self._place(field)
        if not place:
            return np.zeros((0, 2), np.int64)
        start = place + self._read("<I", place)
        return np.frombuffer(self.data, "<i8", 2 * self._read("<I", start), start + 4).reshape(-1, 2)


FORMATS = (ArrowIpc(),)
