"""What parts add up to, against plain numpy over the whole table."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from scalselect_ray.report.data import (
    TOKEN_COLUMNS,
    Limits,
    Strata,
    count_scores,
    evenly,
    score_histogram,
    spectrum_of,
    strata_of,
    token_statistics,
)


def score_table(scores: np.ndarray) -> pa.Table:
    count = len(scores)
    return pa.table(
        {
            "source": [("a", "b", "c")[row % 3] for row in range(count)],
            "shard": [f"shard-{row // 70}" for row in range(count)],
            "row": pa.array(np.arange(count)),
            "id": [str(row) for row in range(count)],
            "score": scores,
        }
    )


def test_parts_of_scores_add_up_to_the_histogram_of_all():
    scores = np.random.default_rng(0).gamma(2.0, 1e-4, 5000)
    scores[::50] = 0
    inside = scores > np.quantile(scores, 0.8)
    counts, chosen = Counter(), Counter()
    for part in np.array_split(np.arange(5000), 7)[::-1]:
        counts += count_scores(scores[part])
        chosen += count_scores(scores[part][inside[part]])
    found = score_histogram(counts, chosen)
    assert 32 <= len(found.scored) <= 72
    assert np.array_equal(found.scored, np.histogram(scores, found.edges)[0])
    assert np.array_equal(found.chosen, np.histogram(scores[inside], found.edges)[0])
    assert (found.zeros, found.below) == (100, int(((scores > 0) & (scores < found.edges[0])).sum()))
    assert 0 < found.below < 0.003 * 5000
    assert sum(found.scored) + found.zeros + found.below == 5000


@pytest.mark.parametrize("scores", [[], [0.0, 0.0], [0.5], [1e-200, 1.0]], ids=["none", "zeros", "one", "far apart"])
def test_histograms_of_few_scores_lose_none(scores):
    found = score_histogram(count_scores(np.array(scores, dtype=float)), Counter())
    assert sum(found.scored) + found.zeros + found.below == len(scores)
    assert not found.edges or found.edges[0] <= max(scores) < found.edges[-1]


@pytest.mark.parametrize("parts", [1, 6, 45])
def test_the_rows_of_the_table_are_those_of_a_sort_of_everything(parts):
    """Rounded scores: many ties, also at the cutoff."""
    scores = np.round(np.random.default_rng(1).gamma(2.0, 1.0, 900), 1)
    table, limits = score_table(scores), Limits(best=20, cutoff=5, worst=15, random=30)
    order = np.lexsort((np.arange(900), -scores))
    cutoff = scores[order[199]]
    chosen = set(order[:200].tolist())
    strata = Strata(limits)
    cuts = np.array_split(np.arange(900), parts)
    for index in np.random.default_rng(2).permutation(parts):
        rows = cuts[index]
        part = table.slice(int(rows[0]), len(rows))
        strata.add(strata_of(part, int(index), dict.fromkeys("abc", cutoff), limits))
    rows = {name: found["row"].to_pylist() for name, found in strata.tables.items()}
    assert rows["best"] == order[:20].tolist()
    assert rows["worst"] == order[::-1][:15].tolist()
    outside = [row for row in rows["below"] if row not in chosen]
    assert len(outside) >= limits.cutoff
    best_outside = scores[order[200 : 200 + limits.cutoff]]
    assert scores[outside[: limits.cutoff]].tolist() == best_outside.tolist()
    whole = strata_of(table, 0, {}, limits)["random"]["row"].to_pylist()
    assert rows["random"] == whole, "who is drawn depends on the sample alone"
    assert len(set(whole)) == 30


def test_small_corpora_have_every_kind_of_row():
    assert Limits().of(24) == Limits(4, 2, 3, 240)
    assert Limits().of(1) == Limits(1, 1, 1, 240)
    assert Limits().of(10**7) == Limits()


def test_token_statistics_are_those_of_numpy():
    rng = np.random.default_rng(0)
    table = pa.table({name: pa.array(rng.integers(10, 3000, 1000), pa.int32()) for name in TOKEN_COLUMNS[:2]})
    table = table.append_column(TOKEN_COLUMNS[2], pa.array(np.full(1000, 576), pa.int32()))
    chosen = rng.random(1000) < 0.2
    first, _, constant = token_statistics(table, chosen)
    values = table["num_tokens"].to_numpy()
    assert sum(first.all_counts) == 1000
    assert first.chosen_counts == np.histogram(values[chosen], first.edges)[0].tolist()
    assert (first.all.mean, first.all.median) == (values.mean(), np.median(values))
    assert first.chosen.high == np.quantile(values[chosen], 0.95)
    assert constant.all_counts == [1000]
    assert token_statistics(table, np.zeros(1000, bool))[0].chosen is None
    assert token_statistics(table.slice(0, 0), np.zeros(0, bool)) == []


def test_the_spectrum_is_cumulative_and_bounded():
    values = np.sort(np.random.default_rng(0).random(4096))[::-1]
    found = spectrum_of(values, 700)
    share = np.cumsum(values**2) / (values**2).sum()
    assert found.energy == [share[index - 1] for index in found.directions]
    assert found.captured == share[699]
    assert 700 in found.directions
    assert len(found.directions) <= 201
    assert spectrum_of(np.zeros(64), 0).captured == 0


def test_evenly_takes_from_end_to_end():
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    assert evenly(range(100), 4) == [0, 25, 50, 75]
