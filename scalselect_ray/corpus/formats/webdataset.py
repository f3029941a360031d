"""WebDataset tar shards: neighbouring members with one key are one sample. Members are read from the stream, never
extracted."""

import io
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, ClassVar, NamedTuple, Self, TypeVar, cast

from scalselect_ray.corpus.formats.base import (
    MAX_ROW_BYTES,
    Broken,
    Cutting,
    Format,
    RowRange,
    UnreadableFileError,
    cut,
    parse_row,
)
from scalselect_ray.corpus.formats.gzipped import inflated, inflated_head, max_inflated
from scalselect_ray.corpus.sample import Reason
from scalselect_ray.errors import StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_BLOCK = 512
_MAX_MEMBERS = 4096  # of one key
_END = 2 * _BLOCK  # zeros, the end mark
_MAX_EXTENSION = 1 << 14  # bytes of a header that extends another one, such as a long name
_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_TAIL = 1 << 16  # bytes read at once after the end mark: tools fill up their last record with zeros
T = TypeVar("T")


class _Member(NamedTuple):
    info: tarfile.TarInfo
    data: bytes | None = None  # read already, where the tar is a stream that cannot go back


class _Group:
    """The members of one key. Of a key with too many members, or too many bytes, none is kept."""

    def __init__(self, first: tarfile.TarInfo) -> None:
        self.key = _key(first)
        self.first = self.last = first
        self.members: list[_Member] = []
        self.size = self.count = 0  # bytes and number of all members, also of those that are not kept

    def add(self, tar: tarfile.TarFile, info: tarfile.TarInfo, is_stream: bool) -> None:
        self.last = info
        self.size += info.size
        self.count += 1
        if self.is_too_costly():
            self.members = []
            return
        self.members.append(_Member(info, _content(tar, info) if is_stream else None))

    def is_too_costly(self) -> bool:
        return self.size > MAX_ROW_BYTES or self.count > _MAX_MEMBERS

    def is_whole(self, tar: tarfile.TarFile) -> bool:
        """Whether the file holds all of the last member."""
        if self.members and self.members[-1].data is not None:
            return len(self.members[-1].data) == self.last.size
        stream = tar.fileobj
        return isinstance(stream, io.IOBase) and self.last.offset_data + self.last.size <= stream.seek(0, io.SEEK_END)


class WebDataset(Format):
    """Slices are byte ranges of the tar."""

    title = "WebDataset tar"
    suffixes: ClassVar[tuple[str, ...]] = (".tar",)

    def begins(self, head: bytes) -> bool:
        return head[257:262] == b"ustar"

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        with storage.open_read(file.uri) as raw, self._open(self._stream(raw, file)) as tar:
            for range_ in cut(self._sizes(tar, self._limit(file)), cutting):
                yield range_._replace(start_byte=0, stop_byte=0) if self.sequential else range_

    def _sizes(self, tar: tarfile.TarFile, limit: int | None) -> Iterator[tuple[int, int]]:
        for group in _groups(tar, limit):
            yield group.first.offset, _end(group.last)
        stream = cast(BinaryIO, tar.fileobj)
        while block := stream.read(_TAIL):  # to the end of the file, where the checksum of a gzip stands
            if block.count(0) != len(block):
                raise UnreadableFileError("the tar goes on after its end mark: several tars joined to one?")

    def read(self, file: FileInfo, ranges: Sequence[RowRange]) -> Iterator[tuple[RowRange, list[object]]]:
        return self._read(file, ranges, _record, _too_costly)

    def keys(self, file: FileInfo) -> Iterator[str]:
        """The key of each row."""
        with storage.open_read(file.uri) as raw, self._open(self._stream(raw, file)) as tar:
            for group in _groups(tar, self._limit(file)):
                yield group.key

    def members(
        self, file: FileInfo, ranges: Sequence[RowRange]
    ) -> Iterator[tuple[RowRange, list[list[tuple[str, bytes]]]]]:
        """(name, content) of the members of each row of consecutive ranges; the images in the order in which the row
        names them."""
        return self._read(file, ranges, _members, lambda name, size: [])

    def _read(
        self,
        file: FileInfo,
        ranges: Sequence[RowRange],
        make: Callable[[tarfile.TarFile, _Group], T],
        refuse: Callable[[str, int], T],
    ) -> Iterator[tuple[RowRange, list[T]]]:
        if not self.sequential:
            for range_ in ranges:
                size = range_.stop_byte - range_.start_byte
                if size > MAX_ROW_BYTES and range_.stop_row - range_.first_row == 1:
                    yield range_, [refuse(f"row {range_.first_row}", size)]
                    continue
                data = io.BytesIO(storage.read_bytes(file.uri, range_.start_byte, range_.stop_byte) + bytes(_END))
                with self._open(data) as tar:
                    yield range_, [make(tar, group) for group in _groups(tar)]
            return
        with storage.open_read(file.uri) as raw, self._open(self._stream(raw, file)) as tar:
            row = 0
            groups = _groups(tar, self._limit(file))
            for range_ in ranges:
                records: list[T] = []
                while row < range_.stop_row:
                    group = next(groups, None)
                    if group is None:
                        break
                    if row >= range_.first_row:
                        records.append(make(tar, group))
                    row += 1
                yield range_, records

    def _stream(self, raw: BinaryIO, file: FileInfo) -> BinaryIO:
        return inflated(raw, file) if self.sequential else raw

    def _limit(self, file: FileInfo) -> int | None:
        return max_inflated(file) if self.sequential else None

    def _open(self, stream: object) -> tarfile.TarFile:
        try:
            return tarfile.open(fileobj=stream, mode="r|" if self.sequential else "r:", tarinfo=_Header)  # type: ignore[call-overload, no-any-return]
        except (StorageError, UnreadableFileError):
            raise
        except Exception as error:  # tarfile raises what it likes
            raise UnreadableFileError(f"broken tar: {error}") from error


class GzippedWebDataset(WebDataset):
    """A tar in one gzip stream."""

    suffixes = (".tar.gz", ".tgz")
    sequential = True

    def begins(self, head: bytes) -> bool:
        inflated = inflated_head(head)
        return inflated is not None and super().begins(inflated)


class _Header(tarfile.TarInfo):
    """A header that tarfile would take for the end of the tar, or for gigabytes of a name, is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < _BLOCK:
            raise UnreadableFileError("the tar is cut: it has no end mark")
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise UnreadableFileError(f"broken tar: {error}") from error
        if header.size < 0 or (header.type in _EXTENSIONS and header.size > _MAX_EXTENSION):
            raise UnreadableFileError(f"broken tar: a header claims {header.size:,} bytes")
        return header


def _groups(tar: tarfile.TarFile, limit: int | None = None) -> Iterator[_Group]:
    """The members of each key, of a stream where a `limit` of its bytes is given. Raises UnreadableFileError where the
    tar is cut, after the whole keys before."""
    group: _Group | None = None
    try:
        for info in _infos(tar, limit):
            if group is not None and _key(info) != group.key:
                yield group
                group = None
            group = group or _Group(info)
            group.add(tar, info, is_stream=limit is not None)
    except (StorageError, GeneratorExit):
        raise
    except Exception as error:  # tarfile raises what it likes
        if group is not None and group.is_whole(tar):
            yield group
        raise UnreadableFileError(f"the tar is cut or broken: {error}") from error
    if group is not None:
        yield group


def _infos(tar: tarfile.TarFile, limit: int | None) -> Iterator[tarfile.TarInfo]:
    """The headers of the files in a tar; links, devices, sparse and hidden files and the like are passed over."""
    at = -1
    while (info := tar.next()) is not None:
        following = int(tar.offset)  # type: ignore[attr-defined]
        if info.size < 0 or not at < info.offset < following:
            raise UnreadableFileError("a header points backwards")
        if limit is not None and following > limit:  # tarfile would count its way there, block by block
            raise UnreadableFileError(f"{info.name} claims {info.size:,} bytes")
        at = info.offset
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
        if info.isreg() and not info.issparse() and not posixpath.basename(info.name).startswith("."):
            yield info


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    stream = tar.fileobj
    if isinstance(stream, io.BytesIO):  # the bytes of a range: no need for a file within the file
        stream.seek(info.offset_data)
        data = stream.read(info.size)
        if len(data) < info.size:
            raise UnreadableFileError(f"{info.name}: the tar is cut")
        return data
    file = tar.extractfile(info)
    return file.read() if file else b""


def _too_costly(name: str, size: int, count: int = 0) -> Broken:
    if count > _MAX_MEMBERS:
        return Broken(f"{name}: {count:,} members are above the limit of {_MAX_MEMBERS:,}", Reason.TOO_COSTLY)
    return Broken(f"{name}: {size:,} bytes are above the limit of {MAX_ROW_BYTES:,}", Reason.IMAGE_TOO_LARGE)


def _key(member: tarfile.TarInfo) -> str:
    folder, name = posixpath.split(member.name)
    return posixpath.join(folder, name.partition(".")[0])


def _extension(member: tarfile.TarInfo) -> str:
    return posixpath.basename(member.name).partition(".")[2].lower()


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // _BLOCK) * _BLOCK


def _record(tar: tarfile.TarFile, group: _Group) -> object:
    """The row of one key: its json (or txt) member, with the image members as its images."""
    if group.is_too_costly():
        return _too_costly(group.key, group.size, group.count)
    record: object = None
    images: dict[str, dict[str, object]] = {}
    for member, read in group.members:
        kind = _extension(member)
        if kind.rpartition(".")[2] not in (*_IMAGES, "json", "txt"):
            continue
        data = read if read is not None else _content(tar, member)
        if kind == "json":
            record = parse_row(data)
            if isinstance(record, Broken):
                return Broken(f"{member.name}: {record.message}", record.reason)
        elif kind == "txt":
            record = record if record is not None else {"caption": data.decode("utf-8", "replace")}
        elif kind.rpartition(".")[2] in _IMAGES:
            images[member.name] = {"bytes": data, "path": member.name}
    if isinstance(record, list):
        record = {"conversations": record}
    if record is None:
        return Broken(f"{group.key}: no .json or .txt member with the conversation")
    if not isinstance(record, dict):
        return Broken(f"{group.key}: the .json member must hold an object")
    record.setdefault("id", record.get("key", group.key))
    record["images"] = _ordered(record, images)
    record.pop("image", None)
    return record


def _members(tar: tarfile.TarFile, group: _Group) -> list[tuple[str, bytes]]:
    record = _record(tar, group)
    images = [image["path"] for image in record["images"]] if isinstance(record, dict) else []
    found = {info.name: read if read is not None else _content(tar, info) for info, read in group.members}
    others = found.keys() - set(images)
    return [(name, data) for name, data in found.items() if name in others] + [(name, found[name]) for name in images]


def _ordered(record: dict[str, object], images: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    """The image members in the order in which the record names them, or else as they stand in the tar."""
    named = record.get("images", record.get("image"))
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    by_name = {posixpath.basename(name): image for name, image in images.items()}
    found = [
        by_name[posixpath.basename(name)]
        for name in names
        if isinstance(name, str) and posixpath.basename(name) in by_name
    ]
    return found if len(found) == len(images) else list(images.values())


FORMATS = (WebDataset(), GzippedWebDataset())
