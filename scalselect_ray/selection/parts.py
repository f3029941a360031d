"""How the chosen are cut into the part files of a manifest, best first: from one histogram, so that nobody needs to see
all scores."""

from dataclasses import dataclass

import numpy as np

from scalselect_ray.selection.budget import BINS


@dataclass(frozen=True, slots=True)
class Scale:
    """The range of keys (`sortable`) from `low` on in BINS steps of equal width."""

    low: int
    width: int

    @classmethod
    def between(cls, low: int, high: int) -> "Scale":
        """The finest scale with steps for all keys from `low` to `high`."""
        return cls(low, max(high - low, 0) // BINS + 1)

    def steps(self, keys_N: np.ndarray) -> np.ndarray:
        """The step of each key, which must lie in the range. (N,) int64."""
        return ((keys_N - np.uint64(self.low)) // np.uint64(self.width)).astype(np.int64)

    def histogram(self, keys_N: np.ndarray) -> np.ndarray:
        """How many keys lie on each step. (BINS,) int64."""
        return np.bincount(self.steps(keys_N), minlength=BINS)


@dataclass(frozen=True, slots=True)
class Partition:
    """P ranges of neighbouring steps, best first; every key of a range is above all keys of the next one."""

    scale: Scale
    lowest_P: np.ndarray  # the lowest step of each
    above_P: np.ndarray  # how many keys lie in the ranges before it

    def __len__(self) -> int:
        return len(self.lowest_P)

    def of(self, keys_N: np.ndarray) -> np.ndarray:
        """The range that each key lies in. (N,) int64."""
        return len(self) - np.searchsorted(self.lowest_P[::-1], self.scale.steps(keys_N), side="right")


def partition_scores(scale: Scale, counts: np.ndarray, rows: int) -> Partition:
    """Ranges of at most `rows` keys each, more only where a single step holds more; `counts` (BINS,) are those of all
    keys."""
    lowest, above, inside, total = [], [0], 0, 0
    for step in np.flatnonzero(counts)[::-1].tolist():
        if inside and inside + counts[step] > rows:
            lowest.append(step + 1)
            above.append(total)
            inside = 0
        inside += int(counts[step])
        total += int(counts[step])
    return Partition(scale, np.array([*lowest, 0]), np.array(above))
