"""WebDataset tar shards: neighbouring members with one key are one sample. Members are read from the stream, never
extracted."""

import contextlib
import io
import posixpath
import re
import tarfile
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, ClassVar, NamedTuple, Self, TypeVar, cast

from scalselect_ray.corpus.fields import FIELDS, IMAGES, TURNS, image_in
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
from scalselect_ray.corpus.formats.packed import SUFFIXES, deflated, inflated, max_inflated
from scalselect_ray.corpus.sample import Reason, Record
from scalselect_ray.errors import StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "j2k", "jfif", "mpo", "ppm", "pgm")
_NAMED = 8  # members that a message names
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
        self.end = first.offset  # in the tar
        self.members: list[_Member] = []
        self.links: list[str] = []  # which are passed over
        self.names: set[str] = set()
        self.size = self.count = 0  # bytes and number of all members, also of those that are not kept

    def add(self, tar: tarfile.TarFile, info: tarfile.TarInfo, is_stream: bool) -> None:
        self.last, self.end = info, _end(info)
        self.size += info.size
        self.count += 1
        if self.is_too_costly():
            self.members = []
            return
        self.names.add(info.name)
        self.members.append(_Member(info, _content(tar, info) if is_stream else None))

    def add_link(self, info: tarfile.TarInfo) -> None:
        self.end = info.offset_data
        if len(self.links) < _NAMED:
            self.links.append(f"{info.name} (a link)")

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
    placed = True

    def begins(self, head: bytes) -> bool:
        return head[257:262] == b"ustar"

    def scan(self, file: FileInfo, cutting: Cutting) -> Iterator[RowRange]:
        with storage.open_read(file.uri) as raw, self._open(self._stream(raw, file)) as tar:
            for range_ in cut(self._sizes(tar, self._limit(file)), cutting):
                yield range_._replace(start_byte=0, stop_byte=0) if self.sequential else range_

    def _sizes(self, tar: tarfile.TarFile, limit: int | None) -> Iterator[tuple[int, int]]:
        for group in _groups(tar, limit):
            yield group.first.offset, group.end
        stream = cast(BinaryIO, tar.fileobj)
        while block := stream.read(_TAIL):  # to the end of the file, where the checksum of a gzip stands
            if block.count(0) != len(block):
                raise UnreadableFileError("the tar goes on after its end mark: several tars joined to one?")

    def read(
        self, file: FileInfo, ranges: Sequence[RowRange], fields: Collection[str] = FIELDS
    ) -> Iterator[tuple[RowRange, list[object]]]:
        return self._read(file, ranges, lambda tar, group: _record(tar, group, fields), _too_costly)

    def copy_rows(self, file: FileInfo, ranges: Sequence[RowRange], rows: Container[int], stream: BinaryIO) -> int:
        """Members keep their order and their headers; links, which no row is made of, stay only in a plain tar."""
        count = 0
        with deflated(stream, file) if self.sequential else contextlib.nullcontext(stream) as written:
            for range_, groups in self._read(file, ranges, _raw, lambda name, size: b""):
                for row, data in enumerate(groups, start=range_.first_row):
                    if row in rows and data:
                        written.write(data)
                        count += 1
            written.write(bytes(_END))
        return count

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
            return tarfile.open(  # type: ignore[call-overload, no-any-return]
                fileobj=stream,
                mode="r|" if self.sequential else "r:",
                tarinfo=_Header,
                pax_headers=_Unheeded(),
            )
        except (StorageError, UnreadableFileError):
            raise
        except Exception as error:  # tarfile raises what it likes
            raise UnreadableFileError(f"broken tar: {error}") from error


class PackedWebDataset(WebDataset):
    """A tar in one packed stream."""

    suffixes = (*(".tar" + packed for packed in SUFFIXES), ".tgz", ".tbz2", ".txz", ".tzst")
    packed = sequential = True
    placed = False


class _Unheeded(dict[str, str]):
    """What headers say of all members after them: who reads from the midst of a tar has not seen them, so nobody heeds
    them. Tools write comments there."""

    def __setitem__(self, name: str, value: str) -> None:
        pass


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
            if not info.isreg():
                if group is not None and _key(info) == group.key:
                    group.add_link(info)
                continue
            if group is not None and (_key(info) != group.key or info.name in group.names):  # a name twice: two samples
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
    """The headers of the files and links in a tar; devices, sparse and hidden files and the like are passed over."""
    at = -1
    while (info := tar.next()) is not None:
        following = int(tar.offset)  # type: ignore[attr-defined]
        if info.size < 0 or not at < info.offset < following:
            raise UnreadableFileError("a header points backwards")
        if limit is not None and following > limit:  # tarfile would count its way there, block by block
            raise UnreadableFileError(f"{info.name} claims {info.size:,} bytes")
        at = info.offset
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen
        is_link = info.issym() or info.islnk()
        if (is_link or (info.isreg() and not info.issparse())) and not posixpath.basename(info.name).startswith("."):
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


def _record(tar: tarfile.TarFile, group: _Group, fields: Collection[str] = FIELDS) -> object:
    """The row of one key: its json member, and a field for each other json or txt member that is called like one
    (`key.question.txt`); `key.txt` is its caption. The image members are its images."""
    if group.is_too_costly():
        return _too_costly(group.key, group.size, group.count)
    record = Record()
    beside: dict[str, object] = {}  # fields that are members of their own
    images: dict[str, dict[str, object]] = {}
    unread = list(group.links)
    has_row = False
    for member, read in group.members:
        name, _, kind = _extension(member).rpartition(".")
        is_field = not name or (name in fields and "." not in name)
        if kind not in _IMAGES and (kind not in ("json", "txt") or not is_field):
            unread.append(member.name)
            continue
        data = read if read is not None else _content(tar, member)
        if kind in _IMAGES:
            images[member.name] = {"bytes": data, "path": member.name}
            continue
        has_row = True
        value = parse_row(data) if kind == "json" else _text(data)
        if isinstance(value, Broken):
            return Broken(f"{member.name}: {value.message}", value.reason)
        if kind == "json" and not name:
            value = {"conversations": value} if isinstance(value, list) else value
            if not isinstance(value, dict):
                return Broken(f"{member.name} must hold an object, found {type(value).__name__}")
            record.update(value)
        else:
            beside[name or "txt"] = value
    if not has_row:
        return _no_row(group)
    for name, value in beside.items():
        record.setdefault(name, value)
    record.setdefault("id", record.get("key", group.key))
    record.unread = tuple(unread)
    _put_images(record, images, [name for name in fields if name not in FIELDS])
    return record


def _text(data: bytes) -> str | Broken:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Broken(f"not UTF-8: {error}: {data[:60]!r}; write its text as UTF-8")


def _no_row(group: _Group) -> Broken:
    names = [*(member.name for member, _ in group.members), *group.links]
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
    message = f"{group.key}: no .json or .txt member with the conversation among {shown}"
    rows = sum(_extension(member).endswith((".json", ".txt")) for member, _ in group.members)
    if not rows:
        return Broken(message)
    return Broken(
        f"{message}; a key ends at the first dot of a name: rename the members, so that each of about {rows:,} samples "
        "has one of its own",
        lost_bytes=group.size if rows > 1 else 0,
    )


def _members(tar: tarfile.TarFile, group: _Group) -> list[tuple[str, bytes]]:
    record = _record(tar, group)
    images = [str(image["path"]) for image in _listed(record.get("images"))] if isinstance(record, Record) else []
    found = {info.name: read if read is not None else _content(tar, info) for info, read in group.members}
    others = found.keys() - set(images)
    return [(name, data) for name, data in found.items() if name in others] + [(name, found[name]) for name in images]


def _raw(tar: tarfile.TarFile, group: _Group) -> bytes:
    """The members of a key with their headers; nothing where these are too many."""
    if group.is_too_costly():
        return b""
    if isinstance(tar.fileobj, io.BytesIO):
        return bytes(tar.fileobj.getbuffer()[group.first.offset : group.end])
    blocks = []
    for info, read in group.members:
        data = read if read is not None else _content(tar, info)
        padding = bytes(-len(data) % _BLOCK)
        blocks.append(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + data + padding)
    return b"".join(blocks)


def _put_images(record: Record, images: Mapping[str, dict[str, object]], own: Sequence[str]) -> None:
    """Makes the image members the images of a record: where it names them, also in fields of its `own`, else in the
    order of the tar."""
    by_name = {name: image for short in (2, 1, 0) for full, image in images.items() if (name := _names(full)[short])}

    def member(named: object) -> dict[str, object] | None:
        return by_name.get(posixpath.basename(named)) if isinstance(named, str) else None

    inside = [image["path"] for name in (*TURNS, "prompt", *own) for image in _put_inside(record.get(name), member)]
    for name in own:
        listed = [member(value) for value in _listed(record.get(name))]
        if listed and all(listed):
            record[name] = listed
    named = next((record[name] for name in IMAGES if record.get(name)), None)
    record.pop("image", None)
    if not named and images.keys() == set(inside):
        return  # each stands in a turn that names it
    record["images"] = [images[name] for name in _ordered(list(images))]
    found = [(name, member(name)) for name in _listed(named)]
    is_whole = all(image is not None for _, image in found)
    if is_whole and isinstance(named, dict):  # by the placeholder that stands for each
        record["images"] = {mark: member(name) for mark, name in named.items()}
    elif is_whole and len(found) == len(images):
        record["images"] = [image for _, image in found]
    record.unread += tuple(f"the image {name!s} (no such member)" for name, image in found[:_NAMED] if image is None)


def _ordered(names: list[str]) -> list[str]:
    """Members as they are counted (img2 before img10) where the tar has them sorted by their letters; else as they
    stand there."""
    return sorted(names, key=_counted) if names == sorted(names) else names


def _counted(name: str) -> list[tuple[int, str]]:
    pieces = re.split(r"([0-9]{1,18})", name)
    return [(int(piece) if number % 2 else 0, piece) for number, piece in enumerate(pieces)]


def _put_inside(turns: object, member: Callable[[object], dict[str, object] | None]) -> Iterator[dict[str, object]]:
    """Puts image members where typed contents of turns name them, and where turns name theirs in a field: these are
    given back."""
    for turn in turns if isinstance(turns, list) else ():
        for content in turn.values() if isinstance(turn, dict) else ():
            for item in content if isinstance(content, list) else ():
                if isinstance(item, dict) and (image := member(image_in(item))) is not None:
                    item["image_url"] = image  # where it is looked for first
        for name in IMAGES if isinstance(turn, dict) else ():
            listed = [member(value) for value in _listed(turn.get(name))]
            found = [image for image in listed if image is not None]
            if found and len(found) == len(listed):
                turn[name] = found
                yield from found


def _names(member: str) -> tuple[str, ...]:
    """What a record may call a member `folder/key.img1.jpg`: key.img1.jpg, img1.jpg, img1."""
    name = posixpath.basename(member)
    extension = name.partition(".")[2]
    return (name, extension, extension.rpartition(".")[0])


def _listed(named: object) -> list[Any]:
    """What a record has as its images, one by one."""
    if isinstance(named, dict):
        return list(named.values())
    return named if isinstance(named, list) else [named] if named else []


FORMATS = (WebDataset(), PackedWebDataset())
