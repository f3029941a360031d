"""What lies in an output folder and is of no more use. Found here, shown by `status`, removed by `clean` alone.

Configs that share an output do not know of each other: what the newest finished run of any of them needs is in use, and
what no finished run tells anything of may be another's work that goes on."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from scalselect_ray.config import CorpusConfig
from scalselect_ray.config_files import parse_config
from scalselect_ray.console import counted
from scalselect_ray.corpus import SliceId, list_files, shard_name
from scalselect_ray.errors import OutputError, ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.files import RunFile, read_files
from scalselect_ray.store.layout import Output
from scalselect_ray.store.moments import covered_slices
from scalselect_ray.store.record import RunRecord
from scalselect_ray.store.runs import Runs

_LIVE = timedelta(days=1)  # a run that began less long ago may still be going on
_THREADS = 16  # that look into feature files
_OURS = re.compile(r"\.[0-9a-f]{32}\.tmp$")  # what a file of ours is called while it is written


@dataclass(frozen=True, slots=True)
class Garbage:
    """Objects that can go for one reason."""

    what: str
    uris: Sequence[str]  # in the order in which they go
    size: int  # bytes
    folders: Sequence[str] = ()  # that hold nothing else

    def __str__(self) -> str:
        return f"{self.what}: {counted(len(self.uris), 'object')}, {self.size / 2**20:,.1f} MiB"


def check_output(output: Output) -> None:
    """That a folder is an output of ours: has runs, features or moments. Raises OutputError."""
    if not _is_output(output):
        raise OutputError(
            f"{output.uri} is no output of scalselect: it has no runs, features or moments; give the `output` of a "
            f"config"
        )


def find_garbage(output: Output, keep: int | None = None) -> list[Garbage]:
    """Garbage below an output folder, as its finished runs tell what is in use; with `keep` all but so many of the
    newest finished runs are garbage, and what they alone need. Nothing where it is no output of ours. Raises
    CorpusError, ConfigError, OutputError.

    Features of an extractor without a finished run are no garbage: they are another setting's work.
    """
    if not _is_output(output):
        return []
    now = datetime.now(UTC)
    found = [_abandoned_runs(output, now)]
    runs = Runs(output)
    finished = [record for name in runs.names() if (record := runs.record(name)) is not None]
    kept = finished if keep is None else finished[-keep:]
    found.append(_earlier_runs(output, finished[: len(finished) - len(kept)], len(kept)))
    for extractor_id in dict.fromkeys(record.extractor for record in finished):
        users = [record for record in kept if record.extractor == extractor_id]
        found += _unused(
            output, extractor_id, users, [record for record in finished if record.extractor == extractor_id]
        )
    if storage.is_local(output.uri):
        found.append(_half_written(output, now))
    return [item for item in found if item.uris or item.folders]


def _is_output(output: Output) -> bool:
    return bool(
        Runs(output).names()
        or storage.exists(output.latest)
        or any(storage.exists(output.extractor(name)) for name in output.extractors())
    )


def _abandoned_runs(output: Output, now: datetime) -> Garbage:
    runs = Runs(output)
    dead = [name for name in runs.names() if runs.began(name) < now - _LIVE and not runs.is_finished(name)]
    files = [file for name in dead for file in storage.list_tree(runs.folder(name).uri)]
    return _these("runs that were never finished", files, [runs.folder(name).uri for name in dead])


def _earlier_runs(output: Output, records: Sequence[RunRecord], kept: int) -> Garbage:
    """Each without its record first: what is left when the removal is interrupted is a run that is not finished."""
    files: list[storage.FileInfo] = []
    for folder in (output.run(record.run_id) for record in records):
        files += sorted(storage.list_tree(folder.uri), key=lambda file: file.uri != folder.record)
    return _these(
        f"finished runs before the newest {kept}", files, [output.run(record.run_id).uri for record in records]
    )


def _unused(
    output: Output, extractor_id: str, users: Sequence[RunRecord], finished: Sequence[RunRecord]
) -> list[Garbage]:
    """Features and moments of an extractor that were there when its newest run began, and that none of `users` needs:
    of each corpus the newest run, and the corpus as it is now."""
    runs = Runs(output)
    began = runs.began(finished[-1].run_id).timestamp()
    newest = {_identity(output, record): record for record in users}
    needed: set[str] = set()
    places: set[tuple[str, str]] = set()  # (source, shard) of what is needed
    for record in newest.values():
        files = _files_of(output, record)
        needed.update(file.file_key for file in files)
        places.update((file.source, file.shard) for file in files)
        try:
            listed = list_files(_corpus_of(output, record))
        except ScalSelectError as error:
            if record is finished[-1] or not files:
                raise type(error)(_unseen(output, record, error)) from error
            continue  # an earlier config, whose corpus is gone: what its run was made of is known
        needed.update(file.key for file in listed)
        places.update((file.source, shard_name(file.file.uri)) for file in listed)
    known = {file.file_key for record in finished for file in _files_of(output, record)}
    store = FeatureStore(output, extractor_id)
    candidates = [
        item
        for item in _feature_files(output, extractor_id)
        if item[0].modified < began and item[1].file_key not in needed
    ]

    def is_left(item: tuple[storage.FileInfo, SliceId]) -> bool:
        """Whether it is of a file that a run was made of, or of an earlier version of one that is needed."""
        return item[1].file_key in known or _place_of(store, item[1]) in places

    moments = {output.moments_file(extractor_id, record.moments) for record in newest.values()}
    return [
        _these("features of files that left the corpus or changed", _those(candidates, is_left)),
        _these(
            "moments of earlier sets of slices",
            [
                file
                for file in storage.list_tree(output.moments(extractor_id))
                if file.modified < began and file.uri not in moments
            ],
        ),
    ]


def _identity(output: Output, record: RunRecord) -> object:
    """What tells the corpus of a run from another's."""
    sources = _corpus_of(output, record).sources
    return tuple((source.name, tuple(source.paths), source.image_root) for source in sources)


def _corpus_of(output: Output, record: RunRecord) -> CorpusConfig:
    uri = output.run(record.run_id).config
    try:
        return parse_config(storage.read_bytes(uri).decode(), where=uri).corpus
    except FileNotFoundError as error:
        raise OutputError(f"{uri} is gone: garbage cannot be told without it") from error


def _unseen(output: Output, record: RunRecord, error: Exception) -> str:
    config = output.run(record.run_id).config
    return f"garbage is told by the corpus of the newest run of each config ({config}): {error}"


def _files_of(output: Output, record: RunRecord) -> list[RunFile]:
    """Of which files a run was made; empty where it does not tell."""
    try:
        return read_files(output.run(record.run_id))
    except OutputError:  # of version 0.1, or damaged
        return []


def _place_of(store: FeatureStore, slice_id: SliceId) -> tuple[str, str] | None:
    """(source, shard) of a slice."""
    table = store.peek(slice_id, ["source", "shard"])
    return (table["source"][0].as_py(), table["shard"][0].as_py()) if table is not None and len(table) else None


def _half_written(output: Output, now: datetime) -> Garbage:
    """Only where this program writes, and only what is called as its own files are."""
    until = (now - _LIVE).timestamp()
    top = [file.path for file in os.scandir(output.uri) if _OURS.match(file.name)]
    folders = (output.runs, storage.join(output.uri, "features"), storage.join(output.uri, "moments"))
    below = [file for folder in folders for file in storage.list_tree(folder) if _OURS.match(_name(file))]
    files = [*storage.file_infos(output.uri, top), *below]
    return _these("half-written files of a killed process", [file for file in files if file.modified < until])


def find_rejected(output: Output, reason: str) -> list[Garbage]:
    """What is committed of slices that hold rejects of a reason, for every extractor, and the moments that cover these:
    a run without them tries the samples again. Reads the reasons of every slice."""
    features: list[storage.FileInfo] = []
    moments: list[storage.FileInfo] = []
    for extractor_id in output.extractors():
        store = FeatureStore(output, extractor_id)

        def holds(item: tuple[storage.FileInfo, SliceId], store: FeatureStore = store) -> bool:
            table = store.peek(item[1], ["reason"])
            return table is not None and reason in table["reason"].unique().to_pylist()

        items = _feature_files(output, extractor_id)
        held = _those(items, holds)
        features += held
        uris = {file.uri for file in held}
        slice_ids = {slice_id for file, slice_id in items if file.uri in uris}
        for file in storage.list_tree(output.moments(extractor_id)) if held else ():
            with suppress(OutputError):  # damaged, or of another version: nothing that a run would use
                if slice_ids.intersection(covered_slices(file.uri)):
                    moments.append(file)
    found = [
        _these(f"slices with rejects of the reason {reason}", features),
        _these("moments that cover them", moments),
    ]
    return [item for item in found if item.uris]


def _feature_files(output: Output, extractor_id: str) -> list[tuple[storage.FileInfo, SliceId]]:
    found = []
    for file in storage.list_tree(output.features(extractor_id)):
        with suppress(ValueError):  # extractor.json, and what is not ours
            found.append((file, SliceId.parse(_name(file).removesuffix(".parquet"))))
    return found


def _those(
    items: Sequence[tuple[storage.FileInfo, SliceId]], is_one: Callable[[tuple[storage.FileInfo, SliceId]], bool]
) -> list[storage.FileInfo]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return [file for (file, _), it_is in zip(items, threads.map(is_one, items), strict=True) if it_is]


def _these(what: str, files: Sequence[storage.FileInfo], folders: Sequence[str] = ()) -> Garbage:
    return Garbage(what, [file.uri for file in files], sum(file.size for file in files), folders)


def _name(file: storage.FileInfo) -> str:
    return file.uri.rpartition("/")[2]
