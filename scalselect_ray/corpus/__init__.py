"""URIs to samples: formats, planning slices, conversations to one schema, images."""

from scalselect_ray.corpus.conversation import PLACEHOLDER, normalise
from scalselect_ray.corpus.decoding import MAX_PIXELS, open_images
from scalselect_ray.corpus.filtering import Kept, check_filters
from scalselect_ray.corpus.formats import Broken
from scalselect_ray.corpus.images import fetched_images, images_digest, load_image, load_images, resolver
from scalselect_ray.corpus.lost import LostRows, Rest, lost_rows, rests_of
from scalselect_ray.corpus.planning import (
    Corpus,
    CorpusFile,
    Plan,
    list_corpus,
    list_files,
    make_plan,
    plan_file,
    plan_here,
    plan_open_file,
)
from scalselect_ray.corpus.reading import read_records, read_rows, read_slices
from scalselect_ray.corpus.sample import ImagePlaceholder, ImageRef, Reason, Reject, Sample, SampleRejectedError, Turn
from scalselect_ray.corpus.slices import Slice, SliceId, is_complete, reading_units, shard_name, without_overlaps

__all__ = [
    "MAX_PIXELS",
    "PLACEHOLDER",
    "Broken",
    "Corpus",
    "CorpusFile",
    "ImagePlaceholder",
    "ImageRef",
    "Kept",
    "LostRows",
    "Plan",
    "Reason",
    "Reject",
    "Rest",
    "Sample",
    "SampleRejectedError",
    "Slice",
    "SliceId",
    "Turn",
    "check_filters",
    "fetched_images",
    "images_digest",
    "is_complete",
    "list_corpus",
    "list_files",
    "load_image",
    "load_images",
    "lost_rows",
    "make_plan",
    "normalise",
    "open_images",
    "plan_file",
    "plan_here",
    "plan_open_file",
    "read_records",
    "read_rows",
    "read_slices",
    "reading_units",
    "resolver",
    "rests_of",
    "shard_name",
    "without_overlaps",
]
