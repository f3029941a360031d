"""Where a corpus lies, against where something is written."""

import fnmatch
import os
import re

from scalselect_ray.corpus.planning import CorpusSettings
from scalselect_ray.errors import CorpusError, OutputError, StorageError
from scalselect_ray.io import storage

_PATTERN = re.compile(r"[*?\[]")


def check_apart(output: str, corpus: CorpusSettings) -> None:
    """That an output folder lies outside the corpus, and the corpus outside of it: else the next run would read as
    samples what this one has written. Raises OutputError, CorpusError."""
    for source in corpus.sources:
        for path in map(storage.absolute, source.paths):
            try:
                covered, front = covers(path, output), _front(path) if _is_pattern(path) else path
            except StorageError as error:
                raise CorpusError(f"source '{source.name}': {path} cannot be listed: {error}") from error
            if covered:
                where = f"{output} lies below {path}, a path of the corpus"
            elif storage.is_below(front, output):
                where = f"{path}, a path of the corpus, lies in the output folder {output}"
            else:
                continue
            raise OutputError(
                f"{where} (source '{source.name}'): the next run would read as samples what this one writes. Choose an "
                "output outside the corpus"
            )


def covers(path: str, folder: str) -> bool:
    """Whether a path of the corpus, a pattern or a name, would name files below `folder`. Links of this machine are
    followed."""
    if not _is_pattern(path):
        return storage.is_below(folder, path)
    front = _front(path)
    if storage.is_below(front, folder):
        return True
    if not storage.is_below(folder, front):
        return False
    inside = _real(folder)[len(_real(front)) :].strip("/").split("/")
    for index, pattern in enumerate(path[len(front) :].strip("/").split("/")):
        if pattern == "**" or index == len(inside):
            return True
        if not fnmatch.fnmatchcase(inside[index], pattern):
            return False
    return False  # it names what lies beside the folder, or above it


def _is_pattern(path: str) -> bool:
    """Whether a path stands for others; a name with such characters, of what is there, does not."""
    return _PATTERN.search(path) is not None and not storage.exists(path)


def _front(path: str) -> str:
    """The folder of a path before its first pattern; the path itself where it has none."""
    parts = path.split("/")
    first = next((index for index, part in enumerate(parts) if _PATTERN.search(part)), None)
    return path if first is None else "/".join(parts[:first]) or "/"


def _real(uri: str) -> str:
    return os.path.realpath(uri) if storage.is_local(uri) else uri
