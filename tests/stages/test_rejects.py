"""How many samples may be rejected or lost."""

from types import SimpleNamespace

import pytest

from scalselect_ray.corpus.lost import LostRows
from scalselect_ray.errors import TooManyRejectsError
from scalselect_ray.stages.rejects import check_rejects, too_many


def lost(*rows: int) -> list[LostRows]:
    return [LostRows(source="s", shard=f"{count}.json", row=0, byte=0, rows=count) for count in rows]


@pytest.mark.parametrize(
    ("rejected", "rests", "is_too_many"),
    [
        (10, (), False),
        (11, (), True),
        (2, (1, 1), False),  # files that held one row each
        (1, (10,), False),  # 10 of 109
        (1, (12,), True),  # 12 of 111
        (2, (1, 12), True),
        (5, (2, 3), False),
    ],
)
def test_a_file_that_is_lost_counts_as_the_rows_that_it_held(rejected, rests, is_too_many):
    """At most a tenth of a hundred rows."""
    job = SimpleNamespace(
        config=SimpleNamespace(rejects=SimpleNamespace(max_fraction=0.1)),
        store=SimpleNamespace(committed=set),
    )
    plan = SimpleNamespace(rows=100, slice_ids=[])
    assert too_many(job, plan, rejected, lost(*rests)) is is_too_many
    if not is_too_many:
        check_rejects(job, plan, rejected, lost(*rests))
        return
    with pytest.raises(TooManyRejectsError) as caught:
        check_rejects(job, plan, rejected, lost(*rests))
    assert all(f"about {count} row" in str(caught.value) for count in rests)
