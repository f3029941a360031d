"""Pages of made-up reports: small, safe, and whole at the edges."""

import json
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from made_up import HOSTILE, empty_report, record, report

from scalselect_ray.report import charts
from scalselect_ray.report.data import Cutoff
from scalselect_ray.report.page import MAX_BYTES, render, render_comparison
from scalselect_ray.report.words import budget, cut, score, visible

CHANGE = {"kept": 3, "entered": 2, "left": 1, "principal_angles_degrees": {"mean": 1.0, "largest": 2.0}}


class Tags(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_a_report_is_json():
    assert json.loads(json.dumps(asdict(report(1000, 100))))["record"]["chosen"] == 100


@pytest.mark.parametrize("compared", [False, True], ids=["one run", "two runs"])
def test_hostile_strings_stay_text(compared):
    rejected = {HOSTILE: 3}
    hostile = report(
        500, 100, text=HOSTILE, record={"rejected": rejected, "sources": {HOSTILE: {"scored": 500, "chosen": 100}}}
    )
    hostile = replace(hostile, source_cutoffs={HOSTILE: 1e-5}, quotas={HOSTILE: HOSTILE})
    page = render_comparison(hostile, replace(hostile, config=HOSTILE), CHANGE) if compared else render(hostile)
    tags = Tags(page)
    assert [tag for tag, _ in tags.found].count("script") == 1
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, attributes)
    assert b"\0" not in page
    said = "".join(tags.text)
    assert "<img src=x onerror=" in said
    assert "{{7*7}}" in said
    policy = next(
        attributes["content"]
        for tag, attributes in tags.found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]


@pytest.mark.parametrize(
    ("image", "text"),
    [("data:image/webp;base64," + "A" * 60_000, "word " * 400), ("data:," + "A" * 4_000_000, "\U0001f600" * 100_000)],
    ids=["busy pictures", "far too much of everything"],
)
def test_a_page_is_below_its_limit_and_says_what_is_left_out(image, text):
    large = report(
        text=text,
        image=image,
        record={"sources": {f"{index} {text}": {"scored": 9, "chosen": 3} for index in range(1000)}},
    )
    for page in (render(large), render_comparison(large, large, CHANGE)):
        assert len(page) < MAX_BYTES
        assert "more pictures not shown" in page.decode()
        assert f"({len(text):,} characters in all)" in page.decode()
    assert "800 more sources" in "".join(Tags(render(large)).text)


def test_every_gallery_keeps_some_of_its_pictures_when_there_are_too_many():
    crowded = report(1000, 100, image="data:," + "A" * 100_000)
    cards = crowded.galleries["best"]
    page = render(replace(crowded, galleries={"best": cards[:8], "worst": cards[:8]})).decode()
    best, worst = page.split("<h3>Best</h3>")[1].split("<h3>Lowest</h3>")
    assert 0 < best.count("<img") == worst.count("<img") or abs(best.count("<img") - worst.count("<img")) <= 6


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (empty_report(), ["All features are equal", "Every score is 0", "No direction has any energy"]),
        (report(1, 1), ["1 of 1 sample chosen", "No sample was rejected"]),
        (report(50, 0), ["0 of 50 samples chosen"]),
        (report(600, 60, record={"sources": record(600, 60, 60)["sources"]}), ["source-59"]),
        (report(600, 60, record={"sources": record(600, 60, 1)["sources"]}), ["1 source"]),
        (
            report(600, 60, record={"rejected": {"text_only": 3, "too_long": 2}, "text_only_kept": 8}),
            ["+ 8 text-only", "5 rejected"],
        ),
        (
            report(600, 60, record={"budgets": {"0.02": 12, "0.05": 30, "60": 60}}),
            ["2%, 5%, 60", "The manifest is in rank order"],
        ),
        (report(600, 60, quotas={"source-01": "floor 0.2, cap 0.5"}), ["floor 0.2, cap 0.5"]),
        (
            report(600, 60, record={"change": CHANGE | {"previous": "20261123T101112131Z-0a1b2c3d"}}),
            ["2 entered, 1 left", "1.00°"],
        ),
        (
            report(
                600,
                60,
                record={
                    "change": {"previous": "p", "kept": 0, "entered": 60, "left": 0, "principal_angles_degrees": None}
                },
            ),
            ["Compared with"],
        ),
        (report(600, 60, tokens=[], galleries={}, tokens_of=0), ["600 samples"]),
        (report(600, 60, tokens_of=100), ["from 100 samples spread evenly over the corpus"]),
    ],
    ids=[
        "all equal",
        "one sample",
        "nothing chosen",
        "60 sources",
        "one source",
        "text-only",
        "budgets",
        "quotas",
        "change",
        "no overlap",
        "features gone",
        "tokens of some",
    ],
)
def test_edges_are_said_in_words(made, words):
    text = " ".join("".join(Tags(render(made)).text).split())
    assert all(word in text for word in words), text[:600]
    assert "nan" not in text.lower().split()
    assert "None" not in text.split()
    render_comparison(made, report(700, 70), CHANGE)


def test_charts_stay_inside_their_frame():
    made = report(5000, 800, record={"budgets": {f"0.{index:02d}": 50 * index for index in range(1, 17)}})
    drawn = [
        charts.score_chart(made.scores, made.cutoffs, {}),
        charts.score_chart(made.scores, [], {"a": 1e-300, "b": 1e9}),
        charts.energy_chart(made.spectrum),
        charts.energy_chart(made.spectrum, [made.spectrum]),
        charts.compared_scores([made.scores, made.scores]),
        *(charts.token_chart(item, "Tokens") for item in made.tokens),
    ]
    for chart in drawn:
        for bar in chart.bars:
            assert 0 <= bar.x <= bar.x + bar.width <= 100.001
            assert 0 < bar.height <= 100
        for index in [*(mark.x for mark in chart.marks), *(tick.at for tick in (*chart.x_ticks, *chart.y_ticks))]:
            assert -0.001 <= index <= 100.001
        for path in chart.paths:
            numbers = [float(item) for item in path.d.translate(str.maketrans("MLZ", "   ")).split()]
            assert min(numbers) >= -0.01
            assert max(numbers) <= 100.01
    assert sum(bar.height for bar in drawn[0].bars if bar.kind == "rest") > sum(
        bar.height for bar in drawn[0].bars if bar.kind == "chosen"
    )
    assert charts.score_chart(empty_report().scores, [Cutoff("7", 7, 0.0)], {}) is None
    assert charts.energy_chart(empty_report().spectrum) is None


def test_words():
    assert [score(value) for value in (None, 0.0, 0.5, 0.000123456, 7.29e-6, 1.0)] == [
        "\u2013",
        "0",
        "0.500",
        "0.000123",
        "7.29\u00d710\u207b\u2076",
        "1.00",
    ]
    assert [budget(name) for name in ("0.16", "1", "1.0", "5000", "0.005")] == ["16%", "100%", "100%", "5,000", "0.5%"]
    assert cut("abcdef", 3) == "abc\u2026 (6 characters in all)"
    assert visible("a\0b\x1b\ud800\n") == "a\u2400b\u241b\\ud800\n"
