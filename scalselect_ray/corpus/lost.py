"""How many rows were lost with what could not be read: an estimate by bytes."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scalselect_ray.corpus.planning import CorpusFile
from scalselect_ray.corpus.slices import Slice, SliceId, shard_name


class Rest(NamedTuple):
    """What of a file could not be read: one reject stands for each place where that is so, most often its end."""

    row: int  # the first that was not read
    bytes: int
    rejects: int = 1

    def with_another(self, other: "Rest") -> "Rest":
        return Rest(min(self.row, other.row), self.bytes + other.bytes, self.rejects + other.rejects)


@dataclass(frozen=True, kw_only=True, slots=True)
class LostRows:
    """What of a file could not be read, in rows."""

    source: str
    shard: str
    row: int  # the first that was lost
    byte: int | None  # from which nothing was read; None where that is not known, or more follows
    rows: int  # about; as many as rejects at least
    rejects: int = 1  # that stand for them

    def __str__(self) -> str:
        where = f"at row {self.row:,}" if self.byte is None else f"from byte {self.byte:,} (row {self.row:,}) on"
        more = self.rejects - 1
        where += f" and {more:,} more place{'s' * (more != 1)}" if more else ""
        return f"about {self.rows:,} row{'s' * (self.rows != 1)} lost in {self.shard} {where}"


def rests_of(slices: Iterable[Slice]) -> dict[str, Rest]:
    """The rests among planned slices, by the key of their file."""
    return {
        slice_.file_key: Rest(slice_.first_row, slice_.lost_bytes) for slice_ in slices if slice_.problem is not None
    }


def lost_rows(files: Sequence[CorpusFile], slice_ids: Iterable[SliceId], rests: Mapping[str, Rest]) -> list[LostRows]:
    """An estimate for each of `rests` (by file key): its bytes by the mean size of a row in what was read of the same
    file, else of its source, else of the corpus; one row where nothing was read at all."""
    if not rests:
        return []
    rows = Counter[str]()
    for slice_id in slice_ids:
        rows[slice_id.file_key] += slice_id.rows
    found = []
    of_sources: dict[str, _Read] = {}
    of_files: dict[str, _Read] = {}
    for file in files:
        rest = rests.get(file.key)
        read = _Read(file.file.size, rows[file.key])
        if rest:
            read = _Read(read.bytes - rest.bytes, read.rows - rest.rejects)
        if read.bytes > 0:
            of_files[file.key] = read
            of_sources[file.source] = read + of_sources.get(file.source, _Read(0, 0))
    of_corpus = functools.reduce(_Read.__add__, of_sources.values(), _Read(0, 0))
    for file in files:
        if (rest := rests.get(file.key)) is None:
            continue
        is_end = (rest.row, rest.rejects) == (rows[file.key] - 1, 1)
        nearest = (of_files.get(file.key), of_sources.get(file.source), of_corpus)
        read = next((read for read in nearest if read and read.rows), _Read(max(rest.bytes, 1), 1))
        found.append(
            LostRows(
                source=file.source,
                shard=shard_name(file.file.uri),
                row=rest.row,
                byte=file.file.size - rest.bytes if is_end and rest.bytes <= file.file.size else None,
                rows=max(rest.rejects, round(rest.bytes * read.rows / read.bytes)),
                rejects=rest.rejects,
            )
        )
    return found


class _Read(NamedTuple):
    """What could be read."""

    bytes: int
    rows: int

    def __add__(self, other: object) -> "_Read":
        assert isinstance(other, _Read)
        return _Read(self.bytes + other.bytes, self.rows + other.rows)
