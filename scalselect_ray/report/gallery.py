"""Samples as they are shown: small pictures, the attention over them, what is said."""

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from scalselect_ray.corpus import Sample
from scalselect_ray.report.data import Thumbnail

if TYPE_CHECKING:
    from scalselect_ray.vlm import AttentionMap

MAX_PICTURES = 3  # of one sample
_EDGE = 256  # pixels of a thumbnail
_MAX_TURNS = 6
_VEIL = (12, 12, 16, 190)  # over tokens that are not attended to
_HEAT = (255, 110, 0)  # over those that are: the more attention, the stronger


def thumbnail_of(image: Image.Image) -> Thumbnail:
    """A thumbnail of an RGB image."""
    small = image.copy()
    small.thumbnail((_EDGE, _EDGE))
    sink = io.BytesIO()
    small.save(sink, "WEBP", quality=78, method=4)
    return Thumbnail(_data_uri("webp", sink.getvalue()), image.width, image.height)


def draw_overlay(seen: "AttentionMap") -> dict[str, Any]:
    """The fields of a `Thumbnail` that show its attention: a veil over the tokens that are not attended to, heat over
    the others."""
    strength = seen.received_RC / max(float(seen.received_RC.max()), 1e-12)
    pixels = np.empty((*seen.received_RC.shape, 4), dtype=np.uint8)
    pixels[:] = _VEIL
    pixels[seen.attended_RC] = (*_HEAT, 0)
    pixels[seen.attended_RC, 3] = (130 * strength[seen.attended_RC]).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(sink, "PNG", optimize=True)
    attended = int(seen.attended_RC.sum()), int(seen.attended_RC.size)
    return {"overlay": _data_uri("png", sink.getvalue()), "box": seen.box, "attended": attended}


def turns_of(sample: Sample) -> list[tuple[str, str]]:
    """(role, text) of the first turns; pictures stand as a mark in the text."""
    turns: list[tuple[str, str]] = []
    for turn in (turn.stripped() for turn in sample.turns[:_MAX_TURNS]):
        turns.append((turn.role, " ".join(piece if isinstance(piece, str) else "\u25a6" for piece in turn.content)))
    if len(sample.turns) > _MAX_TURNS:
        turns.append(("", f"and {len(sample.turns) - _MAX_TURNS:,} more turns"))
    return turns


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
