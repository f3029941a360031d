"""The subspace of a run as it is stored."""

import functools

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scalselect_ray.errors import DamagedObjectError
from scalselect_ray.io import storage
from scalselect_ray.io.safetensors_header import header_of, read_header
from scalselect_ray.store.layout import check_format, format_name
from scalselect_ray.subspace.decomposition import Subspace, Transform


def write_subspace(uri: str, subspace: Subspace) -> None:
    """Stores a subspace as safetensors. Raises StorageError."""
    arrays = {
        "mean": subspace.transform.mean_D,
        "basis": subspace.basis_DK,
        "singular_values": subspace.singular_values_K,
        "spectrum": np.ascontiguousarray(subspace.spectrum_D),
        "count": np.array([subspace.count]),
    }
    if subspace.transform.scale_D is not None:
        arrays["scale"] = subspace.transform.scale_D
    metadata = {"format": format_name("subspace"), "l2_normalize": str(subspace.transform.l2_normalize)}
    storage.write(uri, save(arrays, metadata=metadata))


def read_subspace(uri: str) -> Subspace:
    """The inverse of `write_subspace`. Raises DamagedObjectError; OutputError for another version; StorageError."""
    try:
        data = storage.read_bytes(uri)
        metadata = header_of(data).metadata
        check_format("subspace", metadata.get("format"), uri)
        arrays = load(data)
        transform = Transform(arrays["mean"], arrays.get("scale"), metadata["l2_normalize"] == "True")
        return Subspace(
            transform, arrays["basis"], arrays["singular_values"], arrays["spectrum"], int(arrays["count"][0])
        )
    except (ValueError, FileNotFoundError, SafetensorError, KeyError) as error:
        raise DamagedObjectError(uri, str(error)) from error


def read_spectrum(uri: str) -> np.ndarray:
    """All singular values of a stored subspace, without its basis. (D,). Raises as `read_subspace`."""
    read = functools.partial(storage.read_bytes, uri)
    try:
        header = read_header(read)
        check_format("subspace", header.metadata.get("format"), uri)
        return np.frombuffer(read(*header.place("spectrum")), dtype="<f8")
    except (ValueError, FileNotFoundError) as error:
        raise DamagedObjectError(uri, str(error)) from error
