"""The subspace of a run as it is stored."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.store.subspace import read_spectrum, read_subspace, write_subspace
from scalselect_ray.subspace import dominant_subspace, fit_transform, leverage, of_rows

X = np.random.default_rng(0).normal(size=(40, 6)) * np.linspace(3, 0.2, 6) + 5


@pytest.mark.parametrize("options", [{}, {"standardize": True}, {"l2_normalize": True}], ids=["plain", "std", "unit"])
def test_it_comes_back_with_the_same_scores(tmp_path, options):
    moments = of_rows(X)
    transform = fit_transform(moments, **{"standardize": False, "l2_normalize": False} | options)
    gram = of_rows(transform(X)).gram_DD if transform.l2_normalize else None
    subspace = dominant_subspace(moments, transform, gram, 0.9)
    uri = str(tmp_path / "subspace.safetensors")
    write_subspace(uri, subspace)
    assert np.array_equal(leverage(X, read_subspace(uri)), leverage(X, subspace))
    assert np.array_equal(read_spectrum(uri), subspace.spectrum_D)


def test_damage_and_other_versions_are_told_apart(tmp_path):
    uri = str(tmp_path / "subspace.safetensors")
    moments = of_rows(X)
    write_subspace(
        uri, dominant_subspace(moments, fit_transform(moments, standardize=False, l2_normalize=False), None, 0.9)
    )
    data = storage.read_bytes(uri)
    for damaged in (b"", b"\0" * 9, data[:-1]):
        storage.write(uri, damaged)
        with pytest.raises(DamagedObjectError, match="subspace"):
            read_subspace(uri)
    storage.write(uri, save(load(data), metadata={"format": "scalselect.subspace/9", "l2_normalize": "False"}))
    for read in (read_subspace, read_spectrum):
        with pytest.raises(OutputError, match=r"scalselect\.subspace/9.*scalselect\.subspace/1"):
            read(uri)
