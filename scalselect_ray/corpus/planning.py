"""A corpus to slices, and what of these a run has still to do."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from scalselect_ray.corpus.formats import Cutting, RowRange, UnreadableFileError, format_of, is_corpus_file
from scalselect_ray.corpus.slices import Slice, SliceId, is_complete, without_overlaps
from scalselect_ray.errors import CorpusChangedError, CorpusError, NoAnswerError, StorageError
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


class CorpusSettings(Protocol):
    """What is needed of a corpus's config."""

    @property
    def sources(self) -> Sequence[Source]: ...
    @property
    def slice_rows(self) -> int: ...
    @property
    def slice_bytes(self) -> int: ...


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


def list_files(corpus: CorpusSettings) -> list[CorpusFile]:
    """Every file of the corpus, sorted by URI. Raises CorpusError naming the source when a path leads nowhere."""
    files: dict[tuple[str, str], CorpusFile] = {}
    for source in corpus.sources:
        for path in source.paths:
            pattern = storage.absolute(path)
            try:
                found = [file for file in storage.expand(pattern) if file.uri == pattern or is_corpus_file(file.uri)]
            except NoAnswerError:
                raise
            except PermissionError as error:
                raise CorpusError(f"source '{source.name}': no permission to list {pattern}") from error
            except OSError as error:
                raise CorpusError(f"source '{source.name}': {pattern} cannot be listed: {error}") from error
            if not found:
                raise CorpusError(
                    f"source '{source.name}': nothing matches {pattern}; check corpus.sources[].paths "
                    "(is the bucket or folder right? corpora end in .json, .jsonl, .parquet, .tar, each also .gz but "
                    "Parquet)"
                )
            for file in found:
                root = storage.absolute(source.image_root) if source.image_root else file.uri.rpartition("/")[0]
                files[file.uri, source.name] = CorpusFile(
                    source.name, file, root, corpus.slice_rows, corpus.slice_bytes
                )
    return [files[key] for key in sorted(files)]


def plan_file(file: CorpusFile, kept: Sequence[SliceId] = ()) -> list[Slice]:
    """The slices of one file, in order; those of it that are there already (`kept`) stay as they are. Reads the whole
    file for JSON and tar, only the footer for Parquet.

    A file whose bytes cannot be read, or not to their end, has a last slice with a `problem`. Raises CorpusChangedError
    where the file is gone or is not, or not all the while, the version that was listed; CorpusError; StorageError.
    """
    ranges: list[RowRange] = []
    problem, lost_bytes = None, 0
    cutting = Cutting(file.slice_rows, file.slice_bytes, {slice_id.first_row: slice_id.stop_row for slice_id in kept})
    try:
        try:
            for range_ in format_of(file.file).scan(file.file, cutting):
                ranges.append(range_)
        except UnreadableFileError as error:
            problem = str(error)
            rest = file.file.size - (ranges[-1].stop_byte if ranges else 0)
            lost_bytes = rest if error.lost_bytes is None else error.lost_bytes
        check_unchanged(file.file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise CorpusChangedError([file.file.uri]) from error
    except PermissionError as error:
        raise CorpusError(f"source '{file.source}': no permission to read {file.file.uri}") from error
    except StorageError:
        raise  # the store's trouble may pass; a file's own does not
    except OSError as error:
        raise StorageError(f"{file.file.uri} cannot be read: {error}") from error
    if problem is not None:
        read = ranges[-1].stop_row if ranges else 0
        ranges.append(RowRange(read, read + 1, 0, 0))
    return [
        Slice(
            source=file.source,
            shard=file.file.uri,
            size=file.file.size,
            version=file.file.version,
            image_root=file.image_root,
            file_key=file.key,
            first_row=range_.first_row,
            stop_row=range_.stop_row,
            file_rows=ranges[-1].stop_row,
            start_byte=range_.start_byte,
            stop_byte=range_.stop_byte,
            problem=problem if range_ is ranges[-1] else None,
            lost_bytes=lost_bytes if range_ is ranges[-1] else 0,
        )
        for range_ in ranges
    ]


def check_unchanged(file: storage.FileInfo) -> None:
    """That a file is still the version that was listed: what was read of it since then is that version's.

    Raises CorpusChangedError, FileNotFoundError, StorageError.
    """
    now = storage.stat(file.uri)
    other_version = file.version and now.version and now.version != file.version  # a store may tell of none
    if now.size != file.size or other_version:
        raise CorpusChangedError([file.uri])


@dataclass(frozen=True)
class Plan:
    """What a corpus is made of, and what of it is still to do."""

    files: list[CorpusFile]
    slice_ids: list[SliceId]  # of the whole corpus, in the order of (shard, row)
    todo: list[Slice]

    @cached_property
    def rows(self) -> int:
        return sum(slice_id.rows for slice_id in self.slice_ids)

    @cached_property
    def todo_rows(self) -> int:
        return sum(slice_.rows for slice_ in self.todo)


OpenFile = tuple[CorpusFile, list[SliceId]]
"""A file that must be planned, and those of its slices that are committed."""


def make_plan(
    files: Sequence[CorpusFile],
    committed: set[SliceId],
    plan_files: Callable[[Sequence[OpenFile]], Sequence[list[Slice] | None]],
) -> Plan:
    """Slices of the corpus against what is committed. A file whose slices are all committed is not even opened; of
    another, what is committed stays as it was cut.

    `plan_files` answers None for a file that is not the listed one any more. Raises CorpusChangedError with all of
    these."""
    found: dict[str, list[SliceId]] = {}
    for slice_id in committed:
        found.setdefault(slice_id.file_key, []).append(slice_id)
    done = {file.key: without_overlaps(found.get(file.key, [])) for file in files}
    open_files = [(file, done[file.key]) for file in files if not is_complete(done[file.key])]
    answers = plan_files(open_files)
    planned: dict[str, list[Slice]] = {}
    for (file, _), slices in zip(open_files, answers, strict=True):
        if slices is not None:
            planned[file.key] = slices
    if changed := [file.file.uri for file, _ in open_files if file.key not in planned]:
        raise CorpusChangedError(changed)
    slice_ids: list[SliceId] = []
    todo: list[Slice] = []
    for file in files:
        if file.key in planned:
            slice_ids += [slice_.id for slice_ in planned[file.key]]
            todo += [slice_ for slice_ in planned[file.key] if slice_.id not in committed]
        else:
            slice_ids += done[file.key]
    return Plan(list(files), slice_ids, todo)


def plan_open_file(file: CorpusFile, kept: Sequence[SliceId]) -> list[Slice] | None:
    """The slices of a file, or None where it is not the listed one any more. Raises CorpusError, StorageError."""
    try:
        return plan_file(file, kept)
    except CorpusChangedError:
        return None


def plan_here(files: Sequence[OpenFile]) -> list[list[Slice] | None]:
    """Plans files one by one in this process."""
    return [plan_open_file(*file) for file in files]
