"""What lies in an output folder and is of no more use. Found here, shown by `status`, removed by `clean` alone."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from scalselect_ray.config import parse_config
from scalselect_ray.console import counted
from scalselect_ray.corpus import list_files
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.runs import Runs
from scalselect_ray.subspace.moments import stored_slices

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


def find_garbage(output: str) -> list[Garbage]:
    """Garbage below an output folder, as the newest finished run tells what is in use. Raises CorpusError, ConfigError.

    Abandoned runs; features of files that were no longer in the corpus, or no longer what they had been, when that run
    began; moments of sets that are not that run's; half-written files. Features of other extractors are no garbage:
    they are another setting's work."""
    runs = Runs(output)
    now = datetime.now(UTC)
    dead = [name for name in runs.names() if runs.began(name) < now - _LIVE and not runs.record(name)]
    found = [
        _these("runs that were never finished", [file for name in dead for file in storage.expand(runs.folder(name))])
    ]
    latest = runs.latest()
    record = runs.record(latest) if latest else {}
    if latest and record:
        began = runs.began(latest).timestamp()
        keys = _corpus_keys(storage.join(runs.folder(latest), "config.yaml"))
        features = storage.expand(storage.join(output, "features", record["extractor"], "*.parquet"))
        stale = [file for file in features if file.modified < began and _name(file).partition("-")[0] not in keys]
        found.append(_these("features of files that left the corpus or changed", stale))
        moments = storage.expand(storage.join(output, "moments", record["extractor"], "*.safetensors"))
        old = [file for file in moments if file.modified < began and _name(file) != f"{record['moments']}.safetensors"]
        found.append(_these("moments of earlier sets of slices", old))
    if storage.is_local(output):
        hidden = [
            file for file in storage.expand(output) if _name(file).startswith(".") and _name(file).endswith(".tmp")
        ]
        found.append(
            _these(
                "half-written files of a killed process",
                [file for file in hidden if file.modified < (now - _LIVE).timestamp()],
            )
        )
    return [item for item in found if item.uris]


def find_rejected(output: str, reason: str) -> list[Garbage]:
    """What is committed of slices that hold rejects of a reason, for every extractor, and the moments that cover these:
    a run without them tries the samples again. Reads the reasons of every slice."""
    features: list[storage.FileInfo] = []
    moments: list[storage.FileInfo] = []
    for extractor_id in storage.list_folders(storage.join(output, "features")):
        store = FeatureStore(output, extractor_id)

        def holds(file: storage.FileInfo, store: FeatureStore = store) -> bool:
            table = store.peek(_slice_of(file), ["reason"])
            return table is not None and reason in table["reason"].unique().to_pylist()

        files = storage.expand(storage.join(store.folder, "*.parquet"))
        with ThreadPoolExecutor(_THREADS) as threads:
            held = [file for file, it_does in zip(files, threads.map(holds, files), strict=True) if it_does]
        features += held
        slice_ids = set(map(_slice_of, held))
        for file in storage.expand(storage.join(output, "moments", extractor_id, "*.safetensors")) if held else ():
            with suppress(ValueError, FileNotFoundError):  # damaged, or gone: nothing that a run would use
                if slice_ids.intersection(stored_slices(functools.partial(storage.read_bytes, file.uri))):
                    moments.append(file)
    found = [
        _these(f"slices with rejects of the reason {reason}", features),
        _these("moments that cover them", moments),
    ]
    return [item for item in found if item.uris]


def _corpus_keys(config_uri: str) -> set[str]:
    """Keys of the files that are in the corpus now: what cannot be seen is not called garbage."""
    try:
        config = parse_config(storage.read_bytes(config_uri).decode(), where=config_uri)
        return {
            file.key for file in list_files(config.corpus.sources, config.corpus.slice_rows, config.corpus.slice_bytes)
        }
    except ScalSelectError as error:
        raise type(error)(
            f"garbage is told by the corpus of the newest run ({storage.redact(config_uri)}): {error}"
        ) from error


def _these(what: str, files: Sequence[storage.FileInfo]) -> Garbage:
    return Garbage(what, [file.uri for file in files], sum(file.size for file in files))


def _slice_of(file: storage.FileInfo) -> str:
    return _name(file).removesuffix(".parquet")


def _name(file: storage.FileInfo) -> str:
    return file.uri.rpartition("/")[2]
