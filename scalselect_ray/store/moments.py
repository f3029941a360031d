"""Merged moments as they are stored: with the slices whose rows they are of, named by the set of these."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scalselect_ray.corpus.slices import SliceId
from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import checksum, storage
from scalselect_ray.io.safetensors_header import read_header
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import FORMATS, format_name
from scalselect_ray.subspace.moments import Moments

_MAX_IDS = 1 << 32  # bytes


@dataclass(frozen=True, slots=True)
class StoredMoments:
    """Moments of an earlier run: where they lie, and the slices they are of."""

    uri: str
    slice_ids: list[SliceId]


def set_id(slice_ids: Iterable[SliceId]) -> str:
    """The id of a set of slices: stored moments are named by it."""
    return hashlib.sha256(_listed(slice_ids)).hexdigest()[:32]


def find_stored(store: FeatureStore, slice_ids: Sequence[SliceId]) -> StoredMoments | None:
    """The stored moments that cover most of these slices and nothing else. Raises DamagedObjectError, OutputError."""
    folder = store.output.moments(store.extractor_id)
    wanted, best = set(slice_ids), None
    for name in storage.list_names(folder):
        uri = storage.join(folder, name)
        covered = covered_slices(uri)
        if not covered:
            continue
        if uri != store.output.moments_file(store.extractor_id, set_id(covered)):
            raise DamagedObjectError(uri, "it is not of the slices that its name tells")
        if wanted.issuperset(covered) and (best is None or len(covered) > len(best.slice_ids)):
            best = StoredMoments(uri, covered)
    return best


def forget(store: FeatureStore, slice_ids: Iterable[SliceId]) -> None:
    """Removes the stored moments that cover anything of the files of these slices: moments are of whole files, so some
    of their features are no longer there, and what is made anew can differ, where images have come or gone. By file,
    since the same rows may be cut into other slices now. Raises DamagedObjectError, OutputError, StorageError."""
    file_keys = {slice_id.file_key for slice_id in slice_ids}
    folder = store.output.moments(store.extractor_id)
    uris = [storage.join(folder, name) for name in storage.list_names(folder)]
    storage.delete([uri for uri in uris if any(slice_id.file_key in file_keys for slice_id in covered_slices(uri))])


def covered_slices(uri: str) -> list[SliceId]:
    """The slices that stored moments are of, without the matrix: none where they are of an earlier version, which is
    made anew, or gone. Raises DamagedObjectError; OutputError for a later version; StorageError."""
    try:
        return _slices(functools.partial(storage.read_bytes, uri), uri)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise DamagedObjectError(uri, str(error)) from error


def _slices(read: Callable[[int, int], bytes], uri: str) -> list[SliceId]:
    header = read_header(read)
    kind, _, version = header.metadata.get("format", "").partition("/")
    if kind != "scalselect.moments" or not version.isdecimal():
        raise ValueError(f"its format is {header.metadata.get('format')}")
    if int(version) < FORMATS["moments"]:
        return []
    if int(version) > FORMATS["moments"]:
        if not checksum.matches(storage.read_bytes(uri)):
            raise ValueError("its checksum differs")
        raise OutputError(
            f"{uri} is of the format {kind}/{version}, and this version of scalselect reads {format_name('moments')}: "
            "use the version that wrote it, or another output folder"
        )
    start, stop = header.place("slices")
    if stop - start > _MAX_IDS:
        raise ValueError(f"its slice ids claim {stop - start:,} bytes")
    return [SliceId.parse(text) for text in read(start, stop).decode().split("\n")]


def read_moments(uri: str) -> Moments:
    """Stored moments. Raises DamagedObjectError, StorageError."""
    try:
        return from_bytes(storage.read_bytes(uri))
    except (ValueError, FileNotFoundError) as error:
        raise DamagedObjectError(uri, str(error)) from error


def to_bytes(moments: Moments, slice_ids: Iterable[SliceId]) -> bytes:
    """Safetensors with the ids of the slices whose rows these moments are of, and a checksum. The ids are a tensor of
    bytes: a header holds at most 100 MB, which is two million of them."""
    ids = np.frombuffer(_listed(slice_ids), dtype=np.uint8)
    arrays = {"count": np.array([moments.count]), "mean": moments.mean_D, "scatter": moments.scatter_DD, "slices": ids}
    return checksum.stamped(save(arrays, metadata={"format": format_name("moments"), "seal": checksum.BLANK}))


def from_bytes(data: bytes) -> Moments:
    """The inverse of `to_bytes`. Raises ValueError when the data is not what was written."""
    if not checksum.matches(data):
        raise ValueError("its checksum differs")
    try:
        arrays = load(data)
        return Moments(int(arrays["count"][0]), arrays["mean"], arrays["scatter"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error


def _listed(slice_ids: Iterable[SliceId]) -> bytes:
    return "\n".join(sorted(map(str, slice_ids))).encode()
