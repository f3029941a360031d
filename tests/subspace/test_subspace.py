"""Moments, tree and decomposition against dense NumPy on the whole matrix."""

import itertools
import random
import tracemalloc

import numpy as np
import pytest

from scalselect_ray.subspace import (
    MergeTree,
    accumulate,
    consecutive_groups,
    dominant_subspace,
    fit_transform,
    merge,
    of_rows,
    principal_angles,
)
from scalselect_ray.subspace.leverage import leverage


def rows(count=300, dim=12, mean=1e4, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dim)) * np.geomspace(1, 0.02, dim) + mean).astype(np.float32)


def dense_leverage(x, energy):
    """The paper's letter: thin SVD of the whole centred matrix."""
    x = x.astype(np.float64)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    k = min(int(np.searchsorted(np.cumsum(s**2) / np.sum(s**2), energy)) + 1, np.linalg.matrix_rank(x - x.mean(0)))
    return np.square(u[:, :k]).sum(1), k


def solve(x, energy=0.9, **settings):
    found = of_rows(x)
    transform = fit_transform(found, **({"standardize": False, "l2_normalize": False} | settings))
    return dominant_subspace(
        found, transform, of_rows(transform(x)).gram_DD if transform.l2_normalize else None, energy
    )


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_scores_are_those_of_a_dense_svd_and_sum_to_k(energy):
    x = rows()
    expected, k = dense_leverage(x, energy)
    subspace = solve(x, energy)
    scores = leverage(x, subspace)
    assert subspace.k == k
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores.sum() == pytest.approx(k)
    assert ((scores >= 0) & (scores <= 1 + 1e-9)).all()


def test_golden_scores(shared):
    x = np.load(shared / "golden" / "scores" / "features.npy")
    expected = np.load(shared / "golden" / "scores" / "expected.npz")
    subspace = solve(x)
    assert subspace.k == expected["k"]
    np.testing.assert_allclose(leverage(x, subspace), expected["scores"], rtol=1e-9)


def test_any_split_and_order_gives_the_moments_of_the_whole():
    x, dice = rows(), random.Random(1)
    whole = of_rows(x)
    edges = [0, *sorted(dice.sample(range(1, 300), 7)), 300]
    parts = [of_rows(x[a:b]) for a, b in itertools.pairwise(edges)]
    dice.shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total = merge(total, part)
    streamed = accumulate((x[a : a + 7] for a in range(0, 300, 7)), 12, block_rows=50)
    for found in (total, streamed):
        assert found.count == 300
        np.testing.assert_allclose(found.scatter_DD, whole.scatter_DD, rtol=1e-10, atol=1e-8)
        np.testing.assert_allclose(found.mean_D, whole.mean_D, rtol=1e-14)


def test_a_large_mean_does_not_drown_the_small_directions():
    x = rows(mean=1e6).astype(np.float64)
    x[:, -1] = 1e6 + np.linspace(-1e-3, 1e-3, 300)
    exact = np.square(x[:, -1] - x[:, -1].mean()).sum()
    naive = (x.T @ x - 300 * np.outer(x.mean(0), x.mean(0)))[-1, -1]
    assert accumulate((x[:100], x[100:]), 12).scatter_DD[-1, -1] == pytest.approx(exact, rel=1e-6)
    assert abs(naive / exact - 1) > 0.1, "else this test shows nothing"


def exact_scatter(x):
    """Two passes in long double."""
    x = x.astype(np.longdouble)
    centred = x - x.mean(0)
    return centred.T @ centred


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4, 1e6])
def test_a_stream_is_as_exact_as_two_passes_even_if_its_first_rows_are_unlike_the_rest(mean):
    x = rows(4000, mean=0).astype(np.float64)
    x[:250] += 50  # one source first, then another
    x[:100, 3:] = x[0, 3:]
    x += mean
    exact = exact_scatter(x)
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    centred = x - x.mean(0)
    two_passes = float((np.abs(centred.T @ centred - exact) / size).max())
    streamed = accumulate(np.split(x, 40), 12, block_rows=250)
    merged = merge(*(accumulate(np.split(part, 4), 12, block_rows=250) for part in np.split(x, 4)))
    for found, bound in (
        (streamed, 2 * two_passes),
        (merged, max(2 * two_passes, 1e-17 * mean)),
    ):  # a mean is stored rounded
        assert float((np.abs(found.scatter_DD - exact) / size).max()) < bound
        np.testing.assert_allclose(found.mean_D, x.mean(0, dtype=np.longdouble).astype(float), rtol=1e-15, atol=1e-14)


def test_where_a_stream_is_cut_changes_no_bit():
    x = rows()
    found = [accumulate(np.array_split(x, parts), 12, block_rows=64) for parts in (1, 3, 50, 300)]
    assert len({(moment.count, moment.mean_D.tobytes(), moment.scatter_DD.tobytes()) for moment in found}) == 1


def test_many_are_merged_as_two_and_two():
    x = rows(mean=5)
    parts = [of_rows(part) for part in (x[:3], x[:0], x[3:4], x[4:200], x[200:])]
    pairwise = parts[0]
    for part in parts[1:]:
        pairwise = merge(pairwise, part)
    at_once = merge(*parts)
    assert at_once.count == pairwise.count == 300
    np.testing.assert_allclose(at_once.scatter_DD, pairwise.scatter_DD, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(at_once.mean_D, pairwise.mean_D, rtol=1e-15)
    assert merge(parts[1], parts[1]).count == 0


def test_the_scatter_is_symmetric_to_the_bit():
    x = rows(200, dim=150)
    scatter = accumulate([x], 150, block_rows=60).scatter_DD
    assert np.array_equal(scatter, scatter.T)
    assert scatter.flags.c_contiguous


def test_memory_is_that_of_one_matrix_beside_what_goes_in():
    dim = 512
    matrix = dim * dim * 8
    x = rows(2048, dim=dim)
    assert (
        peak_bytes(lambda: accumulate(np.split(x, 16), dim, block_rows=256)) < 1.7 * matrix
    )  # half of one is the rows
    parts = [of_rows(part) for part in np.split(x, 8)]
    assert peak_bytes(lambda: merge(*parts)) < 1.3 * matrix


def peak_bytes(call):
    """What `call()` holds at most, beside what was there before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_leverage_does_not_change_when_features_are_rotated():
    x = rows(mean=10).astype(np.float64)
    rotation, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(12, 12)))
    np.testing.assert_allclose(leverage(x @ rotation, solve(x @ rotation)), leverage(x, solve(x)), rtol=1e-8)


def test_basis_is_orthonormal_and_signs_are_fixed():
    basis = solve(rows()).basis_DK
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    assert (basis[np.abs(basis).argmax(0), range(basis.shape[1])] > 0).all()
    assert principal_angles(basis, basis @ -np.eye(basis.shape[1])).max() < 1e-6


@pytest.mark.parametrize(
    "x",
    [rows(1), np.full((9, 12), 0.1, np.float32), np.repeat(rows(1), 40, 0)],
    ids=["one row", "constant", "equal rows"],
)
def test_rows_without_spread_have_no_subspace(x):
    subspace = solve(x)
    assert subspace.k == 0
    assert leverage(x, subspace).tolist() == [0.0] * len(x)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_fewer_rows_than_dimensions_clips_k_to_the_rank(count):
    for seed in range(10):  # the eigenvalues that should be zero are rounding, above zero and below it
        subspace = solve(rows(count, dim=64, seed=seed), 1.0)
        assert subspace.k == count - 1
        assert (subspace.spectrum_D >= 0).all()


def test_rows_that_are_equal_but_for_rounding_have_no_subspace():
    x = np.full((40, 6), 0.3)
    x[::3] = 0.1 + 0.2  # the next number above 0.3
    assert np.ptp(x, axis=0).all()
    subspace = solve(x)
    assert subspace.k == 0
    assert leverage(x, subspace).tolist() == [0.0] * 40


def test_a_row_on_the_mean_is_no_unit_row_and_scores_nothing():
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0], [0.0, 0.0]])
    scores = leverage(x, solve(x, 1.0, l2_normalize=True))
    np.testing.assert_allclose(scores, [0.5, 0.5, 0.5, 0.5, 0.0], atol=1e-12)


@pytest.mark.parametrize("settings", [{"standardize": True}, {"l2_normalize": True}])
def test_a_huge_mean_is_no_noise_of_what_is_divided_by_its_size(settings):
    x = np.random.default_rng(0).normal(size=(300, 4)) * 1000 + 1e15
    assert solve(x, 1.0, **settings).k == 4


def test_standardised_columns_have_a_population_deviation_of_one():
    x = rows()
    np.testing.assert_allclose(fit_transform(of_rows(x), standardize=True, l2_normalize=False)(x).std(axis=0), 1)


def test_constant_column_survives_standardising():
    x = rows()
    x[:, 3] = 7
    assert np.isfinite(leverage(x, solve(x, standardize=True, l2_normalize=True))).all()


def test_a_column_that_is_constant_but_for_rounding_has_no_part_in_the_standardised_subspace():
    x = rows().astype(np.float64)
    constant = np.insert(x, 3, 0.3, axis=1)
    constant[::3, 3] = 0.1 + 0.2  # the next number above 0.3
    np.testing.assert_allclose(
        leverage(constant, solve(constant, standardize=True)), leverage(x, solve(x, standardize=True)), rtol=1e-9
    )


@pytest.mark.parametrize(("leaves", "fan_in"), [(1, 2), (2, 2), (7, 2), (8, 8), (9, 8), (65, 8)])
def test_the_tree_does_not_depend_on_arrival(leaves, fan_in):
    def built(order):
        tree, values = MergeTree(leaves, fan_in), {}
        for leaf in order:
            node = (0, leaf)
            values[node] = str(leaf)
            while (parent := tree.arrive(node)) is not None:
                node, children = parent
                assert len(children) <= fan_in
                values[node] = "(" + " ".join(values.pop(child) for child in children) + ")"
        assert list(values) == [tree.root]
        return values[tree.root]

    orders = [list(range(leaves)), list(range(leaves))[::-1], random.Random(0).sample(range(leaves), leaves)]
    assert len({built(order) for order in orders}) == 1


def test_groups_are_consecutive_and_complete():
    groups = consecutive_groups([5, 5, 5, 1, 9], 10)
    assert [list(group) for group in groups] == [[0, 1], [2, 3, 4]]
    assert consecutive_groups([], 10) == []
