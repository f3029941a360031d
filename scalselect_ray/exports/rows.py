"""The chosen rows of the corpus, read again: what stands there, byte for byte."""

import hashlib
import io
import itertools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from PIL import Image, UnidentifiedImageError

from scalselect_ray.corpus import (
    Broken,
    ImageRef,
    SampleRejectedError,
    Slice,
    SliceId,
    fetched_images,
    images_digest,
    read_records,
    resolver,
)
from scalselect_ray.corpus.conversation import ImageResolver
from scalselect_ray.corpus.fields import renamed
from scalselect_ray.corpus.formats import RowRange, format_of
from scalselect_ray.corpus.formats.webdataset import WebDataset
from scalselect_ray.corpus.planning import check_unchanged
from scalselect_ray.corpus.sample import plain
from scalselect_ray.errors import CorpusChangedError, CorpusError, DamagedObjectError
from scalselect_ray.exports.base import ExportImage, ExportRow, Images
from scalselect_ray.exports.fields import read_fields
from scalselect_ray.io import storage
from scalselect_ray.io.ahead import ahead
from scalselect_ray.store.features import IMAGES_DIGEST, FeatureStore

_THREADS = 8  # of one task; images are fetched and written one by one
_SHOWN = 3  # images of a sample that are named in a message
_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm)$", re.IGNORECASE)

Wanted = dict[int, tuple[int, float | None]]  # row to (rank, score)
Digests = Mapping[int, str]  # row to the digest of its images when their features were extracted, where that is known


def read_rows(
    slices: Sequence[Slice], wanted: Wanted, with_members: bool, digests: Digests = MappingProxyType({})
) -> Iterator[ExportRow]:
    """The wanted rows of slices of one file, with all their fields. Raises CorpusError."""
    contents = _members(slices) if with_members else itertools.repeat([])
    resolve = resolver(slices[0].image_root, slices[0].image_links)
    for (slice_, records), members in zip(read_records(slices, whole=True), contents, strict=False):
        if with_members:  # which are read on their own, after the records
            check_still(storage.FileInfo(slice_.shard, slice_.size, slice_.version))
        for row, record in enumerate(records, start=slice_.first_row):
            if row in wanted:
                read = replace(_row(slice_, row, record, resolve, *wanted[row]), images_digest=digests.get(row))
                yield replace(read, members=tuple(members[row - slice_.first_row])) if members else read


def stored_digests(store: FeatureStore, slice_ids: Iterable[SliceId], rows: Container[int]) -> dict[int, str]:
    """The digests that the feature files of some slices of one file have for some of its rows: none where a feature
    file has none, is gone or is damaged."""
    found: dict[int, str] = {}
    for slice_id in slice_ids:
        with suppress(DamagedObjectError):
            table = store.read(slice_id, ["row", IMAGES_DIGEST])
            known = zip(table["row"].to_pylist(), table[IMAGES_DIGEST].to_pylist(), strict=True)
            found.update((row, digest) for row, digest in known if digest is not None and row in rows)
    return found


def check_still(file: storage.FileInfo) -> None:
    """That a file is still the version that was listed. Raises CorpusChangedError, StorageError."""
    try:
        check_unchanged(file)
    except FileNotFoundError as error:
        raise CorpusChangedError([file.uri]) from error


def _members(slices: Sequence[Slice]) -> Iterator[list[list[tuple[str, bytes]]]]:
    """The members of each row of each slice; no list where the file is no tar."""
    file = storage.FileInfo(slices[0].shard, slices[0].size, "")
    kind = format_of(file)
    if not isinstance(kind, WebDataset):
        return itertools.repeat([])
    runs = [RowRange(slice_.first_row, slice_.stop_row, slice_.start_byte, slice_.stop_byte) for slice_ in slices]
    return (members for _, members in kind.members(file, runs))


def _row(slice_: Slice, row: int, record: object, resolve: ImageResolver, rank: int, score: float | None) -> ExportRow:
    made = ExportRow(rank, slice_.source, slice_.shard, row, None, score)
    if isinstance(record, Broken):
        return replace(made, problem=record.message)
    fields: dict[str, Any] = renamed(record, slice_.columns) if isinstance(record, dict) else {}
    uid = fields.get("uid")
    try:
        sample, kept = read_fields(row, record, resolve, slice_.columns)
    except SampleRejectedError as error:
        return replace(made, problem=error.message)
    return replace(
        made,
        id=fields["id"] if type(fields.get("id")) in (str, int) else sample.id,
        uid=uid if isinstance(uid, str) else None,
        turns=sample.turns,
        fields=kept,
        images=tuple(
            ExportImage(image.name, slice_.image_root, image.uri, None, image.data) for image in sample.images
        ),
    )


def copy_images(rows: Iterator[ExportRow], mode: Images, target: str) -> Iterator[ExportRow]:
    """The rows, with those images written below `target` that have no file of their own; with COPY all of them. Raises
    CorpusError."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from ahead(threads, lambda row: _with_copies(row, mode, target), rows, 2 * _THREADS)


def fetch_images(rows: Iterator[ExportRow]) -> Iterator[ExportRow]:
    """The rows, with the bytes of every image. Raises CorpusError."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from ahead(threads, _with_data, rows, 2 * _THREADS)


def _with_copies(row: ExportRow, mode: Images, target: str) -> ExportRow:
    images = []
    for number, image in enumerate(_with_data(row).images if mode is Images.COPY else row.images):
        if image.data is not None:
            copy = _copy_name(row, number, image.name, image.data)
            storage.write(storage.join(target, copy), image.data)
            image = ExportImage(image.name, copy=copy)
        images.append(image)
    return replace(row, images=tuple(images))


def _with_data(row: ExportRow) -> ExportRow:
    """The row with the bytes of every image. Raises CorpusError when one is gone, or they are not those that the sample
    was chosen by."""
    where = f"{row.shard} row {row.row}"
    try:
        found = fetched_images([ImageRef(image.name, image.data, image.uri) for image in row.images])
    except SampleRejectedError as error:
        raise CorpusError(f"{where}: an image is not what it was when the sample was chosen: {error}") from error
    data = [image.data or b"" for image in found]
    if data and row.images_digest is not None and images_digest(data) != row.images_digest:
        names = ", ".join(plain(image.name) for image in row.images[:_SHOWN])
        raise CorpusError(
            f"{where}: its images ({names}{', ...' if len(row.images) > _SHOWN else ''}) are not those that the sample "
            f"was chosen by: other bytes have the same names now. Bring the old ones back; or let 'scalselect plan "
            f"CONFIG --verify' find all such samples, and do what it says to have them extracted again"
        )
    return replace(row, images=tuple(replace(image, data=each) for image, each in zip(row.images, data, strict=True)))


def _copy_name(row: ExportRow, number: int, name: str, data: bytes) -> str:
    """Made of the position of the row in the corpus, never of what it says: no name escapes, repeats or is too long."""
    shard = hashlib.sha256(f"{row.source}\0{row.shard}".encode()).hexdigest()[:16]
    return f"images/{shard}/{row.row // 1000:06d}/{row.row:09d}-{number}.{suffix_of(name, data)}"


def suffix_of(name: str, data: bytes) -> str:
    """The suffix of a file name when it is one of an image, or else what the first bytes say."""
    found = _SUFFIX.search(name)
    if found:
        return found[1].lower()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return "jpg" if image.format == "JPEG" else str(image.format).lower()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return "img"
