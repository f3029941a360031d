"""Files by URI: the one place that talks to fsspec.

A URI is a string with a scheme (`s3://`, `file://`, `memory://`, ...) or a plain local path. File systems are made in the process
that uses them and never pickled; credentials stay where fsspec finds them (environment, profile, instance role).
"""

import os
import posixpath
import re
import tempfile
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
        uri = os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", uri)))
    return uri.rstrip("/") or "/"


def join(base: str, *parts: str) -> str:
    """`base` with path components appended."""
    return posixpath.join(base, *parts)


def redact(text: str) -> str:
    """`text` without the secrets a URI can carry: userinfo and the query of a signed URL."""
    text = re.sub(r"(?<=://)[^/@\s]+@", "***@", text)
    return re.sub(r"(?i)(?<=[?&])([^=&\s]*(?:signature|token|credential|key|sig|secret)[^=&\s]*)=[^&\s]+", r"\1=***", text)


def stat(uri: str) -> FileInfo:
    """The listing entry of one file. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return _file_info(fs, fs.info(path))


def expand(pattern: str) -> list[FileInfo]:
    """The files a path or glob names, sorted by URI; a folder stands for every file below it. Empty when nothing matches."""
    fs, path = filesystem(pattern)
    if not any(character in path for character in "*?["):
        try:
            info = fs.info(path)
        except FileNotFoundError:
            return []
        if info["type"] != "directory":
            return [_file_info(fs, info)]
        found: Iterable[dict[str, Any]] = fs.find(path, detail=True).values()
    else:
        found = [info for info in fs.glob(path, detail=True).values() if info["type"] == "file"]
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

    An object store makes a PUT visible at once; locally the bytes go beside it and are moved there.
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def download(uri: str, target: str) -> None:
    """Copies one object to a local path; the path is there whole or not at all."""
    fs, path = filesystem(uri)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = f"{target}.{os.getpid()}.tmp"
    fs.get_file(path, temporary)
    os.replace(temporary, target)


def list_names(folder: str) -> list[str]:
    """The names of the files right inside `folder`, sorted; empty when it does not exist."""
    fs, path = filesystem(folder)
    fs.invalidate_cache(path)
    try:
        entries = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    names = (posixpath.basename(entry["name"]) for entry in entries if entry["type"] == "file")
    return sorted(name for name in names if name and not name.startswith("."))


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


def _file_info(fs: Any, info: dict[str, Any]) -> FileInfo:
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or info.get("created") or ""
    if isinstance(fs, fsspec.get_filesystem_class("file")):
        return FileInfo(info["name"], info["size"], repr(info["mtime"]))
    return FileInfo(fs.unstrip_protocol(info["name"]), info["size"] or 0, str(version).strip('"'))
