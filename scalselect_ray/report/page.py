"""The page: one file that holds everything, asks the network for nothing and runs no script but its own."""

import base64
import difflib
import hashlib
import importlib.resources
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jinja2

from scalselect_ray.console import counted, duration
from scalselect_ray.report import charts, words
from scalselect_ray.report.data import Card, Report
from scalselect_ray.store.record import Change

MAX_BYTES = 5_000_000
_PICTURE_BYTES = 2_800_000  # of all pictures of a page
_MAX_SOURCES = 200
TITLES = {"best": "Best", "just in": "Just inside the cutoff", "just out": "Just outside the cutoff", "worst": "Lowest"}
TOKENS = {"num_tokens": "Tokens", "num_vision_tokens": "Vision tokens", "num_attended_tokens": "Attended vision tokens"}


def render(report: Report) -> bytes:
    """One run's page."""
    return _small(lambda room: _page(replace(report, galleries=_within(report.galleries, room))))


def render_comparison(a: Report, b: Report, change: Change) -> bytes:
    """Two runs side by side; `change` is what `compare` answers for A as the previous run and B as the run."""
    differences = difflib.unified_diff(a.config.splitlines(), b.config.splitlines(), "A", "B", n=1, lineterm="")

    def page(room: int) -> bytes:
        cards = [(name, _within(run.galleries, room // 2)) for name, run in (("A", a), ("B", b))]
        return _render(
            "compare.html",
            a=a,
            b=b,
            change=change,
            titles=TITLES,
            cards=cards if any(galleries for _, galleries in cards) else [],
            scores=charts.compared_scores([a.scores, b.scores]),
            energy=charts.energy_chart(a.spectrum, [b.spectrum]) if a.spectrum.k and b.spectrum.k else None,
            sources=sorted({*a.record.sources, *b.record.sources}, key=lambda name: (-_chosen(b, name), name))[
                :_MAX_SOURCES
            ],
            differences="\n".join(differences),
        )

    return _small(page)


def _chosen(report: Report, source: str) -> int:
    counts = report.record.sources.get(source)
    return counts.chosen if counts else 0


def _small(page: Callable[[int], bytes]) -> bytes:
    """A page below the limit, with as many bytes of pictures as fit; `page` makes it with room for so many."""
    data = page(_PICTURE_BYTES)
    return data if len(data) < MAX_BYTES else page(0)


def _within(galleries: Mapping[str, Sequence[Card]], room: int) -> dict[str, list[Card]]:
    """The galleries with as many pictures as there is room for, shared out so that no gallery goes without."""
    left = room
    kept: dict[tuple[str, int], Card] = {}
    for cards in itertools.zip_longest(
        *([(name, index, card) for index, card in enumerate(cards)] for name, cards in galleries.items())
    ):
        for name, index, card in filter(None, cards):
            pictures = []
            for picture in card.pictures:
                size = len(picture.image) + len(picture.overlay or "")
                if size <= left:
                    left -= size
                    pictures.append(picture)
            kept[name, index] = replace(
                card, pictures=pictures, left_out=card.left_out + len(card.pictures) - len(pictures)
            )
    return {name: [kept[name, index] for index in range(len(cards))] for name, cards in galleries.items()}


def _page(report: Report) -> bytes:
    record = report.record
    sources = sorted(record.sources.items(), key=lambda item: (-item[1].chosen, -item[1].scored, item[0]))
    return _render(
        "page.html",
        report=report,
        record=record,
        titles=TITLES,
        scores=charts.score_chart(report.scores, report.cutoffs, report.source_cutoffs if report.quotas else {}),
        energy=charts.energy_chart(report.spectrum),
        tokens=[(TOKENS[item.name], item, charts.token_chart(item, TOKENS[item.name])) for item in report.tokens],
        sources=sources[:_MAX_SOURCES],
        more_sources=sources[_MAX_SOURCES:],
        row_sources=sorted({row.key.source for row in report.rows}),
    )


def _render(template: str, **values: Any) -> bytes:
    script = _environment.loader.get_source(_environment, "page.js")[0]  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = _environment.get_template(template).render(script=script, script_hash=digest, **values)
    return text.encode(errors="replace")


def _load(name: str) -> str | None:
    file = importlib.resources.files(__package__) / "templates" / name
    return file.read_text(encoding="utf-8") if file.is_file() else None


_environment = jinja2.Environment(
    autoescape=True,
    loader=jinja2.FunctionLoader(_load),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=words.visible,
)
_environment.filters |= {
    "counted": counted,
    "budget": words.budget,
    "cut": words.cut,
    "duration": duration,
    "number": words.number,
    "percent": words.percent,
    "score": words.score,
}
