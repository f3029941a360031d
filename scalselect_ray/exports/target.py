"""The folder of an export: where it may lie, and which export it belongs to."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from scalselect_ray.corpus.location import covers
from scalselect_ray.corpus.planning import CorpusSettings
from scalselect_ray.errors import OutputError
from scalselect_ray.exports.base import SPOOL
from scalselect_ray.io import storage
from scalselect_ray.store.layout import check_format

Identity = Mapping[str, str | bool | None]  # what makes two exports the same one
_LOOKS, _LOOK_S = 20, 0.1  # at a claim that another process is writing just now
_SETTLE_S = 2.0  # until all who wrote a claim at once have written it, in a store without conditional writes


def check_location(target: str, corpus: CorpusSettings, output: str) -> None:
    """That no run would ever read the export as its corpus, and that it does not lie inside an output folder.

    Raises OutputError.
    """
    if storage.is_below(target, output):
        raise OutputError(f"{target} lies in the output folder {output}: choose a folder outside it")
    for source in corpus.sources:
        for path in source.paths:
            if covers(storage.absolute(path), target):
                raise OutputError(
                    f"{target} lies below {path}, a path of the corpus (source "
                    f"'{source.name}'): the next run would read the export as samples. Choose a folder outside it"
                )


@contextmanager
def claimed(target: str, identity: Identity) -> Iterator[None]:
    """The folder is this export's from here on; it is given back when the block fails before anything is written.

    The folder must be empty, or hold this same export, finished or not. Of different exports that begin at once in one
    folder at most one goes on. Raises OutputError, StorageError.
    """
    if storage.is_local(target):
        _check_folder(target)
    begun = _read(claim_of(target))
    if begun is not None:
        _check_same(target, begun, identity)
    _check_content(target, identity, begun=begun is not None)
    new = begun is None and _claim(target, identity)
    try:
        _check_content(target, identity, begun=not new)  # another may have begun and ended since the first look
        yield
    except BaseException:
        if new and not _has_content(target):
            storage.delete_folder(storage.join(target, SPOOL))
        raise


def _check_folder(target: str) -> None:
    """That a local folder is there, or can be made."""
    nearest = target
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise OutputError(f"{nearest} is no folder: choose another place for the export")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{nearest}: no permission to write there: choose another place for the export")


def claim_of(target: str) -> str:
    """The object that says which export is at work in the folder."""
    return storage.join(target, SPOOL, "export.json")


def _claim(target: str, identity: Identity) -> bool:
    """Whether the claim is new. Raises OutputError when another export has the folder."""
    uri, data = claim_of(target), json.dumps(identity).encode()
    new = storage.create(uri, data)
    if new and storage.create(uri, data):  # this store writes over what is there: who writes last has the folder
        time.sleep(_SETTLE_S)
    for _ in range(_LOOKS):
        found = _read(uri)
        if found is not None:
            _check_same(target, found, identity)
            return new
        time.sleep(_LOOK_S)
    raise OutputError(f"{uri} does not say which export it belongs to: remove it, or choose another folder")


def _check_same(target: str, found: Mapping[str, Any], identity: Identity) -> None:
    if any(found.get(name) != identity.get(name) for name in ("run_id", "to", "images", "raw")):
        raise OutputError(
            f"{target} holds another export ({found.get('to')} of run {found.get('run_id')}): choose another folder"
        )


def _check_content(target: str, identity: Identity, begun: bool) -> None:
    """That the folder holds nothing but this export, which has `begun`, or is finished."""
    uri = storage.join(target, "export.json")
    finished = _read(uri)
    if finished is not None and "to" in finished:
        check_format("export", finished.get("format"), uri)
        _check_same(target, finished, identity)
    elif not begun and (storage.list_names(target) or storage.list_folders(target)):
        raise OutputError(f"{target} is not empty: choose another folder")


def _has_content(target: str) -> bool:
    """Whether there is anything but the claim."""
    spool = storage.join(target, SPOOL)
    names = [*storage.list_names(target), *storage.list_folders(target), *storage.list_folders(spool)]
    return bool(names) or storage.list_names(spool) != ["export.json"]


def _read(uri: str) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or it is not whole yet."""
    try:
        found = json.loads(storage.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found if isinstance(found, dict) else None
