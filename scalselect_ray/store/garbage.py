"""What lies in an output folder and is of no more use. Found here, shown by `status`, removed by `clean` alone."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from scalselect_ray.config_files import parse_config
from scalselect_ray.console import counted
from scalselect_ray.corpus import SliceId, list_files
from scalselect_ray.errors import OutputError, ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output
from scalselect_ray.store.moments import covered_slices
from scalselect_ray.store.record import RunRecord
from scalselect_ray.store.runs import Runs

_LIVE = timedelta(days=1)  # a run that began less long ago may still be going on
_THREADS = 16  # that look into feature files


@dataclass(frozen=True, slots=True)
class Garbage:
    """Objects that can go for one reason."""

    what: str
    uris: Sequence[str]
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.what}: {counted(len(self.uris), 'object')}, {self.size / 2**20:,.1f} MiB"


def find_garbage(output: Output) -> list[Garbage]:
    """Garbage below an output folder, as the newest finished run tells what is in use. Raises CorpusError, ConfigError,
    OutputError.

    Features of other extractors are no garbage: they are another setting's work.
    """
    now = datetime.now(UTC)
    found = [_abandoned_runs(output, now)]
    runs = Runs(output)
    latest = runs.latest()
    record = runs.record(latest) if latest else None
    if record is not None:
        began = runs.began(record.run_id).timestamp()
        found += [_left_features(output, record, began), _earlier_moments(output, record, began)]
    if storage.is_local(output.uri):
        found.append(_half_written(output, now))
    return [item for item in found if item.uris]


def _abandoned_runs(output: Output, now: datetime) -> Garbage:
    runs = Runs(output)
    dead = [name for name in runs.names() if runs.began(name) < now - _LIVE and not runs.is_finished(name)]
    files = [file for name in dead for file in storage.list_tree(runs.folder(name).uri)]
    return _these("runs that were never finished", files)


def _left_features(output: Output, record: RunRecord, began: float) -> Garbage:
    """Of files that were no longer in the corpus, or no longer what they had been, when the run began."""
    keys = _corpus_keys(output.run(record.run_id).config)
    stale = [
        file
        for file, slice_id in _feature_files(output, record.extractor)
        if file.modified < began and slice_id.file_key not in keys
    ]
    return _these("features of files that left the corpus or changed", stale)


def _earlier_moments(output: Output, record: RunRecord, began: float) -> Garbage:
    kept = output.moments_file(record.extractor, record.moments)
    files = storage.list_tree(output.moments(record.extractor))
    return _these(
        "moments of earlier sets of slices", [file for file in files if file.modified < began and file.uri != kept]
    )


def _half_written(output: Output, now: datetime) -> Garbage:
    until = (now - _LIVE).timestamp()
    hidden = [
        file for file in storage.list_tree(output.uri) if _name(file).startswith(".") and _name(file).endswith(".tmp")
    ]
    return _these("half-written files of a killed process", [file for file in hidden if file.modified < until])


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
        with ThreadPoolExecutor(_THREADS) as threads:
            held = [item for item, it_does in zip(items, threads.map(holds, items), strict=True) if it_does]
        features += [file for file, _ in held]
        slice_ids = {slice_id for _, slice_id in held}
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


def _corpus_keys(config_uri: str) -> set[str]:
    """Keys of the files that are in the corpus now: what cannot be seen is not called garbage."""
    try:
        config = parse_config(storage.read_bytes(config_uri).decode(), where=config_uri)
        return {file.key for file in list_files(config.corpus)}
    except ScalSelectError as error:
        raise type(error)(f"garbage is told by the corpus of the newest run ({config_uri}): {error}") from error


def _these(what: str, files: Sequence[storage.FileInfo]) -> Garbage:
    return Garbage(what, [file.uri for file in files], sum(file.size for file in files))


def _name(file: storage.FileInfo) -> str:
    return file.uri.rpartition("/")[2]
