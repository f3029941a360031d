"""Files by URI: the one place that talks to fsspec.

A URI is a string with a scheme (`s3://`, `file://`, `memory://`, ...) or a plain local path. File systems are made in
the process that uses them and never pickled; credentials stay where fsspec finds them (environment, profile, instance
role).

Whatever a store's client raises comes out as FileNotFoundError (or a kin of it), NoPermissionError or StorageError.
What may pass (throttling, resets, time-outs, errors of the store itself) is tried again for about half a minute, on top
of the client's own retries. A store that never answers is given up after a minute, one that stops in the midst of a
listing or a large object after ten."""

import contextlib
import errno
import io
import os
import posixpath
import re
import shutil
import stat as stat_
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
import tenacity
from fsspec.core import url_to_fs

from scalselect_ray.errors import (
    ConfigError,
    NoAnswerError,
    NoPermissionError,
    OutputError,
    ScalSelectError,
    StorageError,
)
from scalselect_ray.io.answers import answered, client_options

T = TypeVar("T")
_ANSWERS = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    MemoryError,
    ScalSelectError,
)  # not its trouble
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PATIENCE = tenacity.Retrying(
    retry=tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, _ANSWERS)),
    wait=tenacity.wait_random_exponential(multiplier=1, max=16),
    stop=tenacity.stop_after_attempt(5) | tenacity.stop_after_delay(30),
    reraise=True,
)
_PATTERN = re.compile(r"[*?\[]")  # what a glob is made of
_STREAM_BYTES = 1 << 23  # asked for at once by a reader that goes through a whole object
_UPLOAD_BYTES = 1 << 25  # in one part of an upload: 10,000 of these are the most that a store takes
_OPTIONS = {"s3": {"max_concurrency": 1}}  # one GET an object without a HEAD before it; many tasks read at once anyway
_CONTENT_TYPE = {"s3": "ContentType", "gs": "content_type", "gcs": "content_type"}
_CONDITIONAL = ("s3", "gs", "gcs", "az", "abfs")  # stores, and clients, with writes that fail where an object is
_CONDITION_FAILED = re.compile(r"(?i)pre-?condition|conditionNotMet")
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file as a listing shows it. `version` changes when the content does: an etag, or else the modification time."""

    uri: str
    size: int  # bytes
    version: str
    modified: float = 0.0  # seconds since the epoch; 0 where the store does not tell


class OutsideError(FileNotFoundError):
    """A file that is not, or not any more, where it may be."""


def filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of `uri` and the path in it. Raises ConfigError when its package is not installed."""
    scheme = uri.partition("://")[0]
    try:
        return cast(tuple[Any, str], url_to_fs(uri, **_OPTIONS.get(scheme, {}), **client_options(scheme)))
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme)
        cure = (
            f"install it with 'pip install {package}'"
            if package
            else f"known schemes: {', '.join(sorted(_PACKAGES))}, file"
        )
        raise ConfigError(f"{uri}: no file system for the scheme '{scheme}': {cure}") from error


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """The one way this program writes a URI: local paths absolute and without a scheme, no slash at the end."""
    if is_local(uri):
        return os.path.abspath(os.path.expanduser(re.sub(r"^(file|local)://", "", uri)))
    scheme, separator, path = uri.partition("://")
    return scheme + separator + path.rstrip("/")


def is_below(uri: str, folder: str) -> bool:
    """Whether `uri` is `folder`, or lies in it at any depth. Links of this machine are followed."""
    inner, outer = (os.path.realpath(path) if is_local(path) else path for path in map(absolute, (uri, folder)))
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def join(base: str, *parts: str) -> str:
    """`base` with path components appended."""
    return posixpath.join(base, *parts)


def stat(uri: str) -> FileInfo:
    """The listing entry of one file. Raises FileNotFoundError, StorageError."""
    fs, path = filesystem(uri)
    return _file_info(fs, patiently(uri, lambda: fs.info(path)))


def file_infos(root: str, listed: Iterable[Any]) -> list[FileInfo]:
    """The files of a listing: paths of this machine, or what the file system of `root` says of its objects. What is
    gone meanwhile, and what is a link to nothing, is left out. Raises StorageError."""
    fs = filesystem(root)[0]
    if not is_local(root):
        return [_file_info(fs, item) for item in listed]
    files = []
    for path in listed:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files.append(_told(path, lambda path=path: _stat_here(path)))  # type: ignore[misc]
    return files


def knock(uri: str) -> None:
    """That a store answers at all, before a listing of it that may take long. Raises StorageError."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError, PermissionError):
        if not is_local(uri):
            patiently(uri, lambda: fs.info(path))


def list_tree(folder: str) -> list[FileInfo]:
    """Every file below a folder at any depth, sorted by URI. The name is taken as it is: no sign of it is a pattern.
    Empty when there is no such folder. Raises StorageError."""
    fs, path = filesystem(folder)

    def found() -> list[Any]:
        fs.invalidate_cache()
        below = path.rstrip("/") + "/"
        return [
            name if is_local(folder) else info
            for name, info in fs.find(path, detail=True).items()
            if name.startswith(below)
        ]

    try:
        knock(folder)
        return sorted(file_infos(folder, patiently(folder, found, many=True)), key=lambda file: file.uri)
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_read(uri: str) -> BinaryIO:
    """`uri` opened to be read from its start to its end; seekable. Raises FileNotFoundError, StorageError."""
    if is_local(uri):
        return cast(BinaryIO, patiently(uri, lambda: open(absolute(uri), "rb")))
    return cast(BinaryIO, io.BufferedReader(_Ranges(uri), _STREAM_BYTES))


def open_random(uri: str) -> BinaryIO:
    """`uri` opened to read ranges of it: each read of an object is one request for just its bytes. Raises as
    `open_read`."""
    return open_read(uri) if is_local(uri) else cast(BinaryIO, _Ranges(uri))


def read_bytes(uri: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of `uri`, all by default. Raises FileNotFoundError, StorageError."""
    if is_local(uri):
        return patiently(uri, lambda: _read_here(absolute(uri), start, stop))
    fs, path = filesystem(uri)

    def read() -> bytes:
        data = cast(bytes, fs.cat_file(path, start=start, end=stop))
        if start is not None and stop is not None and len(data) > stop - start:
            raise OSError(f"the store answers {len(data)} bytes where {stop - start} are asked for")
        return data

    return patiently(uri, read, many=stop is None)


def read_inside(path: str, size: int, folders: Sequence[str]) -> bytes:
    """The first `size` bytes of a file of this machine that lies, once it is open, in one of these folders (real paths,
    without links). Raises OutsideError, FileNotFoundError, StorageError."""
    return patiently(path, lambda: _read_here(absolute(path), 0, size, folders))


def read_start(uri: str, size: int) -> bytes:
    """The first `size` bytes of `uri`, or all where it has fewer. Raises FileNotFoundError, StorageError."""
    try:
        return read_bytes(uri, 0, size)
    except StorageError as error:
        if "not satisfiable" in str(error):  # what stores answer for a range of an empty object
            return b""
        raise


def write(uri: str, data: bytes, content_type: str | None = None) -> None:
    """Writes one object whole: it is there with all of `data`, or it is not there. Raises StorageError.

    An object store makes a PUT visible at once; locally the bytes go beside it, reach the disk, and are moved there.
    `content_type` is what a browser is told of it, where the store can keep that."""
    fs, path = filesystem(uri)
    keyword = _CONTENT_TYPE.get(uri.partition("://")[0])
    options = {keyword: content_type} if keyword and content_type else {}
    try:
        if is_local(uri):
            _write_here(path, data)
        else:
            patiently(uri, lambda: fs.pipe_file(path, data, **options), many=len(data) > _UPLOAD_BYTES)
    except NoAnswerError:
        raise
    except PermissionError as error:
        raise NoPermissionError(f"{uri}: no permission to write there") from error
    except OSError as error:
        cure = "; make room there and run again: what is committed stays" if error.errno in _FULL else ""
        raise StorageError(f"{uri} cannot be written: {error}{cure}") from error


def create(uri: str, data: bytes) -> bool:
    """Writes a small object where there is none of this name, in one atomic act; returns whether it did.

    A store without conditional writes writes over what is there, and answers True each time. Raises StorageError.
    """
    fs, path = filesystem(uri)

    def put() -> bool:
        try:
            fs.pipe_file(path, data, **({"mode": "create"} if conditional else {}))
        except Exception as error:  # clients of stores raise what they like
            if isinstance(error, FileExistsError) or _CONDITION_FAILED.search(str(error)):
                return False
            if not isinstance(error, (NotImplementedError, TypeError)) and getattr(error, "errno", 0) != errno.ENOSYS:
                raise
            fs.pipe_file(path, data)
        return True

    conditional = uri.partition("://")[0] in _CONDITIONAL
    try:
        return _create_here(path, data) if is_local(uri) else patiently(uri, put)
    except PermissionError as error:
        raise NoPermissionError(f"{uri}: no permission to write there") from error
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error}") from error


@contextlib.contextmanager
def open_write(uri: str) -> Iterator[BinaryIO]:
    """One object to be written from its start to its end, of any size: it is there when the block ends well, and else
    it is not there.

    Raises StorageError.
    """
    try:
        with _written_here(absolute(uri)) if is_local(uri) else _uploaded(uri) as file:
            yield file
    except ScalSelectError:
        raise
    except PermissionError as error:
        raise NoPermissionError(f"{uri}: no permission to write there") from error
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {error}") from error


def delete_folder(uri: str) -> None:
    """Removes a folder with all that lies in it. One that is gone already is no error. Raises StorageError."""
    if is_local(uri):
        shutil.rmtree(absolute(uri), ignore_errors=True)
    else:
        delete(file.uri for file in list_tree(uri))


def delete_empty(folder: str) -> None:
    """Removes what is left of a folder of this machine when all its files are gone; a store has no empty folders."""
    if is_local(folder):
        for path, _, _ in os.walk(absolute(folder), topdown=False):
            with contextlib.suppress(OSError):  # there is something in it
                os.rmdir(path)


def delete(uris: Iterable[str]) -> None:
    """Removes objects, in as few requests as the store allows. One that is gone already is no error. Raises
    StorageError."""
    listed = list(uris)
    if not listed:
        return
    fs = filesystem(listed[0])[0]
    paths = [filesystem(uri)[1] for uri in listed]
    if is_local(listed[0]):
        for uri, path in zip(listed, paths, strict=True):
            _told(uri, lambda path=path: _remove(path))  # type: ignore[misc]
        return
    plain = [path for path in paths if not _PATTERN.search(path)]
    for start in range(0, len(plain), 1000):
        patiently(listed[0], lambda some=plain[start : start + 1000]: fs.rm(some))  # type: ignore[misc]
    for path in set(paths).difference(plain):  # `rm` would take them for patterns
        with contextlib.suppress(FileNotFoundError):
            patiently(listed[0], lambda path=path: fs.rm_file(path))  # type: ignore[misc]


def check_folder(uri: str) -> None:
    """That objects can be written below a folder, which need not be there yet: tries it with an empty one. In a store
    it only looks that no object has the folder's name: who may write there may not be allowed to remove. Raises
    OutputError, and StorageError where the store does not answer."""
    if is_local(uri):
        nearest = absolute(uri)
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.path.isdir(nearest):
            raise OutputError(f"{nearest} is no folder: choose another place to write to")
    else:
        if is_file(uri):
            raise OutputError(f"{uri} is an object and no folder: choose another place to write to")
        return
    probe = join(uri, f".{uuid.uuid4().hex}.tmp")
    try:
        write(probe, b"")
        delete([probe])
    except NoPermissionError as error:
        raise OutputError(f"{uri}: no permission to write there: choose another place to write to") from error
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EROFS:
            raise OutputError(f"{uri} is on a disk that is read-only: choose another place to write to") from error
        raise


def is_file(uri: str) -> bool:
    """Whether there is a file, or an object, of exactly this name. Raises StorageError."""
    fs, path = filesystem(uri)
    try:
        return bool(patiently(uri, lambda: fs.info(path))["type"] == "file")
    except (FileNotFoundError, NotADirectoryError):
        return False


def download(uri: str, target: str) -> None:
    """Copies one object to a local path; the path is there whole or not at all. Raises FileNotFoundError,
    StorageError."""
    fs, path = filesystem(uri)
    target = os.path.abspath(target)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = _beside(target)
    try:
        patiently(uri, lambda: fs.get_file(path, temporary), many=True)
        os.replace(temporary, target)
    except BaseException:
        _remove(temporary)
        raise


def list_names(folder: str) -> list[str]:
    """The names of the files right inside `folder`, sorted; empty when it does not exist. Raises StorageError."""
    return [name for name, kind in _entries(folder) if kind == "file"]


def list_folders(folder: str) -> list[str]:
    """The names of the folders right inside `folder`, sorted; empty when it does not exist. Raises StorageError."""
    return [name for name, kind in _entries(folder) if kind == "directory"]


def exists(uri: str) -> bool:
    """Whether a file or folder is there. Raises StorageError."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        patiently(uri, lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class _Ranges(io.RawIOBase):
    """An object of a store as a file: each read is a request of its own, with the patience of `read_bytes`."""

    def __init__(self, uri: str) -> None:
        self._uri, self._size, self._at = uri, stat(uri).size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = read_bytes(self._uri, self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def patiently(uri: str, call: Callable[[], T], many: bool = False) -> T:
    """`call()`, tried again while the error may pass, with its error in the words of this module. No try takes
    more than a minute, or ten where `many` bytes or names may come."""
    return _told(uri, call if is_local(uri) else lambda: _PATIENCE.copy()(lambda: answered(uri, call, many)))


def _told(uri: str, call: Callable[[], T]) -> T:
    """`call()`, with its error in the words of this module."""
    try:
        return call()
    except ScalSelectError:
        raise
    except PermissionError as error:
        raise NoPermissionError(f"{uri}: no permission ({error})") from error
    except _ANSWERS:
        raise
    except TimeoutError as error:
        raise NoAnswerError(f"{uri}: {error}") from error
    except OSError as error:
        raise StorageError(f"{uri}: {str(error) or type(error).__name__}") from error
    except Exception as error:  # clients of stores raise what they like
        if "Credentials" in type(error).__name__:
            raise NoPermissionError(f"{uri}: no credentials ({error})") from error
        raise StorageError(f"{uri}: {type(error).__name__}: {error}") from error


def _limited(uri: str, call: Callable[[], T]) -> T:
    """A step of an upload: its client tries again by itself."""
    return _told(uri, lambda: answered(uri, call, many=True))


def _entries(folder: str) -> list[tuple[str, str]]:
    """(name, file or directory) of what lies right inside `folder`, hidden ones aside."""
    fs, path = filesystem(folder)

    def listed() -> list[tuple[str, str]]:
        if is_local(folder):
            with os.scandir(path) as found:  # fsspec would ask the disk for the status of each
                return [(entry.path, "directory" if entry.is_dir() else "file") for entry in found]
        fs.invalidate_cache(path)
        return [(entry["name"].rstrip("/"), entry["type"]) for entry in fs.ls(path, detail=True)]

    try:
        entries = patiently(folder, listed, many=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    here = path.rstrip("/")  # a listing can show the folder itself, as the marker object some tools leave
    named = ((posixpath.basename(name), kind) for name, kind in entries if name != here)
    return sorted((name, kind) for name, kind in named if not name.startswith("."))


def _read_here(path: str, start: int | None, stop: int | None, folders: Sequence[str] = ()) -> bytes:
    with open(path, "rb", opener=_open_at_once if folders else None) as file:
        if folders:
            _check_inside(file.fileno(), path, folders)
        file.seek(start or 0)
        return file.read(-1 if stop is None else stop - (start or 0))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would be waited for


def _check_inside(descriptor: int, path: str, folders: Sequence[str]) -> None:
    """That what was opened is a file in one of these folders, whatever its name leads to now."""
    if not stat_.S_ISREG(os.fstat(descriptor).st_mode):
        raise FileNotFoundError(errno.ENOENT, "no file", path)
    here = f"/proc/self/fd/{descriptor}"
    opened = os.readlink(here) if os.path.lexists(here) else os.path.realpath(path)
    if not any(opened.startswith(folder.rstrip("/") + "/") for folder in folders):
        raise OutsideError(errno.ENOENT, f"it leads to {opened}", path)


def _write_here(path: str, data: bytes) -> None:
    with _written_here(path) as file:
        file.write(data)


def _create_here(path: str, data: bytes) -> bool:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(path, "xb") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                _remove(path)
                raise
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _written_here(path: str) -> Iterator[BinaryIO]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = _beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


@contextlib.contextmanager
def _uploaded(uri: str) -> Iterator[BinaryIO]:
    """In parts, which become an object only at the end."""
    fs, path = filesystem(uri)
    file = _limited(uri, lambda: fs.open(path, "wb", block_size=_UPLOAD_BYTES, autocommit=False))
    try:
        stream = io.BufferedWriter(_Upload(uri, file), _STREAM_BYTES)
        yield cast(BinaryIO, stream)
        stream.flush()
        _limited(uri, file.close)
        _limited(uri, file.commit)
    except BaseException:
        with contextlib.suppress(Exception):  # the store may be what failed
            file.discard()
        file.closed = True  # its end must not send the rest
        raise


class _Upload(io.RawIOBase):
    """An fsspec file that is written, with its errors in the words of this module. Its client tries each part again by
    itself."""

    def __init__(self, uri: str, file: Any) -> None:
        self._uri, self._file = uri, file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(_limited(self._uri, lambda: self._file.write(data)))


def _beside(path: str) -> str:
    """A new hidden name in the folder of `path`, which no listing of ours shows."""
    return os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.tmp")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _stat_here(path: str) -> FileInfo:
    status = os.stat(path)  # of what a link points to: the content is what is versioned
    return FileInfo(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)


def _file_info(fs: Any, info: dict[str, Any]) -> FileInfo:
    if isinstance(fs, fsspec.get_filesystem_class("file")):
        return _stat_here(info["name"])
    modified = (
        info.get("LastModified")
        or info.get("mtime")
        or info.get("updated")
        or info.get("last_modified")
        or info.get("created")
    )
    version = info.get("ETag") or info.get("etag") or modified or ""
    seconds = modified.timestamp() if isinstance(modified, datetime) else 0.0
    return FileInfo(fs.unstrip_protocol(info["name"]), info["size"] or 0, str(version).strip('"'), seconds)
