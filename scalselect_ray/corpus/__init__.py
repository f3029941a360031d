"""URIs to samples: formats, planning slices, conversations to one schema, images."""

from scalselect_ray.corpus.conversation import PLACEHOLDER, normalise
from scalselect_ray.corpus.decoding import MAX_PIXELS
from scalselect_ray.corpus.formats import Broken
from scalselect_ray.corpus.images import fetched, fetched_images, load_image, load_images, resolver
from scalselect_ray.corpus.planning import (
    CorpusFile,
    Slice,
    is_complete,
    list_files,
    plan_file,
    reading_units,
    slice_range,
    without_overlaps,
)
from scalselect_ray.corpus.reading import read_records, read_rows, read_slices
from scalselect_ray.corpus.sample import ImagePlaceholder, ImageRef, Reason, Reject, Sample, SampleRejectedError, Turn

__all__ = [
    "MAX_PIXELS",
    "PLACEHOLDER",
    "Broken",
    "CorpusFile",
    "ImagePlaceholder",
    "ImageRef",
    "Reason",
    "Reject",
    "Sample",
    "SampleRejectedError",
    "Slice",
    "Turn",
    "fetched",
    "fetched_images",
    "is_complete",
    "list_files",
    "load_image",
    "load_images",
    "normalise",
    "plan_file",
    "read_records",
    "read_rows",
    "read_slices",
    "reading_units",
    "resolver",
    "slice_range",
    "without_overlaps",
]
