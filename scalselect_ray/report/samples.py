"""A few samples of a run as they are shown: read again from the corpus, with the attention that chose their tokens
drawn over them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from scalselect_ray.cluster.session import cluster_gpus
from scalselect_ray.config import JobConfig
from scalselect_ray.config_files import parse_config
from scalselect_ray.corpus import (
    CorpusFile,
    Reject,
    Sample,
    SampleRejectedError,
    list_files,
    load_image,
    read_rows,
    shard_name,
)
from scalselect_ray.corpus.formats import UnreadableFileError
from scalselect_ray.corpus.planning import check_unchanged
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.redaction import cut
from scalselect_ray.report.data import Card, SampleRow, Thumbnail
from scalselect_ray.report.gallery import MAX_PICTURES, draw_overlay, thumbnail_of, turns_of
from scalselect_ray.store.tables import Key

T = TypeVar("T")
Shard = tuple[str, str]  # (source, shard)
Samples = dict[int, Sample | str]  # by row; why it cannot be shown where it is no sample
_SECONDS_TO_READ, _SECONDS_TO_DRAW = 90.0, 240.0  # a report waits so long, and then goes without
_SHOWN = {"best": 8, "just in": 4, "just out": 4, "worst": 8}  # how many cards of each stratum


def show(config_text: str, rows: Sequence[SampleRow], file_keys: Mapping[Shard, str]) -> dict[str, list[Card]]:
    """Cards of a few of the rows, by stratum. `file_keys` are the keys of the corpus files that the run read, by
    (source, shard)."""
    shown: dict[str, list[SampleRow]] = {}
    for stratum, most in _SHOWN.items():
        some = [row for row in rows if row.stratum == stratum]
        shown[stratum] = some[-most:] if stratum == "just in" else some[:most]
    cards = _cards(config_text, [row for some in shown.values() for row in some], file_keys)
    return {stratum: [cards[row.key] for row in some] for stratum, some in shown.items() if some}


def _cards(config_text: str, rows: Sequence[SampleRow], file_keys: Mapping[Shard, str]) -> dict[Key, Card]:
    """A card of each row. What cannot be had in time, or at all, is missing from it, and it says so."""
    try:
        config = parse_config(config_text)
        listed = list_files(config.corpus)
    except ScalSelectError as error:
        note = _short(f"the corpus is not there any more: {error}")
        return {row.key: Card(row, note=note) for row in rows}
    cards = {row.key: Card(row, note="not read: the report did not wait longer") for row in rows}
    there = {(file.source, shard_name(file.file.uri)): file for file in listed}
    wanted: dict[Shard, list[Key]] = {}
    for key in sorted(cards):
        wanted.setdefault((key.source, key.shard), []).append(key)
    reading: dict[ObjectRef[Samples], list[Key]] = {}
    for shard, keys in wanted.items():
        file = there.get(shard)
        if file is not None and file.key == file_keys.get(shard):
            reading[_read.remote(file, [key.row for key in keys])] = keys
        else:
            note = "its file has changed since the run" if file else "its file is no longer in the corpus"
            cards |= {key: replace(cards[key], note=note) for key in keys}
    return cards | _read_and_drawn(config, cards, reading)


def _read_and_drawn(
    config: JobConfig, cards: Mapping[Key, Card], reading: Mapping[ObjectRef[Samples], list[Key]]
) -> dict[Key, Card]:
    """The cards of those samples that were read in time, with what was drawn of them in time."""
    done, late = ray.wait(list(reading), num_returns=len(reading), timeout=_SECONDS_TO_READ) if reading else ([], [])
    for ref in late:
        ray.cancel(ref, force=True)
    if not done:
        return {}
    thumbnails = [_thumbnails.remote(ref) for ref in done]
    overlays = _overlays.options(num_gpus=float(cluster_gpus() > 0)).remote(config, *done)
    ray.wait([*thumbnails, overlays], num_returns=len(done) + 1, timeout=_SECONDS_TO_DRAW)
    untold = ["the attention is not drawn: it took too long, or the model does not fit here"] * len(done)
    found: dict[Key, Card] = {}
    for ref, thumbnail, drawn in zip(done, thumbnails, _in_time(overlays, untold), strict=True):
        fields: dict[int, dict[str, Any]] = _in_time(thumbnail, {})
        for key in reading[ref]:
            over = drawn if isinstance(drawn, str) else drawn.get(key.row)
            found[key] = _with_overlays(replace(cards[key], **fields.get(key.row, {})), over)
    return found


def _in_time(ref: ObjectRef[T], otherwise: T) -> T:
    """What a task returned; `otherwise` where it has not ended or has failed."""
    ready, late = ray.wait([ref], timeout=0)
    for other in late:
        ray.cancel(other, force=True)
    try:
        return cast(T, ray.get(ready[0])) if ready else otherwise
    except RayError:
        return otherwise


def _with_overlays(card: Card, overlays: Any) -> Card:
    if not card.pictures or overlays is None:
        return card
    if isinstance(overlays, str):
        return replace(card, note=overlays)
    return replace(
        card, pictures=[replace(picture, **drawn) for picture, drawn in zip(card.pictures, overlays, strict=False)]
    )


@ray.remote
def _read(file: CorpusFile, rows: list[int]) -> Samples:
    try:
        found = read_rows(file, rows)
        check_unchanged(file.file)
    except (ScalSelectError, UnreadableFileError, OSError) as error:
        return dict.fromkeys(rows, _short(f"its file cannot be read: {error}"))
    gone = "its file no longer has this row"
    return {
        row: _short(sample.message) if isinstance(sample := found.get(row), Reject) else sample or gone for row in rows
    }


@ray.remote
def _thumbnails(samples: Samples) -> dict[int, dict[str, Any]]:
    """The fields of each row's card."""
    found: dict[int, dict[str, Any]] = {}
    for row, sample in samples.items():
        if isinstance(sample, str):
            found[row] = {"note": sample}
            continue
        pictures: list[Thumbnail] = []
        note = None
        for image in sample.images[:MAX_PICTURES]:
            try:
                pictures.append(thumbnail_of(load_image(image)))
            except (SampleRejectedError, ScalSelectError) as error:
                note = _short(f"a picture cannot be shown: {error}")
                break  # the overlays of the pictures after it would be drawn over others
        left_out = len(sample.images) - len(pictures)
        found[row] = {"turns": turns_of(sample), "pictures": pictures, "left_out": left_out, "note": note}
    return found


@ray.remote
def _overlays(config: JobConfig, *files: Samples) -> list[dict[int, list[dict[str, Any]] | str] | str]:
    """For each file, by row, what is drawn over the pictures of a sample, or why nothing is."""
    from scalselect_ray.vlm.representer import (
        make_extractor,
        make_preparer,
    )  # imported here: torch takes seconds in every worker

    try:
        prepare, extractor = make_preparer(config.extractor), make_extractor(config.extractor)
    except (ScalSelectError, OSError, RuntimeError) as error:
        return [_short(f"the attention is not drawn: {error}")] * len(files)
    return [
        {
            row: _overlays_of(sample, prepare, extractor)
            for row, sample in samples.items()
            if not isinstance(sample, str)
        }
        for samples in files
    ]


def _overlays_of(sample: Sample, prepare: Any, extractor: Any) -> list[dict[str, Any]] | str:
    try:
        images = [load_image(image) for image in sample.images]
        maps = extractor.attention_maps(prepare(sample, images), [image.size for image in images])
    except (SampleRejectedError, ScalSelectError, RuntimeError, ValueError, IndexError) as error:
        return _short(f"the attention is not drawn: {error}")
    return [
        draw_overlay(item) for item in maps
    ] or "the attention is not drawn: this model sees each place of a picture in several crops"


def _short(text: str) -> str:
    return cut(text, 300)
