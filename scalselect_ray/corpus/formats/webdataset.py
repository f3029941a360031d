"""WebDataset tar shards: neighbouring members with one key are one sample. Members are read from the stream, never extracted."""

import io
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Sequence

from scalselect_ray import storage
from scalselect_ray.corpus.formats.base import MAX_ROW_BYTES, Broken, Run, UnreadableFileError, cut
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.storage import FileInfo

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_BLOCK = 512


class WebDataset:
    """Slices are byte ranges of the tar, or runs of a gzipped stream."""

    def __init__(self, compressed: bool = False) -> None:
        self.sequential = compressed

    def scan(self, file: FileInfo, max_rows: int, max_bytes: int) -> Iterator[Run]:
        with storage.open_read(file.uri) as stream:
            with self._open(stream) as tar:
                sizes = ((members[0].offset, _end(members[-1])) for members in _groups(tar))
                for run in cut(sizes, max_rows, max_bytes):
                    yield run._replace(start_byte=0, stop_byte=0) if self.sequential else run

    def read(self, file: FileInfo, runs: Sequence[Run]) -> Iterator[tuple[Run, list[object]]]:
        if not self.sequential:
            for run in runs:
                data = io.BytesIO(storage.read_bytes(file.uri, run.start_byte, run.stop_byte))
                with tarfile.open(fileobj=data, mode="r:") as tar:
                    yield run, [_record(tar, members) for members in _groups(tar)]
            return
        with storage.open_read(file.uri) as stream, self._open(stream) as tar:
            # A stream cannot go back: each member is read as it passes.
            row = 0
            groups = _groups(tar, read=True)
            for run in runs:
                records: list[object] = []
                while row < run.stop_row:
                    members = next(groups)
                    if row >= run.first_row:
                        records.append(_record(tar, members))
                    row += 1
                yield run, records

    def _open(self, stream: object) -> tarfile.TarFile:
        try:
            return tarfile.open(fileobj=stream, mode="r|gz" if self.sequential else "r:")  # type: ignore[call-overload, no-any-return]
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UnreadableFileError(f"broken tar: {error}") from error


def _groups(tar: tarfile.TarFile, read: bool = False) -> Iterator[list[tarfile.TarInfo]]:
    group: list[tarfile.TarInfo] = []
    members = iter(tar)
    while True:
        try:
            member = next(members, None)
            if member is not None and member.isreg() and not member.issparse() and read and member.size <= MAX_ROW_BYTES:
                file = tar.extractfile(member)
                member.data = file.read() if file else b""  # type: ignore[attr-defined]
        except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, OverflowError) as error:
            if group and _whole(tar, group):
                yield group
            raise UnreadableFileError(f"the tar is cut or broken: {error}") from error
        if member is None:
            break
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
        if not member.isreg() or member.issparse() or posixpath.basename(member.name).startswith("."):
            continue  # links, devices, sparse files and the like are never followed
        if group and _key(member) != _key(group[0]):
            yield group
            group = []
        group.append(member)
    if group:
        if not _whole(tar, group):
            raise UnreadableFileError(f"the tar is cut inside {group[-1].name}")
        yield group


def _whole(tar: tarfile.TarFile, group: list[tarfile.TarInfo]) -> bool:
    """Whether the file is long enough to hold the last member."""
    stream = tar.fileobj
    if not getattr(stream, "seekable", lambda: False)():
        return all(getattr(member, "data", None) is None or len(member.data) == member.size for member in group)  # type: ignore[attr-defined]
    at = stream.tell()  # type: ignore[union-attr]
    stream.seek(0, io.SEEK_END)  # type: ignore[union-attr, call-arg]
    size = stream.tell()  # type: ignore[union-attr]
    stream.seek(at)  # type: ignore[union-attr]
    return group[-1].offset_data + group[-1].size <= size


def _key(member: tarfile.TarInfo) -> str:
    folder, name = posixpath.split(member.name)
    return posixpath.join(folder, name.partition(".")[0])


def _extension(member: tarfile.TarInfo) -> str:
    return posixpath.basename(member.name).partition(".")[2].lower()


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // _BLOCK) * _BLOCK


def _record(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> object:
    """The row of one key: its json (or txt) member, with the image members as its images."""
    record: object = None
    images: dict[str, dict[str, object]] = {}
    for member in members:
        kind = _extension(member)
        if kind.rpartition(".")[2] not in (*_IMAGES, "json", "txt"):
            continue
        if member.size > MAX_ROW_BYTES:
            return Broken(f"{member.name}: {member.size:,} bytes is above the limit of {MAX_ROW_BYTES:,}", Reason.IMAGE_TOO_LARGE)
        data = getattr(member, "data", None)
        if data is None:
            file = tar.extractfile(member)
            data = file.read() if file else b""
        if kind == "json":
            try:
                record = json.loads(data)
            except (ValueError, RecursionError) as error:
                return Broken(f"{member.name}: not JSON: {error}")
        elif kind == "txt":
            record = record if record is not None else {"caption": data.decode("utf-8", "replace")}
        elif kind.rpartition(".")[2] in _IMAGES:
            images[member.name] = {"bytes": data, "path": member.name}
    if isinstance(record, list):
        record = {"conversations": record}
    if record is None:
        return Broken(f"{_key(members[0])}: no .json or .txt member with the conversation")
    if not isinstance(record, dict):
        return Broken(f"{_key(members[0])}: the .json member must hold an object")
    record.setdefault("id", record.get("key", _key(members[0])))
    record["images"] = _ordered(record, images)
    record.pop("image", None)
    return record


def _ordered(record: dict[str, object], images: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    """The image members in the order in which the record names them, or else as they stand in the tar."""
    named = record.get("images", record.get("image"))
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    by_name = {posixpath.basename(name): image for name, image in images.items()}
    found = [by_name[posixpath.basename(name)] for name in names if isinstance(name, str) and posixpath.basename(name) in by_name]
    return found if len(found) == len(images) else list(images.values())
