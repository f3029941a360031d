"""What a report says, in numbers: what one task makes of one part file of a run, how these are put together, and the
summary they make.

Nothing here grows with the number of samples: part files become counts in bins and a few rows, which are the same
however the run is cut into part files."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scalselect_ray.store.record import RunRecord
from scalselect_ray.store.tables import Key

TOKEN_COLUMNS = ("num_tokens", "num_vision_tokens", "num_attended_tokens")
_STEPS = 32  # bins of a count of scores for each doubling of the score
_ZERO = -(1 << 30)  # the bin of the score 0
_BINS = 72  # of a drawn histogram, at most
_TAIL = 0.001  # share of the scores that may lie left of a drawn histogram


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One sample of the table."""

    key: Key
    id: str | None
    score: float
    stratum: str  # best, just in, just out, worst, random
    rank: int | None = None  # in the manifest; None: not chosen
    tokens: tuple[int, ...] | None = None  # by TOKEN_COLUMNS; None: the feature file is gone


@dataclass(frozen=True, slots=True)
class Scores:
    """Histogram of the scores on a logarithmic axis."""

    edges: list[float]  # one more than bins; empty when no score is above 0
    scored: list[int]
    chosen: list[int]
    zeros: int  # scores that are exactly 0: in no bin
    below: int  # scores above 0 left of the first edge: in no bin


@dataclass(frozen=True, slots=True)
class Cutoff:
    """Where a budget ends in the ranking."""

    name: str  # the budget as the config gives it
    count: int
    score: float | None  # of the last chosen sample; None: there is none


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Energy held by the first directions of the subspace."""

    directions: list[int]
    energy: list[float]  # cumulative share, at each of `directions`
    k: int
    dim: int
    captured: float


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A few numbers of a distribution."""

    count: int
    mean: float
    low: float  # 5%
    median: float
    high: float  # 95%


@dataclass(frozen=True, slots=True)
class Tokens:
    """A count of tokens, of all samples and of the chosen."""

    name: str
    edges: list[float]
    all_counts: list[int]
    chosen_counts: list[int]
    all: Quantiles
    chosen: Quantiles | None


@dataclass(frozen=True, slots=True)
class RejectExample:
    """One reject of a reason."""

    reason: str
    shard: str
    row: int
    id: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A thumbnail, and what is drawn over it."""

    image: str  # data URI
    width: int  # pixels of the picture itself
    height: int
    overlay: str | None = None  # data URI: one pixel a token
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # of the overlay on the picture
    attended: tuple[int, int] | None = None  # attended tokens of the tokens of the picture


@dataclass(frozen=True, slots=True)
class Card:
    """One sample of a gallery."""

    row: SampleRow
    turns: list[tuple[str, str]] = field(default_factory=list)  # role, text
    pictures: list[Thumbnail] = field(default_factory=list)
    left_out: int = 0  # pictures that are not shown
    note: str | None = None  # why something is not shown


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page is made of; JSON-able by `dataclasses.asdict`."""

    record: RunRecord
    config: str  # YAML, as kept with the run
    scores: Scores
    cutoffs: list[Cutoff]
    source_cutoffs: dict[str, float]  # the lowest chosen score of each source
    quotas: dict[str, str]  # the bounds of a source in words, where it has any
    spectrum: Spectrum
    tokens: list[Tokens]
    tokens_of: int  # samples that the token counts are of
    rejects: list[RejectExample]
    rows: list[SampleRow]
    galleries: dict[str, list[Card]] = field(default_factory=dict)
    note: str | None = None  # why whole sections are missing


class Limits(NamedTuple):
    """How many rows of each kind stand in the table."""

    best: int = 60
    cutoff: int = 30  # on each side of the cutoff
    worst: int = 40
    random: int = 240

    def of(self, count: int) -> "Limits":
        """As many rows of each kind as a corpus of so many samples has use for: the random ones alone are all of a
        small one."""
        small = min(1.0, count / (self.best + 2 * self.cutoff + self.worst + self.random))
        best, cutoff, worst = (math.ceil(limit * small) for limit in (self.best, self.cutoff, self.worst))
        return Limits(best, cutoff, worst, self.random)


@dataclass
class Strata:
    """The rows that the table is made of, from the part files of the scores in any order."""

    limits: Limits
    tables: dict[str, pa.Table] = field(default_factory=dict)

    def add(self, found: Mapping[str, pa.Table]) -> None:
        for name, table in found.items():
            held = pa.concat_tables([self.tables[name], table]) if name in self.tables else table
            self.tables[name] = held.take(pa.array(_order(name, held)[: self.limit(name)]))

    def limit(self, name: str) -> int:
        return {
            "best": self.limits.best,
            "below": 4 * self.limits.cutoff,
            "worst": self.limits.worst,
            "random": self.limits.random,
        }[name]


def strata_of(table: pa.Table, part: int, cutoffs: Mapping[str, float], limits: Limits) -> dict[str, pa.Table]:
    """The rows of part file `part` of the scores that may come into the table, by stratum. `cutoffs` is the lowest
    chosen score of each source."""
    score = table["score"].to_numpy()
    table = table.append_column("part", pa.array(np.full(len(table), part))).append_column(
        "index", pa.array(np.arange(len(table)))
    )
    table = table.append_column("draw", pa.array(_draws(table)))
    cutoff = np.array([cutoffs.get(source, math.inf) for source in table["source"].to_pylist()])
    strata = Strata(limits)
    strata.add({"best": table, "worst": table, "random": table, "below": table.filter(pa.array(score <= cutoff))})
    return strata.tables


def _order(name: str, table: pa.Table) -> np.ndarray:
    """Indices of the rows of a stratum, the one wanted most first. Of samples that tie at the cutoff the
    last ones are those that were not chosen."""
    score, part, index, draw = (table[column].to_numpy() for column in ("score", "part", "index", "draw"))
    keys = {
        "best": (index, part, -score),
        "worst": (-index, -part, score),
        "below": (-index, -part, -score),
        "random": (index, part, draw),
    }
    return np.lexsort(keys[name])


def _draws(table: pa.Table) -> np.ndarray:
    """A number that depends on the key of the sample alone."""
    keys = zip(*(table[name].to_pylist() for name in Key._fields), strict=True)
    return np.array(
        [int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big") for key in keys],
        dtype=np.int64,
    )


def keys_of(table: pa.Table) -> pa.Array:
    """(source, shard, row) of each row as one string."""
    columns = [table["source"].cast(pa.string()), table["shard"].cast(pa.string()), table["row"].cast(pa.string())]
    joined = pc.binary_join_element_wise(*columns, "\0")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def count_scores(scores_N: np.ndarray) -> Counter[int]:
    """Scores by bin; bins are 1/32 of a doubling wide."""
    positive = scores_N > 0
    bins, counts = np.unique(np.floor(np.log2(scores_N[positive]) * _STEPS).astype(np.int64), return_counts=True)
    found = Counter(dict(zip(bins.tolist(), counts.tolist(), strict=True)))
    if zeros := int((~positive).sum()):
        found[_ZERO] = zeros
    return found


def score_histogram(scored: Counter[int], chosen: Counter[int]) -> Scores:
    """The counts of all part files as a histogram of 36 to 72 bins where scores spread so far. A thin tail of tiny
    scores is counted beside it."""
    bins = sorted(step for step in scored if step != _ZERO)
    if not bins:
        return Scores([], [], [], scored[_ZERO], 0)
    allowed, first = _TAIL * sum(scored[step] for step in bins), 0
    while first < len(bins) - 1 and sum(scored[step] for step in bins[: first + 1]) <= allowed:
        first += 1
    width = 1
    while (bins[-1] - bins[first] + 1) / width > _BINS:
        width *= 2
    start, stop = bins[first] // width, bins[-1] // width + 1

    def merged(counts: Counter[int]) -> list[int]:
        totals = Counter[int]()
        for step, count in counts.items():
            totals[step // width] += count
        return [totals[index] for index in range(start, stop)]

    edges = [2.0 ** (index * width / _STEPS) for index in range(start, stop + 1)]
    below = sum(count for step, count in scored.items() if step != _ZERO and step // width < start)
    return Scores(edges, merged(scored), merged(chosen), scored[_ZERO], below)


def spectrum_of(singular_values_D: np.ndarray, k: int) -> Spectrum:
    """The cumulative energy, at a few hundred directions at most."""
    energy_D = np.square(singular_values_D)
    total = float(energy_D.sum())
    share_D = np.cumsum(energy_D) / total if total else np.zeros(len(energy_D))
    dim = len(share_D)
    last = min(dim, max(3 * k, 24))
    shown = sorted({*np.linspace(1, last, 200).round().astype(int).tolist(), *([k] if k else [])}) if dim else []
    captured = float(share_D[k - 1]) if k else 0.0
    return Spectrum(shown, [float(share_D[count - 1]) for count in shown], k, dim, captured)


def token_statistics(table: pa.Table, chosen_N: np.ndarray) -> list[Tokens]:
    """Distributions of the token counts in `table`, and of those of its rows that are chosen."""
    found = []
    for name in TOKEN_COLUMNS:
        values = table[name].to_numpy()
        if not len(values):
            continue
        low, high = int(values.min()), int(values.max())
        width = max(1, math.ceil((high - low + 1) / 40))
        edges = np.arange(low, high + width + 1, width)
        inside = values[chosen_N]
        found.append(
            Tokens(
                name,
                edges.astype(float).tolist(),
                np.histogram(values, edges)[0].tolist(),
                np.histogram(inside, edges)[0].tolist(),
                _quantiles(values),
                _quantiles(inside) if len(inside) else None,
            )
        )
    return found


def _quantiles(values: np.ndarray) -> Quantiles:
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
    return Quantiles(len(values), float(values.mean()), low, median, high)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, spread evenly over them."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]
