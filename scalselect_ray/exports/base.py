"""What an export format is, and what it is given."""

import posixpath
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO, ClassVar, Literal, TypeVar

from scalselect_ray.corpus import PLACEHOLDER, Turn
from scalselect_ray.corpus.fields import Columns
from scalselect_ray.errors import ConfigError, OutputError
from scalselect_ray.exports.fields import NO_FIELDS, Fields
from scalselect_ray.io import storage

T = TypeVar("T")


class Images(StrEnum):
    """What becomes of images: the values of `--images`."""

    REFERENCE = "reference"  # where they lie; those that are bytes of a corpus file go with the export all the same
    COPY = "copy"  # all go with the export, byte for byte


class NotExportableError(Exception):
    """The trainer could not read this row: it is left out and counted."""


@dataclass(frozen=True, slots=True)
class ExportImage:
    """One image of a row: a reference (`uri`, below `root`), a file of the export (`copy`), or `data`."""

    name: str  # as the row has it
    root: str | None = None
    uri: str | None = None
    copy: str | None = None  # path below the export's folder
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A chosen sample on its way out. `turns` hold the source's texts byte for byte."""

    rank: int
    source: str
    shard: str
    row: int
    id: str | int | None  # as the row has it
    score: float | None  # None: text-only
    uid: str | None = None
    turns: tuple[Turn, ...] = ()
    images: tuple[ExportImage, ...] = ()
    fields: Fields = NO_FIELDS
    members: tuple[tuple[str, bytes], ...] = ()  # of a WebDataset sample, where the format asks for them
    problem: str | None = None  # why it cannot be exported at all
    images_digest: str | None = None  # of its images when their features were extracted, where that is known


@dataclass
class ImagePaths:
    """The paths by which a trainer finds the images: all of them lie below `folder`."""

    target: str  # the export's folder
    folder: str
    sole_root: bool  # every image is a reference below `folder`, which is the image root of the corpus

    def of(self, image: ExportImage) -> str:
        """The path to join to `folder`: the one that the row itself gives, where that leads to the image."""
        uri = image.uri if image.uri is not None else storage.join(self.target, image.copy or "")
        if self.sole_root and storage.join(self.folder, image.name) == uri:
            return image.name
        return uri[len(self.folder.rstrip("/")) + 1 :]


def common_folder(folders: Sequence[str]) -> str:
    """The folder that holds all of them. Raises ConfigError when there is none."""
    schemes = {folder.partition("://")[0] if "://" in folder else "" for folder in folders}
    paths = [folder.partition("://")[2] if "://" in folder else folder for folder in folders]
    shared = posixpath.commonpath(paths) if len(schemes) == 1 else ""
    if not shared:
        shown = f"{folders[0]} and {folders[-1]}"
        raise ConfigError(
            f"the images lie in folders that have no folder in common ({shown}): use --images copy, into a new folder"
        )
    scheme = schemes.pop()
    return f"{scheme}://{shared}" if scheme else shared


@dataclass
class PartReport:
    """What the writing of one part file tells: remarks, and the rows that were left out."""

    paths: ImagePaths
    notes: Counter[str] = field(default_factory=Counter)  # remarks that people should see, and how often
    left_behind: Counter[str] = field(default_factory=Counter)  # fields of exported rows, and how many rows lost each
    carried: Counter[str] = field(default_factory=Counter)  # the same of fields beside turns and images that went along
    left_out: list[dict[str, Any]] = field(default_factory=list)

    def each(self, rows: Iterator[ExportRow], convert: Callable[[ExportRow, "PartReport"], T]) -> Iterator[T]:
        """`convert` of each row that can be exported."""
        for row in rows:
            if row.problem is None:
                yield convert(row, self)
                continue
            key = {"rank": row.rank, "source": row.source, "shard": row.shard, "row": row.row, "id": row.id}
            self.left_out.append({**key, "reason": row.problem})

    def leave_behind(self, names: Iterable[str]) -> None:
        """Counts fields that a row loses, each once. A corpus may have a million names: the rest is counted as one."""
        for name in set(names):
            known = name in self.left_behind or len(self.left_behind) < _MAX_NAMES
            self.left_behind[name if known else OTHER_FIELDS] += 1


@dataclass(frozen=True)
class Finish:
    """What the last step of a format works with, once all part files are written."""

    paths: ImagePaths
    parts: Sequence[str]  # URIs of the part files, in order
    counts: Sequence[int]  # items in each
    run_id: str
    shards: Sequence["Shard"] = ()
    carried: Counter[str] = field(default_factory=Counter)  # as PartReport has it, of all part files

    @property
    def target(self) -> str:
        return self.paths.target

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Shard:
    """A file of the corpus, of which `chosen` samples are exported."""

    source: str
    uri: str
    size: int
    chosen: int
    image_root: str = ""
    image_links: tuple[str, ...] = ()
    columns: Columns = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Usage:
    """How to use the export: lines to paste, and what to beware of."""

    lines: Sequence[str]
    warnings: Sequence[str] = ()
    left_behind: Mapping[str, int] = field(default_factory=dict)
    """Fields that rows lost in this last step, and how many rows."""
    smaller: str | None = None
    """How the trainer takes only the first ranks; not said of a run with quotas, where these are no smaller
    selection."""


_MAX_NAMES = 100  # of fields that are counted by name
OTHER_FIELDS = "(others)"
SPOOL = ".spool"  # below the export's folder while it is made


class Format(ABC):
    """One trainer's format. Instances travel to the workers; a part file is one object that one task streams."""

    about: ClassVar[str]
    """One line for people."""
    keeps: ClassVar[str] = ""
    """Which rows it holds as they came, with all their fields, in words."""
    needs: ClassVar[Literal["manifest", "rows", "members", "shards", "files"]] = "rows"
    """What `write` gets: tables of the manifest; `ExportRow`s; these with the members of WebDataset samples; (key,
    chosen) of each sample of a shard; or the numbers of the chosen rows of a file."""
    modes: ClassVar[tuple[Images, ...]] = ()
    """The ways with images it knows, the default first; none where it names no images."""
    embeds: ClassVar[bool] = False
    """Images that go with the export stand inside its part files, and not in files of their own."""
    raw: ClassVar["Format | None"] = None
    """The same format with texts as they are, where it changes any: what `--raw` takes."""
    part_rows: ClassVar[int | None] = None
    """Ranks in one part file; 0: all of them; None: as the flow decides."""

    def part_name(self, number: int, parts: int) -> str:
        """The path of part file `number` below the export's folder; below SPOOL where `finish` joins them to one."""
        return f"{SPOOL}/parts/{number:05d}"

    def order(self, row: ExportRow) -> int:
        """Rows are written in this order, at most 128 bits; rank in all formats that keep an order."""
        return row.rank

    def check(self, row: ExportRow) -> None:  # noqa: B027
        """Raises NotExportableError for a row that the trainer could not read."""

    @abstractmethod
    def write(self, items: Iterator[Any], report: PartReport, stream: BinaryIO) -> int:
        """Writes one part file and returns the number of its items."""

    @abstractmethod
    def finish(self, finish: Finish) -> Usage:
        """Writes what stands beside the part files, or the one file that is made of them."""


def text_of(turn: Turn) -> str:
    """A turn as one string with `<image>` in it: the source's own where it is one."""
    return "".join(
        piece if isinstance(piece, str) else PLACEHOLDER if piece.written else f"{PLACEHOLDER}\n"
        for piece in turn.content
    )


def join_parts(stream: BinaryIO, uris: Sequence[str], between: bytes = b"") -> None:
    """Copies objects one after the other, with `between` between them. Raises OutputError, StorageError."""
    for number, uri in enumerate(uris):
        stream.write(between if number else b"")
        try:
            with storage.open_read(uri) as part:
                while block := part.read(1 << 23):
                    stream.write(block)
        except FileNotFoundError as error:
            raise part_is_gone(uri) from error


def part_is_gone(uri: str) -> OutputError:
    """What was written and is not there any more, below SPOOL, which the end of an export removes."""
    return OutputError(
        f"{uri} is gone: the same export was written twice at once, and the other one has ended. Run it again"
    )
