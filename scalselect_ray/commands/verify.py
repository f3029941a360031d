"""Whether the pictures of a corpus are still those that its features are of. A picture that is replaced under its name
changes no corpus file, so a run does not notice it."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from scalselect_ray.console import Console, counted
from scalselect_ray.corpus import (
    CorpusFile,
    Plan,
    Reject,
    Sample,
    SampleRejectedError,
    Slice,
    SliceId,
    fetched_images,
    images_digest,
    plan_file,
    read_slices,
    reading_units,
    shard_name,
)
from scalselect_ray.errors import DamagedObjectError
from scalselect_ray.io.ahead import ahead
from scalselect_ray.store.features import IMAGES_DIGEST, FeatureStore

_THREADS = 8  # that fetch images, as in a run
_SHOWN = 5  # samples, and files, that are named


@dataclass
class _Found:
    """What the comparison has found so far."""

    compared: int = 0  # samples
    unknown: int = 0  # samples whose features are of version 0.1, which kept no digests
    changed: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)  # the first few that changed: source, shard, row
    by_file: Counter[str] = field(default_factory=Counter)  # how many changed, by URI
    slice_ids: list[SliceId] = field(default_factory=list)  # in which some changed


def verify(plan: Plan, store: FeatureStore, share: float, console: Console) -> dict[str, Any]:
    """Reads the rows and pictures of a share of the committed slices of a plan again, spread evenly over it, and
    compares them with what the feature files know of them; prints and returns what was found.

    Raises CorpusError, StorageError.
    """
    todo = {slice_.id for slice_ in plan.todo}
    committed = [slice_id for slice_id in plan.slice_ids if slice_id not in todo]
    count = min(len(committed), max(1, round(share * len(committed))))
    chosen = [committed[index * len(committed) // count] for index in range(count)]
    by_file: dict[str, list[SliceId]] = {}
    for slice_id in committed:
        by_file.setdefault(slice_id.file_key, []).append(slice_id)
    found, wanted = _Found(), set(chosen)
    with (
        console.stage("verify", sum(slice_id.rows for slice_id in chosen), "samples") as stage,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        for file in plan.files:
            for slice_, samples in _read(file, by_file.get(file.key, []), wanted):
                _compare(slice_, samples, store, threads, found)
                stage.advance(slice_.rows)
    _say(found, store, len(chosen), len(committed), console)
    return {
        "slices": len(chosen),
        "compared": found.compared,
        "unknown": found.unknown,
        "changed": found.changed,
        "first": found.first,
        "files": {uri: count for uri, count in found.by_file.items()},
        "feature_files": [_feature_file(store, slice_id) for slice_id in found.slice_ids],
    }


def _read(
    file: CorpusFile, committed: list[SliceId], wanted: set[SliceId]
) -> Iterable[tuple[Slice, list[Sample | Reject]]]:
    """The wanted ones among the committed slices of a file, with their rows. Raises CorpusError, StorageError."""
    if wanted.isdisjoint(committed):
        return
    slices = [slice_ for slice_ in plan_file(file, committed) if slice_.id in wanted and slice_.problem is None]
    for unit in reading_units(slices):
        yield from read_slices(unit)


def _compare(
    slice_: Slice, samples: list[Sample | Reject], store: FeatureStore, threads: ThreadPoolExecutor, found: _Found
) -> None:
    try:
        rows = store.read(slice_.id, ["row", "reason", IMAGES_DIGEST]).to_pylist()
    except DamagedObjectError:
        return  # or gone meanwhile: the next run makes it anew
    found.unknown += sum(row["reason"] is None and row[IMAGES_DIGEST] is None for row in rows)
    known = {row["row"]: row[IMAGES_DIGEST] for row in rows if row[IMAGES_DIGEST] is not None}
    compared = [sample for sample in samples if sample.row in known]
    found.compared += len(compared)
    changed = [
        sample.row
        for sample, digest in zip(compared, ahead(threads, _digest, compared, 2 * _THREADS), strict=True)
        if digest != known[sample.row]
    ]
    if changed:
        shard = shard_name(slice_.shard)
        named = [{"source": slice_.source, "shard": shard, "row": row} for row in changed]
        found.first += named[: _SHOWN - len(found.first)]
        found.changed += len(changed)
        found.by_file[slice_.shard] += len(changed)
        found.slice_ids.append(slice_.id)


def _digest(sample: Sample | Reject) -> str | None:
    """None where the sample's pictures cannot be had any more."""
    if isinstance(sample, Reject):  # a link that leads elsewhere now
        return None
    try:
        return images_digest(image.data or b"" for image in fetched_images(sample.images))
    except SampleRejectedError:
        return None


def _say(found: _Found, store: FeatureStore, chosen: int, committed: int, console: Console) -> None:
    console.note(
        f"compared the pictures of {counted(found.compared, 'sample')} in {chosen:,} of "
        f"{counted(committed, 'committed slice')}: {found.changed:,} have other pictures now"
    )
    if found.unknown:
        console.warn(
            f"{counted(found.unknown, 'sample')} could not be compared: version 0.1 extracted their features, and kept "
            f"no digests of pictures"
        )
    if not found.changed:
        return
    for sample in found.first:
        console.warn(f"other pictures, or none: {sample['shard']}:{sample['row']}")
    if found.changed > len(found.first):
        console.note(f"  and {found.changed - len(found.first):,} more")
    for line in _next(found, store):
        console.note(line)


def _next(found: _Found, store: FeatureStore) -> list[str]:
    """What to do so that the next run extracts them again."""
    shown = [f"  {_feature_file(store, slice_id)}" for slice_id in found.slice_ids[:_SHOWN]]
    more = len(found.slice_ids) - _SHOWN
    return [
        "next: remove the feature files of these slices ('feature_files' with --json), and run again: they are "
        "extracted anew",
        *shown,
        *([f"  and {more:,} more"] if more > 0 else []),
    ]


def _feature_file(store: FeatureStore, slice_id: SliceId) -> str:
    return store.output.feature_file(store.extractor_id, slice_id)
