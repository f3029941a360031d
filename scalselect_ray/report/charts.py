"""Charts as numbers in percent of their frame: the template of the page draws them as SVG, and their labels as text
beside it.

So a chart takes the width that a screen has, and its text keeps its size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scalselect_ray.console import counted
from scalselect_ray.report.data import Cutoff, Scores, Spectrum, Tokens
from scalselect_ray.report.words import budget, number, percent, score, tick


@dataclass(frozen=True, slots=True)
class Bar:
    x: float
    width: float
    height: float
    kind: str  # names its colour: chosen, rest
    tip: str


@dataclass(frozen=True, slots=True)
class Path:
    d: str
    kind: str  # area, chosen, rest, a, b


@dataclass(frozen=True, slots=True)
class Mark:
    """A value on the x axis, drawn as an upright stroke with a name."""

    x: float
    label: str
    level: int = 0  # labels that would touch stand below each other, and each mark ends at its label
    left: bool = False  # the label stands on the left of the mark


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    describe: str  # in words, for people who cannot see it
    x_label: str
    bars: list[Bar] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)


def score_chart(scores: Scores, cutoffs: Sequence[Cutoff], source_cutoffs: Mapping[str, float]) -> Chart | None:
    """The histogram of the scores with the cutoff of each budget, or with quotas the cutoff of each source."""
    if not scores.edges:
        return None
    bins, most = len(scores.scored), max(scores.scored)
    bars = []
    for index, (count, inside) in enumerate(zip(scores.scored, scores.chosen, strict=True)):
        where = (
            f"{score(scores.edges[index])} to {score(scores.edges[index + 1])}: {counted(count, 'sample')}, "
            f"{inside:,} chosen"
        )
        for kind, height in (("rest", count), ("chosen", inside)):
            if height:
                bars.append(Bar(100 * index / bins, 100 / bins, 100 * height / most, kind, where))
    low, high = math.log(scores.edges[0]), math.log(scores.edges[-1])

    def at(value: float) -> float:
        return min(max(100 * (math.log(value) - low) / (high - low), 0.0), 100.0)

    named = [(f"{budget(item.name)} · {score(item.score)}", item.score) for item in cutoffs if item.score]
    if source_cutoffs:
        named = [(f"{name} · {score(value)}", value) for name, value in source_cutoffs.items() if value > 0]
    labelled = len(named) <= 6
    shown = [(name if labelled else "", value) for name, value in sorted(named, key=lambda item: -item[1])]
    marks = [
        Mark(at(value), name, level if labelled else 0, at(value) > (62 if len(shown) == 1 else 30))
        for level, (name, value) in enumerate(shown)
    ]
    describe = (
        f"Histogram of {counted(sum(scores.scored), 'score')} from {score(scores.edges[0])} to "
        f"{score(scores.edges[-1])}"
    )
    describe += "".join(f"; the cutoff of {name}" for name, _ in named[:6])
    return Chart(
        "Leverage scores", describe, "score, logarithmic", bars, [], marks,
        [Tick(at(value), tick(value)) for value in log_ticks(scores.edges[0], scores.edges[-1])], _counts(most),
    )  # fmt: skip


def energy_chart(spectrum: Spectrum, others: Sequence[Spectrum] = ()) -> Chart | None:
    """The share of the energy that the first directions hold, with a mark at k."""
    curves = [item for item in (spectrum, *others) if item.k]
    if not curves:
        return None
    last = max(item.directions[-1] for item in curves)

    def curve(item: Spectrum) -> str:
        return " ".join(
            f"L{100 * direction / last:.2f} {100 - 100 * share:.2f}"
            for direction, share in zip(item.directions, item.energy, strict=True)
        )

    kinds = ["a", "b"] if others else ["chosen"]
    paths = [Path(f"M0 100 {curve(item)}", kind) for item, kind in zip(curves, kinds, strict=False)]
    if not others:
        paths.insert(0, Path(f"M0 100 {curve(spectrum)} L{100 * spectrum.directions[-1] / last:.2f} 100Z", "area"))
    names = ["A: ", "B: "] if others else [""]
    marks = [
        Mark(100 * item.k / last, f"{name}k = {item.k:,} · {percent(item.captured)}", level, item.k > 0.62 * last)
        for level, (item, name) in enumerate(zip(curves, names, strict=False))
    ]
    describe = "; ".join(
        f"{name}the first {item.k:,} of {item.dim:,} directions hold {percent(item.captured)}"
        for item, name in zip(curves, names, strict=False)
    )
    ticks = [Tick(100 * value / last, number(value)) for value in linear_ticks(0, last) if value == int(value)]
    return Chart(
        "Energy of the subspace", describe, _first_directions(last, spectrum.dim), [], paths, marks, ticks, _shares()
    )


def token_chart(tokens: Tokens, title: str) -> Chart | None:
    """All samples as an area, the chosen ones as an outline, each as shares of its own total."""
    if len(tokens.all_counts) < 2:
        return None
    both = [_share(tokens.all_counts), _share(tokens.chosen_counts)]
    most = max(max(shares, default=0.0) for shares in both)
    edges = [100 * (edge - tokens.edges[0]) / (tokens.edges[-1] - tokens.edges[0]) for edge in tokens.edges]
    paths = [
        Path(steps(edges, [100 * share / most for share in shares]) + end, kind)
        for shares, kind, end in zip(both, ("rest", "chosen"), ("Z", ""), strict=True)
        if any(shares)
    ]
    ticks = [Tick(100 * (value - tokens.edges[0]) / (tokens.edges[-1] - tokens.edges[0]), number(value)) for value in
             linear_ticks(tokens.edges[0], tokens.edges[-1])]  # fmt: skip
    return Chart(title, f"{title}: median {tokens.all.median:g} of all samples", "", [], paths, [], ticks, [])


def compared_scores(scores: Sequence[Scores]) -> Chart | None:
    """The histograms of two runs as outlines, each as shares of its own total, on one axis."""
    drawn = [(item, kind) for item, kind in zip(scores, "ab", strict=True) if item.edges]
    if not drawn:
        return None
    low, high = min(item.edges[0] for item, _ in drawn), max(item.edges[-1] for item, _ in drawn)

    def at(value: float) -> float:
        return 100 * (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))

    shares = [np.array(_share(item.scored)) / np.diff(np.log(item.edges)) for item, _ in drawn]
    most = max(heights.max() for heights in shares)
    paths = [
        Path(steps([at(edge) for edge in item.edges], (100 * heights / most).tolist()), kind)
        for (item, kind), heights in zip(drawn, shares, strict=True)
    ]
    ticks = [Tick(at(value), tick(value)) for value in log_ticks(low, high)]
    return Chart(
        "Leverage scores",
        f"Two histograms of scores from {score(low)} to {score(high)}",
        "score, logarithmic",
        [],
        paths,
        [],
        ticks,
        [],
    )


def steps(edges: Sequence[float], heights: Sequence[float]) -> str:
    """The outline of a histogram."""
    pieces = [f"M{edges[0]:.2f} 100"]
    for start, stop, height in zip(edges, edges[1:], heights, strict=False):
        pieces.append(f"L{start:.2f} {100 - height:.2f} L{stop:.2f} {100 - height:.2f}")
    return " ".join([*pieces, f"L{edges[-1]:.2f} 100"])


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values in [low, high]."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values in [low, high], with about equal factors between them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 4, 6, 8), (1, 2, 5), (1, 3), (1,)):
        ticks = [
            factor * 10.0**decade for decade in decades for factor in factors if low <= factor * 10.0**decade <= high
        ]
        if len(ticks) <= most:
            return ticks
    return ticks[:: -(-len(ticks) // most)]


def _share(counts: Sequence[int]) -> list[float]:
    return [count / max(sum(counts), 1) for count in counts]


def _counts(most: int) -> list[Tick]:
    return [Tick(100 * value / most, number(value)) for value in linear_ticks(0, most, 3) if value == int(value)]


def _shares() -> list[Tick]:
    return [Tick(share, f"{share}%") for share in (0, 50, 100)]


def _first_directions(last: int, dim: int) -> str:
    return f"directions, all {dim:,}" if last == dim else f"directions, the first {last:,} of {dim:,}"
