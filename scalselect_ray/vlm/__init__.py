"""The front of a VLM: load only what layer 0 needs, prepare inputs, probe attention, represent."""

from scalselect_ray.vlm.checkpoint import (
    Checkpoint,
    check_tensors,
    front_bytes,
    open_checkpoint,
)
from scalselect_ray.vlm.extractor import AttentionMap, DeviceLostError, Extractor, Representation
from scalselect_ray.vlm.fingerprints import description_fingerprint, earlier_fingerprint, fingerprint
from scalselect_ray.vlm.prepare import Prepared, Preparer, share_images

__all__ = [
    "AttentionMap",
    "Checkpoint",
    "DeviceLostError",
    "Extractor",
    "Prepared",
    "Preparer",
    "Representation",
    "check_tensors",
    "description_fingerprint",
    "earlier_fingerprint",
    "fingerprint",
    "front_bytes",
    "open_checkpoint",
    "share_images",
]
