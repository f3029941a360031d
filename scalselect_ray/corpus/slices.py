"""Slices: runs of consecutive rows of one file, the unit of work, of commit, of resume and of growth."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from scalselect_ray.corpus.fields import Columns
from scalselect_ray.redaction import redact_uri


class SliceId(NamedTuple):
    """Which rows of which version of a file a slice holds, and of how many: a listing of ids alone tells whether a file
    is done. It names the slice's feature file.

    Made by `Slice.id`, written by `str`, read back by `parse`: nothing else takes an id apart. Ids sort as their texts
    do."""

    file_key: str  # of `CorpusFile.key`
    first_row: int
    stop_row: int
    file_rows: int

    def __str__(self) -> str:
        return f"{self.file_key}-{self.first_row:09d}-{self.stop_row:09d}-of-{self.file_rows:09d}"

    @classmethod
    def parse(cls, text: str) -> "SliceId":
        """The id that `str` wrote as `text`. Raises ValueError."""
        key, *numbers = text.rsplit("-", 4)
        if (
            len(numbers) != 4
            or numbers[2] != "of"
            or not all(number.isdecimal() for number in numbers[:2] + numbers[3:])
        ):
            raise ValueError(f"'{text}' is no id of a slice")
        return cls(key, int(numbers[0]), int(numbers[1]), int(numbers[3]))

    @property
    def rows(self) -> int:
        return self.stop_row - self.first_row


def shard_name(uri: str) -> str:
    """What a file is called in the tables of a run: its URI without secrets. A name, and no place to read."""
    return redact_uri(uri)


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [first_row, stop_row) of one file. Planned once, it travels through the whole run and names its feature
    file.

    `problem` is set where the file could not be read from `first_row` on: the slice then stands for one reject.
    """

    source: str
    shard: str  # URI of the file
    size: int  # bytes of the file
    version: str  # of the file, as the listing had it
    image_root: str
    file_key: str
    first_row: int
    stop_row: int
    file_rows: int
    start_byte: int  # where the rows lie in the file; slices with the same bytes are read together
    stop_byte: int
    columns: Columns = field(default_factory=dict, hash=False)  # the corpus's own names
    image_links: Sequence[str] = ()  # folders where links inside the image root may lead
    filter: str | None = None  # of which of its rows samples are made
    problem: str | None = None
    lost_bytes: int = 0  # that could not be read
    digest: str = ""  # of its bytes, as `formats.digest_of` tells it; empty where it does not

    @property
    def id(self) -> SliceId:
        return SliceId(self.file_key, self.first_row, self.stop_row, self.file_rows)

    @property
    def rows(self) -> int:
        return self.stop_row - self.first_row

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def without_overlaps(slice_ids: Iterable[SliceId]) -> list[SliceId]:
    """Slices of one file in the order of their rows, less those that begin inside the one before: two runs at once can
    have cut a file in two ways."""
    kept: list[SliceId] = []
    at = 0
    for slice_id in sorted(slice_ids):
        if slice_id.first_row >= at:
            kept.append(slice_id)
            at = slice_id.stop_row
    return kept


def first_rows(slice_ids: Sequence[SliceId], limit: int) -> list[SliceId]:
    """Of slices of one file those that lie in its first rows."""
    return [slice_id for slice_id in slice_ids if slice_id.stop_row <= limit]


def is_complete(slice_ids: Sequence[SliceId], limit: int | None = None) -> bool:
    """Whether slices of one file, in order and without overlaps, cover all its rows, or the first of them up to a
    limit."""
    if not slice_ids:
        return False
    rows = slice_ids[0].file_rows if limit is None else min(limit, slice_ids[0].file_rows)
    return sum(slice_id.rows for slice_id in slice_ids) == rows


def reading_units(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices that one task reads: one each, but those together that lie in the same bytes (a large Parquet row
    group, a stream)."""
    by_bytes = itertools.groupby(slices, key=lambda slice_: (slice_.file_key, slice_.start_byte, slice_.stop_byte))
    return [list(unit) for _, unit in by_bytes]
