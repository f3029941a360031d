"""A corpus to slices: fixed runs of rows of one file, the unit of work, of commit, of resume and of growth."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from scalselect_ray.corpus.formats import Cutting, RowRange, UnreadableFileError, format_of, is_corpus_file
from scalselect_ray.errors import CorpusError, StorageError
from scalselect_ray.io import storage

_PLAN_VERSION = 2  # raised when the same file would be read as other rows


class Source(Protocol):
    """What is needed of a source's config."""

    @property
    def name(self) -> str: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def image_root(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of the corpus as it is now; `key` changes with anything that could change its samples."""

    source: str
    file: storage.FileInfo
    image_root: str
    slice_rows: int  # maximum of a slice
    slice_bytes: int  # maximum of a slice, where the rows' sizes are known

    @property
    def key(self) -> str:
        """16 hexadecimal digits. How the file is cut is no part of it: each slice says which rows it has."""
        file = self.file
        identity = repr((_PLAN_VERSION, self.source, file.uri, file.size, file.version, self.image_root))
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [first_row, stop_row) of one file. Planned once, it travels through the whole run and names its feature
    file.

    `problem` is set where the file could not be read from `first_row` on: the slice then stands for one reject.
    """

    source: str
    shard: str  # URI of the file
    size: int  # bytes of the file
    image_root: str
    file_key: str
    first_row: int
    stop_row: int
    file_rows: int
    start_byte: int  # where the rows lie in the file; slices with the same bytes are read together
    stop_byte: int
    problem: str | None = None

    @property
    def id(self) -> str:
        """Says which rows of how many it covers, so that a listing alone tells whether a file is done."""
        return f"{self.file_key}-{self.first_row:09d}-{self.stop_row:09d}-of-{self.file_rows:09d}"

    @property
    def rows(self) -> int:
        return self.stop_row - self.first_row

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def slice_range(slice_id: str) -> tuple[str, int, int, int]:
    """(file key, first row, stop row, rows of the file) of a slice id."""
    key, first, stop, _, rows = slice_id.split("-")
    return key, int(first), int(stop), int(rows)


def without_overlaps(slice_ids: Iterable[str]) -> list[str]:
    """Slices of one file in the order of their rows, less those that begin inside the one before: two runs at once can
    have cut a file in two ways."""
    kept: list[str] = []
    at = 0
    for _, first, stop, slice_id in sorted((*slice_range(slice_id)[:3], slice_id) for slice_id in slice_ids):
        if first >= at:
            kept.append(slice_id)
            at = stop
    return kept


def is_complete(slice_ids: Sequence[str]) -> bool:
    """Whether slices of one file, in order and without overlaps, cover all its rows."""
    return (
        bool(slice_ids)
        and sum(stop - first for _, first, stop, _ in map(slice_range, slice_ids)) == slice_range(slice_ids[0])[3]
    )


def list_files(sources: Sequence[Source], slice_rows: int, slice_bytes: int) -> list[CorpusFile]:
    """Every file of the corpus, sorted by URI. Raises CorpusError naming the source when a path leads nowhere."""
    files: dict[tuple[str, str], CorpusFile] = {}
    for source in sources:
        for path in source.paths:
            pattern = storage.absolute(path)
            try:
                found = [file for file in storage.expand(pattern) if file.uri == pattern or is_corpus_file(file.uri)]
            except PermissionError as error:
                raise CorpusError(f"source '{source.name}': no permission to list {storage.redact(pattern)}") from error
            except OSError as error:
                raise CorpusError(
                    f"source '{source.name}': {storage.redact(pattern)} cannot be listed: {error}"
                ) from error
            if not found:
                raise CorpusError(
                    f"source '{source.name}': nothing matches {storage.redact(pattern)}; check corpus.sources[].paths "
                    f"(is the bucket or "
                    "folder right? corpora end in .json, .jsonl, .parquet, .tar, each also .gz but Parquet)"
                )
            for file in found:
                root = storage.absolute(source.image_root) if source.image_root else file.uri.rpartition("/")[0]
                files[file.uri, source.name] = CorpusFile(source.name, file, root, slice_rows, slice_bytes)
    return [files[key] for key in sorted(files)]


def plan_file(file: CorpusFile, kept: Sequence[str] = ()) -> list[Slice]:
    """The slices of one file, in order; those of it that are there already (`kept`, ids) stay as they are. Reads the
    whole file for JSON and tar, only the footer for Parquet.

    A file that cannot be read, or not to its end, has a last slice with a `problem`.
    """
    runs: list[RowRange] = []
    problem = None
    cutting = Cutting(file.slice_rows, file.slice_bytes, {first: stop for _, first, stop, _ in map(slice_range, kept)})
    try:
        for run in format_of(file.file).scan(file.file, cutting):
            runs.append(run)
    except UnreadableFileError as error:
        problem = str(error)
    except PermissionError as error:
        raise CorpusError(f"source '{file.source}': no permission to read {storage.redact(file.file.uri)}") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        problem = f"the file cannot be read: {error}"
    except StorageError:
        raise  # the store's trouble may pass; a file's own does not
    except OSError as error:
        raise StorageError(f"{storage.redact(file.file.uri)} cannot be read: {error}") from error
    rows = runs[-1].stop_row if runs else 0
    if problem is not None:
        runs.append(RowRange(rows, rows + 1, 0, 0))
    return [
        Slice(
            source=file.source,
            shard=file.file.uri,
            size=file.file.size,
            image_root=file.image_root,
            file_key=file.key,
            first_row=run.first_row,
            stop_row=run.stop_row,
            file_rows=runs[-1].stop_row,
            start_byte=run.start_byte,
            stop_byte=run.stop_byte,
            problem=problem if run is runs[-1] else None,
        )
        for run in runs
    ]


def reading_units(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices that one task reads: one each, but those together that lie in the same bytes (a large Parquet row
    group, a stream)."""
    by_bytes = itertools.groupby(slices, key=lambda part: (part.file_key, part.start_byte, part.stop_byte))
    return [list(unit) for _, unit in by_bytes]
