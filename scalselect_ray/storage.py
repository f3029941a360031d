"""Files by URI: the one place that talks to fsspec.

A URI is a string with a scheme (`s3://`, `file://`, `memory://`, ...) or a plain local path. File systems are made in the process
that uses them and never pickled; credentials stay where fsspec finds them (environment, profile, instance role).
"""

import contextlib
import os
import posixpath
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs

from scalselect_ray.errors import ConfigError

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as a listing shows it. `version` changes when the content does: an etag, or else the modification time."""

    uri: str
    size: int  # bytes
    version: str


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path in it. Raises ConfigError when its package is not installed."""
    try:
        return cast(tuple[Any, str], url_to_fs(uri))
    except (ImportError, ValueError) as error:
        scheme = uri.partition("://")[0]
        package = _PACKAGES.get(scheme)
        cure = f"install it with 'pip install {package}'" if package else f"known schemes: {', '.join(sorted(_PACKAGES))}, file"
        raise ConfigError(f"{redact(uri)}: no file system for the scheme '{scheme}': {cure}") from error


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """The one way this program writes a URI: local paths absolute and without a scheme, no slash at the end."""
    if is_local(uri):
        return os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", uri)))
    scheme, separator, path = uri.partition("://")
    return scheme + separator + path.rstrip("/")


def join(base: str, *parts: str) -> str:
    """`base` with path components appended."""
    return posixpath.join(base, *parts)


def redact(text: str) -> str:
    """`text` without the secrets a URI can carry: userinfo and the query of a signed URL.

    A password may hold a slash (keys of S3 do), so `user:` up to the last `@` is taken for userinfo, unless it is a port.
    """
    text = re.sub(r"(?<=://)(?:[^/@\s:]+:(?!\d+/)[^\s\"']*|[^/@\s]+)@", "***@", text)
    return re.sub(r"(?i)(?<=[?&])([^=&\s]*(?:sig|token|credential|key|secret|passw|pwd)[^=&\s]*)=[^&\s\"']+", r"\1=***", text)


def stat(uri: str) -> FileInfo:
    """The listing entry of one file. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return _file_info(fs, fs.info(path))


def expand(pattern: str) -> list[FileInfo]:
    """The files a path or glob names, sorted by URI; a folder stands for every file below it. Empty when nothing matches.

    A `[` that is part of an existing name is no glob.
    """
    fs, path = filesystem(pattern)
    fs.invalidate_cache()
    found: Iterable[dict[str, Any]]
    if "*" in path or "?" in path or ("[" in path and not fs.exists(path)):
        found = [info for info in fs.glob(path, detail=True).values() if info["type"] == "file"]
    else:
        try:
            info = fs.info(path)
        except FileNotFoundError:
            return []
        found = [info] if info["type"] != "directory" else fs.find(path, detail=True).values()
    return sorted((_file_info(fs, info) for info in found), key=lambda file: file.uri)


def open_read(uri: str) -> BinaryIO:
    """`uri` opened for reading, seekable. Raises FileNotFoundError, PermissionError, OSError."""
    fs, path = filesystem(uri)
    return cast(BinaryIO, fs.open(path, "rb"))


def read_bytes(uri: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of `uri`, all by default."""
    fs, path = filesystem(uri)
    return cast(bytes, fs.cat_file(path, start=start, end=stop))


def write(uri: str, data: bytes) -> None:
    """Writes one object whole: it is there with all of `data`, or it is not there.

    An object store makes a PUT visible at once; locally the bytes go beside it, reach the disk, and are moved there.
    Raises OSError.
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def download(uri: str, target: str) -> None:
    """Copies one object to a local path; the path is there whole or not at all. Raises FileNotFoundError, OSError."""
    fs, path = filesystem(uri)
    target = os.path.abspath(target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = _beside(target)
    try:
        fs.get_file(path, temporary)
        os.replace(temporary, target)
    except BaseException:
        _remove(temporary)
        raise


def list_names(folder: str) -> list[str]:
    """The names of the files right inside `folder`, sorted; empty when it does not exist."""
    fs, path = filesystem(folder)
    fs.invalidate_cache(path)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    here = path.rstrip("/")  # a listing can show the folder itself, as the marker object some tools leave
    names = (posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file" and entry["name"].rstrip("/") != here)
    return sorted(name for name in names if not name.startswith("."))


def list_folders(folder: str) -> list[str]:
    """The names of the folders right inside `folder`, sorted; empty when it does not exist."""
    fs, path = filesystem(folder)
    fs.invalidate_cache(path)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory")


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def _beside(path: str) -> str:
    """A new hidden name in the folder of `path`, which no listing of ours shows."""
    return os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.tmp")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _file_info(fs: Any, info: dict[str, Any]) -> FileInfo:
    if isinstance(fs, fsspec.get_filesystem_class("file")):
        status = os.stat(info["name"])  # of what a link points to: the content is what is versioned
        return FileInfo(info["name"], status.st_size, str(status.st_mtime_ns))
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    return FileInfo(fs.unstrip_protocol(info["name"]), info["size"] or 0, str(version).strip('"'))
