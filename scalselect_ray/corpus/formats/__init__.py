"""Container formats of a corpus. Adding one takes one file: a module in this folder that lists its `Format` objects in
`FORMATS`."""

import importlib
import os
import pkgutil
import re
import stat
import zlib
from collections.abc import Iterator

from scalselect_ray.corpus.formats.base import MAX_ROW_BYTES, Broken, Cutting, Format, RowRange, UnreadableFileError
from scalselect_ray.corpus.formats.packed import inflated_head, is_packed
from scalselect_ray.corpus.formats.strangers import lfs_bytes, named
from scalselect_ray.io import storage

__all__ = [
    "FORMATS",
    "SUFFIXES_TEXT",
    "Broken",
    "Cutting",
    "Format",
    "RowRange",
    "UnreadableFileError",
    "digest_of",
    "format_of",
    "is_corpus_file",
    "scan",
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
_CACHED = re.compile(r"cache-.*\.arrow$")  # what `datasets` keeps beside its data: copies of it
_HEAD = 4096  # bytes by which a format is told
_PIECE, _SPREAD = 1 << 16, 4  # bytes of a piece, and pieces, by which a range or a file is told from others
_EMPTY = 1 << 16  # bytes that a file without rows may have: a tar without members is some zeros
SUFFIXES_TEXT = ".json, .jsonl, .tar (each also .gz, .bz2, .xz, .zst), .parquet, .arrow, .feather"


def is_corpus_file(name: str) -> bool:
    """Whether a file found in a folder looks like a part of a corpus, by its name alone."""
    small = name.lower()
    return (
        any(small.endswith(known.suffixes) for known in FORMATS)
        and not small.endswith(_NOT_CORPUS)
        and not _CACHED.match(name)
    )


def format_of(file: storage.FileInfo) -> Format:
    """The format of a file, by its suffix where this says it, else by its first bytes. Raises UnreadableFileError when
    it is none of ours, or no file that ends (a FIFO, socket or device: these are not opened), OSError."""
    if storage.is_local(file.uri):
        mode = os.stat(storage.absolute(file.uri)).st_mode
        kind = next((name for test, name in _NO_FILES.items() if test(mode)), "")
        if kind:
            raise UnreadableFileError(f"it is a {kind} and not a file: it was not opened")
    small = file.uri.lower()
    candidates = [known for known in FORMATS if small.endswith(known.suffixes)]
    if len(candidates) == 1:
        return candidates[0]
    head = storage.read_start(file.uri, _HEAD)
    what = named(head)
    packed = not what and is_packed(head)
    begins = inflated_head(file, _HEAD) if packed else head
    for known in (*candidates, *FORMATS):
        if known.packed == packed and not what and known.begins(begins):
            return known
    for known in candidates:
        if known.packed == packed and not what and small.endswith(known.taken):
            return known
    what = what or ("the file is empty" if not begins else f"starts with {begins[:16]!r}")
    titles = sorted({known.title for known in FORMATS})
    raise UnreadableFileError(f"not {', '.join(titles[:-1])} or {titles[-1]}: {what}", lfs_bytes(head))


def digest_of(form: Format, file: storage.FileInfo, range_: RowRange) -> str:
    """What tells the bytes of a range from others of the same size and time, in a file of this machine: a store has
    versions of its own. Of all bytes where `scan` reads these anyway. Else of some that are spread over the range; or
    over the file, with its ends, where the footer of Parquet and the checksum of what is packed stand. Empty where it
    is not told. Raises OSError."""
    start, stop = (range_.start_byte, range_.stop_byte) if form.scanned or form.placed else (0, file.size)
    if not storage.is_local(file.uri) or (form.scanned and stop - start > MAX_ROW_BYTES):
        return ""
    parts = [(start, stop)]
    if not form.scanned and stop - start > _SPREAD * _PIECE:
        firsts = [start + (stop - start - _PIECE) * number // (_SPREAD - 1) for number in range(_SPREAD)]
        parts = [(first, first + _PIECE) for first in firsts]
    digest = 0
    for first, end in parts:
        digest = zlib.crc32(storage.read_bytes(file.uri, first, end), digest)
    return f"{digest:08x}"


def scan(file: storage.FileInfo, cutting: Cutting) -> Iterator[RowRange]:
    """The ranges of a file in order. Raises as `Format.scan`, and says what a file is that stands for another."""
    form, is_first, digest = format_of(file), True, ""
    try:
        for range_ in form.scan(file, cutting):
            if is_first or form.scanned or form.placed:  # else it is that of the whole file
                digest = digest_of(form, file, range_)
            is_first = False
            yield range_._replace(digest=digest)
    except UnreadableFileError as error:
        head = storage.read_start(file.uri, _HEAD) if is_first else b""
        if what := named(head):
            raise UnreadableFileError(f"no {form.title}: {what}", lfs_bytes(head)) from error
        if is_packed(head) and not form.packed:
            raise UnreadableFileError(f"no {form.title}: it is packed; its name must end so, as in .tar.gz") from error
        raise
    if is_first and file.size > _EMPTY and (what := named(storage.read_start(file.uri, _HEAD))):
        raise UnreadableFileError(f"no {form.title}: {what}")
