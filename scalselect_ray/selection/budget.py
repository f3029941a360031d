"""The exact top of a budget, whatever the number of scores: a radix select that only ever sees histograms.

A score becomes an unsigned integer of the same order; four rounds of 16 bits find the integer of the last score that
fits. Scores that tie there go to the score files, and in a file to the rows, in their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

BITS = 16
ROUNDS = 4
BINS = 1 << BITS


def resolve_budget(budget: float, count: int) -> int:
    """How many of `count` samples a budget is: a fraction (rounded down, but 1 at least), or a number when it is above
    1."""
    if budget > 1:
        return min(int(budget), count)
    exact = Fraction(repr(float(budget))) * count  # 0.29 * 100 is 29, not 28.999...
    return max(int(exact), 1) if exact > 0 else 0


def sortable(scores_N: np.ndarray) -> np.ndarray:
    """uint64 in the order of float64 scores. Both zeros are one."""
    bits_N = (np.asarray(scores_N, dtype=np.float64) + 0.0).view(np.uint64)
    negative_N = bits_N >> np.uint64(63) == 1
    return np.where(negative_N, ~bits_N, bits_N | np.uint64(1 << 63))


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where the budget ends, as far as it is known: keys whose leading `rounds` digits are above `prefix` are in.

    `remaining` of the keys that share the prefix are in as well; after the last round these tie exactly.
    """

    prefix: int
    rounds: int
    remaining: int


def histogram(keys_N: np.ndarray, threshold: Threshold) -> np.ndarray:
    """How often each next digit occurs among the keys that share the prefix. (BINS,) int64."""
    shift = np.uint64(BITS * (ROUNDS - threshold.rounds - 1))
    if threshold.rounds:
        keys_N = keys_N[keys_N >> (shift + np.uint64(BITS)) == threshold.prefix]
    digits_N = (keys_N >> shift) & np.uint64(BINS - 1)
    return np.bincount(digits_N.astype(np.int64), minlength=BINS)


def narrow(threshold: Threshold, counts: np.ndarray) -> Threshold:
    """The threshold one digit further, from the sum of all files' histograms."""
    above = np.cumsum(counts[::-1])  # keys at or above each digit, largest digit first
    index = int(np.searchsorted(above, threshold.remaining))
    if threshold.remaining == 0 or index == BINS:
        index = 0 if threshold.remaining == 0 else BINS - 1
    digit = BINS - 1 - index
    taken = int(above[index] - counts[digit])
    return Threshold((threshold.prefix << BITS) | digit, threshold.rounds + 1, threshold.remaining - taken)


def take_ties(tied: Sequence[int], remaining: int) -> list[int]:
    """How many of its tied rows each score file may keep: the first files first."""
    quotas = []
    for count in tied:
        quotas.append(min(count, remaining))
        remaining -= quotas[-1]
    return quotas


def chosen(keys_N: np.ndarray, threshold: Threshold, ties: int) -> np.ndarray:
    """Which rows of a score file are in, given a threshold after its last round and this file's share of the ties. (N,)
    bool."""
    assert threshold.rounds == ROUNDS
    inside_N = keys_N > np.uint64(threshold.prefix)
    inside_N[np.flatnonzero(keys_N == np.uint64(threshold.prefix))[:ties]] = True
    return np.asarray(inside_N)
