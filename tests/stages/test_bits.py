"""Bits that do not depend on the machine: the matrix products of tasks."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from scalselect_ray.corpus import SliceId
from scalselect_ray.stages import reduce, score
from scalselect_ray.store.features import FeatureStore, feature_table
from scalselect_ray.store.layout import Output
from scalselect_ray.store.tables import read_part

DIM, ROWS = 300, 700


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[FeatureStore, list[SliceId]]:
    store = FeatureStore(Output(str(tmp_path_factory.mktemp("bits"))), "made")
    features = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32) + 3
    rows = [{"source": "s", "shard": "/s", "row": row, "id": str(row), "feature": x} for row, x in enumerate(features)]
    slice_id = SliceId("0" * 16, 0, ROWS, ROWS)
    store.commit(slice_id, feature_table(rows, DIM))
    return store, [slice_id]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_task_computes_with_one_thread_whatever_the_machine_has(store, threads, tmp_path, monkeypatch):
    seen = []

    def watched(function):
        def call(*arguments):
            seen.append({item["num_threads"] for item in threadpool_info() if item["user_api"] == "blas"})
            return function(*arguments)

        return call

    monkeypatch.setattr(reduce, "accumulate", watched(reduce.accumulate))
    monkeypatch.setattr(reduce, "dominant_subspace", watched(reduce.dominant_subspace))
    monkeypatch.setattr(score, "leverage", watched(score.leverage))
    with threadpool_limits(threads, "blas"):
        moments, _ = reduce._leaf._function(*store, None)
        transform = reduce.fit_transform(moments, standardize=False, l2_normalize=False)
        subspace, _ = reduce._solve._function(moments, transform, None, 0.9, str(tmp_path / "subspace"))
        score._score_group._function(*store, subspace, str(tmp_path / "scores.parquet"))
    assert seen == [{1}] * 3
    expected = reduce._leaf._function(*store, None)[0]
    assert np.array_equal(moments.scatter_DD, expected.scatter_DD)
    assert read_part(str(tmp_path / "scores.parquet"))["score"].to_numpy().sum() == pytest.approx(subspace.k)
