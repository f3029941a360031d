"""What does not end is ended, and what ends is left alone."""

import threading

import pytest

from scalselect_ray.vlm.patience import at_most


def loop_for_ever() -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def test_what_does_not_end_is_ended():
    with pytest.raises(ValueError, match="no end"), at_most(0.05, ValueError("no end")):
        loop_for_ever()


def test_what_does_not_end_is_ended_in_any_thread():
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with at_most(0.05, ValueError("no end")):
                loop_for_ever()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert [str(error) for error in raised] == ["no end"]


def test_what_ends_in_time_is_left_alone():
    for _ in range(50):
        with at_most(60.0, ValueError("no end")):
            found = sum(range(1000))
        assert found == 499_500
    with pytest.raises(KeyError, match="own"), at_most(60.0, ValueError("no end")):
        raise KeyError("own")


def test_the_inner_of_two_limits_ends_its_own_block_alone():
    with at_most(60.0, ValueError("outer")):
        with pytest.raises(ValueError, match="inner"), at_most(0.05, ValueError("inner")):
            loop_for_ever()
