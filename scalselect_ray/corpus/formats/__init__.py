"""Container formats. Adding one: a module with a `Format`, and a line in `FORMATS`."""

import gzip
import zlib

from scalselect_ray.corpus.formats.base import Broken, Cutting, Format, Run, UnreadableFileError
from scalselect_ray.corpus.formats.json_list import JsonList
from scalselect_ray.corpus.formats.jsonl import JsonLines
from scalselect_ray.corpus.formats.parquet import Parquet
from scalselect_ray.corpus.formats.webdataset import WebDataset
from scalselect_ray.io import storage

__all__ = ["FORMATS", "Broken", "Cutting", "Format", "Run", "UnreadableFileError", "format_of", "is_corpus_file"]

FORMATS: dict[str, Format] = {
    ".parquet": Parquet(),
    ".jsonl": JsonLines(),
    ".ndjson": JsonLines(),
    ".tar": WebDataset(),
    ".jsonl.gz": JsonLines(compressed=True),
    ".ndjson.gz": JsonLines(compressed=True),
    ".json.gz": JsonLines(compressed=True),
    ".tar.gz": WebDataset(compressed=True),
    ".tgz": WebDataset(compressed=True),
}
"""By suffix; `.json` and anything else is told by its first bytes."""

_NOT_CORPUS = ("dataset_info.json", "_stats.json", "state.json", "dataset_infos.json")


def is_corpus_file(uri: str) -> bool:
    """Whether a file found in a folder looks like a part of a corpus."""
    name = uri.rpartition("/")[2]
    return (
        name.endswith((*FORMATS, ".json"))
        and not name.startswith(".")
        and not name.endswith(_NOT_CORPUS)
        and "/.nv-meta/" not in uri
    )


def format_of(file: storage.FileInfo) -> Format:
    """The format of a file. Raises UnreadableFileError when it is none of ours, OSError."""
    for suffix, known in sorted(FORMATS.items(), key=lambda item: -len(item[0])):
        if file.uri.endswith(suffix) and not suffix.endswith(".json.gz"):
            return known
    head = storage.read_bytes(file.uri, 0, 4096)
    if head.startswith(b"PAR1"):
        return FORMATS[".parquet"]
    compressed = head.startswith(b"\x1f\x8b")
    if compressed:
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 4096)
        except (zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableFileError(f"broken gzip: {error}") from error
    if head[257:262] == b"ustar":
        return FORMATS[".tar.gz" if compressed else ".tar"]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        if compressed:
            raise UnreadableFileError("a gzipped JSON list cannot be cut into slices: unpack it, or write JSON lines")
        return JsonList()
    if text.startswith(b"{"):
        return FORMATS[".jsonl.gz" if compressed else ".jsonl"]
    what = "the file is empty" if not head else f"starts with {head[:16]!r}"
    raise UnreadableFileError(f"not JSON, JSON lines, Parquet or tar: {what}")
