"""A corpus to slices, and what of these a run has still to do."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from scalselect_ray.corpus.fields import Columns
from scalselect_ray.corpus.formats import (
    SUFFIXES_TEXT,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    digest_of,
    is_corpus_file,
    scan,
)
from scalselect_ray.corpus.slices import Slice, SliceId, first_rows, is_complete, without_overlaps
from scalselect_ray.errors import CorpusChangedError, CorpusError, NoAnswerError, StorageError
from scalselect_ray.filters import parse_filter
from scalselect_ray.io import storage
from scalselect_ray.io.listing import Listing, expand

_PLAN_VERSION = 2  # raised when the same file would be read as other rows
_KEPT_KINDS, _SHOWN_KINDS = 100, 12  # of what is passed over
_OTHERS = "of other kinds"


class Source(Protocol):
    """What is needed of a source's config."""

    @property
    def name(self) -> str: ...
    @property
    def paths(self) -> Sequence[str]: ...
    @property
    def image_root(self) -> str | None: ...
    @property
    def columns(self) -> Columns: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def filter(self) -> str | None: ...


class CorpusSettings(Protocol):
    """What is needed of a corpus's config."""

    @property
    def sources(self) -> Sequence[Source]: ...
    @property
    def slice_rows(self) -> int: ...
    @property
    def slice_bytes(self) -> int: ...
    @property
    def image_links(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """One file of the corpus as it is now; `key` changes with anything that could change its samples."""

    source: str
    file: storage.FileInfo
    image_root: str
    slice_rows: int  # maximum of a slice
    slice_bytes: int  # maximum of a slice, where the rows' sizes are known
    columns: Columns = field(default_factory=dict, hash=False)  # the corpus's own names
    image_links: Sequence[str] = ()  # folders where links inside the image root may lead
    limit: int | None = None  # rows of its source, the first ones, that are read at most
    filter: str | None = None  # of which rows samples are made

    @property
    def key(self) -> str:
        """16 hexadecimal digits. How the file is cut, and how many of its rows are read, is no part of it: each slice
        says which rows it has. Nor is where links may lead: it decides whether a picture is read, and not which one.
        A filter is: a slice's features are those of the rows that it keeps."""
        file = self.file
        named = (sorted(self.columns.items()),) if self.columns else ()
        kept = (("filter", parse_filter(self.filter).identity),) if self.filter is not None else ()
        identity = (_PLAN_VERSION, self.source, file.uri, file.size, file.version, self.image_root, *named, *kept)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """A corpus as a listing shows it."""

    files: list[CorpusFile]  # sorted by URI
    passed_over: dict[str, Counter[str]]  # by source: what lies on its paths and is not read, by what it is
    linked: list[str]  # folders of this machine in which files lie that a link led to


def list_corpus(corpus: CorpusSettings) -> Corpus:
    """Every file of the corpus, and what was passed over. Raises CorpusError naming the source where nothing is."""
    files: dict[tuple[str, str], CorpusFile] = {}
    passed_over: dict[str, Counter[str]] = {}
    linked: list[str] = []
    for source in corpus.sources:
        for path in source.paths:
            pattern = storage.absolute(path)
            try:
                listing = expand(pattern, is_corpus_file)
            except NoAnswerError:
                raise
            except PermissionError as error:
                raise CorpusError(f"source '{source.name}': no permission to list {pattern}: {error}") from error
            except OSError as error:
                raise CorpusError(f"source '{source.name}': {pattern} cannot be listed: {error}") from error
            if listing.unmatched:
                raise CorpusError(f"source '{source.name}': {_nothing(pattern, listing)}")
            for file in listing.files:
                root = storage.absolute(source.image_root) if source.image_root else file.uri.rpartition("/")[0]
                files[file.uri, source.name] = CorpusFile(
                    source.name,
                    file,
                    root,
                    corpus.slice_rows,
                    corpus.slice_bytes,
                    columns=dict(source.columns),
                    image_links=tuple(map(storage.absolute, corpus.image_links)),
                    limit=source.limit,
                    filter=source.filter,
                )
            passed_over.setdefault(source.name, Counter()).update(listing.passed_over)
            linked += listing.linked
    over = {name: _most(found, _KEPT_KINDS) for name, found in passed_over.items() if found}
    return Corpus([files[key] for key in sorted(files)], over, linked)


def list_files(corpus: CorpusSettings) -> list[CorpusFile]:
    """Every file of the corpus, sorted by URI. Raises CorpusError naming the source where nothing is."""
    return list_corpus(corpus).files


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """What was passed over in a source, for people; empty where nothing was."""
    shown = ", ".join(f"{count:,} {kind}" for kind, count in _most(passed_over, _SHOWN_KINDS).items())
    return f"passed over: {shown}" if shown else ""


def _most(passed_over: Mapping[str, int], number: int) -> Counter[str]:
    """The most frequent kinds, and how many files are of others."""
    kinds = sorted(passed_over.items(), key=lambda item: (item[0] == _OTHERS, -item[1], item[0]))
    most, rest = dict(kinds[:number]), sum(count for _, count in kinds[number:])
    return Counter(most | ({_OTHERS: rest + most.get(_OTHERS, 0)} if rest else {}))


def _nothing(pattern: str, listing: Listing) -> str:
    first, *others = listing.unmatched
    more = f" ({pattern} also names {len(others):,} more that are not there)" if others else ""
    if not listing.passed_over:
        return (
            f"nothing matches {first}{more}; check corpus.sources[].paths (is the bucket or folder right? "
            f"corpora end in {SUFFIXES_TEXT})"
        )
    folders = (
        " (end a path with /** to read what lies in folders)"
        if any(kind.startswith("folder ") for kind in listing.passed_over)
        else ""
    )
    return (
        f"nothing that {first} names is a corpus file{more}; {passed_over_text(listing.passed_over)}{folders}. Corpora "
        f"end in {SUFFIXES_TEXT}"
    )


def plan_file(file: CorpusFile, kept: Sequence[SliceId] = ()) -> list[Slice]:
    """The slices of one file, in order; those of it that are there already (`kept`) stay as they are. Reads the whole
    file for JSON and tar, only the footer for Parquet. With a `limit` the slices of its first rows; they are slices of
    the whole file, which another limit has as well.

    A file whose bytes cannot be read, or not to their end, has a last slice with a `problem`. Raises CorpusChangedError
    where the file is gone or is not, or not all the while, the version that was listed; CorpusError; StorageError.
    """
    ranges: list[RowRange] = []
    problem, lost_bytes = None, 0
    known = {slice_id.first_row: slice_id.stop_row for slice_id in kept}
    if file.limit is not None:
        known = {first: stop for first, stop in known.items() if stop <= file.limit} | {file.limit: file.limit + 1}
    cutting = Cutting(file.slice_rows, file.slice_bytes, known)
    try:
        try:
            for range_ in scan(file.file, cutting):
                ranges.append(range_)
        except UnreadableFileError as error:
            problem = str(error)
            rest = max(0, file.file.size - (ranges[-1].stop_byte if ranges else 0))
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
            columns=file.columns,
            image_links=file.image_links,
            filter=file.filter,
            problem=problem if range_ is ranges[-1] else None,
            lost_bytes=lost_bytes if range_ is ranges[-1] else 0,
            digest=range_.digest,
        )
        for range_ in ranges
        if file.limit is None or range_.first_row < file.limit
    ]


def check_unchanged(file: storage.FileInfo) -> None:
    """That a file is still the version that was listed: what was read of it since then is that version's.

    Raises CorpusChangedError, FileNotFoundError, StorageError.
    """
    now = storage.stat(file.uri)
    other_version = file.version and now.version and now.version != file.version  # a store may tell of none
    if now.size != file.size or other_version:
        raise CorpusChangedError([file.uri])


def check_bytes(form: Format | None, slice_: Slice) -> None:
    """That the bytes of a slice are those that were planned, as far as that is told: a file may be replaced by one of
    the same size and time. `form`: of the file as it is now; None where it has none any more. Raises
    CorpusChangedError, OSError."""
    file = storage.FileInfo(slice_.shard, slice_.size, slice_.version)
    range_ = RowRange(slice_.first_row, slice_.stop_row, slice_.start_byte, slice_.stop_byte)
    if slice_.digest and (form is None or digest_of(form, file, range_) != slice_.digest):
        raise CorpusChangedError([file.uri])


@dataclass(frozen=True)
class Plan:
    """What a corpus is made of, and what of it is still to do."""

    files: list[CorpusFile]
    slice_ids: list[SliceId]  # of the whole corpus, in the order of (shard, row)
    todo: list[Slice]
    kept: list[Slice] = field(default_factory=list)  # committed slices of files of which others are to do
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # as in `Corpus`

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
    passed_over: Mapping[str, Mapping[str, int]] | None = None,
) -> Plan:
    """Slices of the corpus against what is committed. A file whose slices are all committed is not even opened; of
    another, what is committed stays as it was cut. Of a source with a limit the files are planned one after the other,
    and those behind the limit are no part of the plan.

    `plan_files` answers None for a file that is not the listed one any more. Raises CorpusChangedError with all of
    these."""
    found: dict[str, list[SliceId]] = {}
    for slice_id in committed:
        found.setdefault(slice_id.file_key, []).append(slice_id)
    done = {file.key: without_overlaps(found.get(file.key, [])) for file in files}
    planned: dict[str, list[Slice]] = {}

    def plan(open_files: Sequence[OpenFile]) -> None:
        answers = plan_files(open_files)
        planned.update(
            (file.key, slices) for (file, _), slices in zip(open_files, answers, strict=True) if slices is not None
        )
        if changed := [file.file.uri for file, _ in open_files if file.key not in planned]:
            raise CorpusChangedError(changed)

    plan([(file, done[file.key]) for file in files if file.limit is None and not is_complete(done[file.key])])
    left = {file.source: file.limit for file in files if file.limit is not None}
    read: list[CorpusFile] = []
    slice_ids: list[SliceId] = []
    todo: list[Slice] = []
    kept: list[Slice] = []
    for file in files:
        limit = left.get(file.source)
        if limit == 0:
            continue
        if limit is not None:
            done[file.key] = first_rows(done[file.key], limit)
            if not is_complete(done[file.key], limit):
                plan([(replace(file, limit=limit), done[file.key])])
        ids = [slice_.id for slice_ in planned[file.key]] if file.key in planned else done[file.key]
        todo += [slice_ for slice_ in planned.get(file.key, []) if slice_.id not in committed]
        kept += [slice_ for slice_ in planned.get(file.key, []) if slice_.id in committed]
        if limit is not None:
            left[file.source] = limit - sum(slice_id.rows for slice_id in ids)
        slice_ids += ids
        read.append(file)
    return Plan(read, slice_ids, todo, kept, passed_over or {})


def plan_open_file(file: CorpusFile, kept: Sequence[SliceId]) -> list[Slice] | None:
    """The slices of a file, or None where it is not the listed one any more. Raises CorpusError, StorageError."""
    try:
        return plan_file(file, kept)
    except CorpusChangedError:
        return None


def plan_here(files: Sequence[OpenFile]) -> list[list[Slice] | None]:
    """Plans files one by one in this process."""
    return [plan_open_file(*file) for file in files]
