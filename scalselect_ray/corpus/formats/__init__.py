"""Container formats of a corpus. Adding one takes one file: a module in this folder that lists its `Format` objects in
`FORMATS`."""

import importlib
import os
import pkgutil
import stat

from scalselect_ray.corpus.formats.base import Broken, Cutting, Format, RowRange, UnreadableFileError
from scalselect_ray.io import storage

__all__ = [
    "FORMATS",
    "SUFFIXES_TEXT",
    "Broken",
    "Cutting",
    "Format",
    "RowRange",
    "UnreadableFileError",
    "format_of",
    "is_corpus_file",
]

FORMATS: tuple[Format, ...] = tuple(
    known
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__))
    for known in getattr(importlib.import_module(f"{__name__}.{module}"), "FORMATS", ())
)
"""What the modules of this folder define."""

_NO_FILES = {
    stat.S_ISFIFO: "FIFO",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "character device",
    stat.S_ISBLK: "block device",
}
_NOT_CORPUS = ("dataset_info.json", "_stats.json", "state.json", "dataset_infos.json")
SUFFIXES_TEXT = ".json, .jsonl, .parquet, .tar, each also .gz but Parquet"


def is_corpus_file(name: str) -> bool:
    """Whether a file found in a folder looks like a part of a corpus, by its name alone."""
    small = name.lower()
    return any(small.endswith(known.suffixes) for known in FORMATS) and not small.endswith(_NOT_CORPUS)


def format_of(file: storage.FileInfo) -> Format:
    """The format of a file, by its suffix where this says it, else by its first bytes. Raises UnreadableFileError when
    it is none of ours, or no file that ends (a FIFO, socket or device: these are not opened), OSError."""
    if storage.is_local(file.uri):
        mode = os.stat(storage.absolute(file.uri)).st_mode
        kind = next((name for test, name in _NO_FILES.items() if test(mode)), "")
        if kind:
            raise UnreadableFileError(f"it is a {kind} and not a file: it was not opened")
    named = [known for known in FORMATS if file.uri.lower().endswith(known.suffixes)]
    if len(named) == 1:
        return named[0]
    head = storage.read_start(file.uri, 4096)
    for known in FORMATS:
        if known.begins(head):
            return known
    what = "the file is empty" if not head else f"starts with {head[:16]!r}"
    titles = sorted({known.title for known in FORMATS})
    raise UnreadableFileError(f"not {', '.join(titles[:-1])} or {titles[-1]}: {what}")
