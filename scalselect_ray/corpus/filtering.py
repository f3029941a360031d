"""Filters of a corpus against what its files have: before any work."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scalselect_ray.corpus.fields import only, unread_of
from scalselect_ray.corpus.formats import Cutting, UnreadableFileError, format_of
from scalselect_ray.corpus.planning import CorpusFile
from scalselect_ray.errors import CorpusError
from scalselect_ray.filters import RowFilter, parse_filter

_FILES, _ROWS, _BYTES = 16, 100, 8 << 20  # that are looked at: files of a source, rows and bytes of a file
_SHOWN = 40  # columns in a message


class Kept(NamedTuple):
    """What a filter keeps of a source's first rows."""

    filter: str
    rows: int
    looked_at: int

    def __str__(self) -> str:
        return f"filter {self.filter}: true of {self.rows:,} of the first {self.looked_at:,} rows"


def check_filters(files: Sequence[CorpusFile]) -> dict[str, Kept]:
    """What the filter of each source that has one keeps of its first rows. Raises CorpusError where none of these has a
    column that it names, or all hold something there that it could never be true of; OSError."""
    by_source: dict[str, list[CorpusFile]] = {}
    for file in files:
        if file.filter is not None:
            by_source.setdefault(file.source, []).append(file)
    return {source: _checked(source, listed) for source, listed in by_source.items()}


def _checked(source: str, files: Sequence[CorpusFile]) -> Kept:
    text = files[0].filter or ""
    found = parse_filter(text)
    rows: list[Mapping[str, object]] = []
    columns: dict[str, None] = {}
    looked = 0
    for file in files[:_FILES]:
        looked += 1
        some = _first_rows(file, found)
        rows += some
        columns |= dict.fromkeys(str(name) for row in some for name in (*row, *unread_of(row)))
        if rows and not found.unknown(rows):
            break
    where = f"corpus.sources[].filter of source '{source}' is {text}"
    first = f"in the first {len(rows):,} rows of {files[0].file.uri}" + (
        f" and {looked - 1:,} more" if looked > 1 else ""
    )
    if rows and (unknown := found.unknown(rows)):
        raise CorpusError(
            f"{where}: no column '{unknown[0]}' {first}{_similar(unknown[0], columns)}; they have {_listed(columns)}"
        )
    if mismatch := next(found.mismatches(rows), ""):
        raise CorpusError(f"{where}: {mismatch} {first}")
    return Kept(text, sum(map(found.keeps, rows)), len(rows))


def _first_rows(file: CorpusFile, found: RowFilter) -> list[Mapping[str, object]]:
    """Rows of a file with the columns that a filter names; none where it cannot be read: a run says so."""
    try:
        form = format_of(file.file)
        for range_ in form.scan(file.file, Cutting(_ROWS, _BYTES)):
            for _, records in form.read(file.file, [range_], only(found.is_read)):
                return [record for record in records if isinstance(record, Mapping)]
    except (UnreadableFileError, FileNotFoundError, PermissionError, IsADirectoryError):
        pass
    return []


def _similar(name: str, columns: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(columns), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _listed(columns: Mapping[str, None]) -> str:
    names = list(columns)
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return (", ".join(name[:60] for name in names[:_SHOWN]) or "none") + more
