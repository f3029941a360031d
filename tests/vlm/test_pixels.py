"""Pixels that threads hold at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from scalselect_ray.vlm.pixels import PixelBudget


@pytest.mark.parametrize("each", [1, 3, 5, 10, 25], ids=lambda each: f"{each} of 10")
def test_threads_never_hold_more_than_the_budget_unless_one_needs_it_alone(each):
    budget, lock = PixelBudget(10), threading.Lock()
    held, seen = [0], []

    def work(_):
        with budget.taken(each):
            with lock:
                held[0] += each
                seen.append(held[0])
            with lock:
                held[0] -= each

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(400)))
    assert len(seen) == 400
    assert max(seen) <= max(10, each)


def test_what_fails_gives_its_pixels_back():
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), budget.taken(10):
            raise ValueError("broken")
    with budget.taken(10):
        pass
