"""Pages as people use them, in a real browser."""

import json
import urllib.request

import pytest
from made_up import HOSTILE, record, report

from scalselect_ray.io import storage
from scalselect_ray.report.page import render, render_comparison

PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
PICTURE += "AAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
SHOWN = "[...document.querySelectorAll('#rows tbody tr')].filter(row => !row.hidden)"
CHANGE = {"kept": 3, "entered": 2, "left": 1, "principal_angles_degrees": {"mean": 1.0, "largest": 2.0}}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    plain = report(2000, 300, image=PICTURE, record={"change": CHANGE | {"previous": "p"}})
    (folder / "plain.html").write_bytes(render(plain))
    (folder / "hostile.html").write_bytes(
        render(report(500, 60, text=HOSTILE, image=PICTURE, record={"rejected": {"too_long": 2}}))
    )
    wide = report(600, 60, image=PICTURE, record={"sources": record(600, 60, 60)["sources"]})
    (folder / "many.html").write_bytes(render(wide))
    (folder / "compare.html").write_bytes(render_comparison(plain, wide, CHANGE))
    return folder


@pytest.mark.parametrize("name", ["plain", "hostile", "many", "compare"])
def test_a_page_loads_from_a_file_and_asks_for_nothing_else(name, pages, chromium):
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
        chromium.open((pages / f"{name}.html").as_uri(), width, 900, scheme)
        assert chromium.errors == []
        assert {url for url in chromium.requests if not url.startswith("data:")} == {(pages / f"{name}.html").as_uri()}
        assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            "nothing is wider than the screen"
        )
        assert chromium.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_hostile_strings_do_not_run(pages, chromium):
    chromium.open((pages / "hostile.html").as_uri())
    assert chromium.evaluate("typeof window.hit") == "undefined"
    assert chromium.evaluate("document.querySelectorAll('script').length") == 1
    assert "<img src=x onerror=" in chromium.evaluate("document.querySelector('.card').textContent")
    assert (
        chromium.evaluate("[...document.querySelectorAll('bdi')].filter(e => e.textContent.includes('\\u202e')).length")
        > 0
    )


def test_the_policy_of_a_page_stops_what_an_escape_would_let_through(pages, chromium):
    """The second line of defence, tried on its own."""
    chromium.open((pages / "plain.html").as_uri())
    chromium.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=window.hit=1>'), new Promise(r => "
        "setTimeout(r, 50))"
    )
    assert chromium.evaluate("typeof window.hit") == "undefined"
    assert chromium.evaluate("fetch('http://127.0.0.1:1/').then(() => 'fetched', error => error.name)") == "TypeError"
    assert any("Content Security Policy" in error for error in chromium.errors)


def test_a_copy_in_a_bucket_is_shown_by_the_store_itself(pages, chromium, s3):
    s3.clear()
    storage.write("s3://bucket/pages/plain.html", (pages / "plain.html").read_bytes(), "text/html; charset=utf-8")
    url = storage.filesystem("s3://bucket")[0].sign("bucket/pages/plain.html")  # a link as people share it
    assert url.startswith(s3.endpoint)
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    chromium.open(url)
    assert chromium.errors == []
    assert "300 of 2,000 samples chosen" in chromium.evaluate("document.querySelector('h1').textContent")
    assert {request for request in chromium.requests if not request.startswith("data:")} == {url}


def test_the_table_sorts_and_filters(pages, chromium):
    chromium.open((pages / "plain.html").as_uri())

    def column(index: int) -> list[str]:
        return chromium.evaluate(f"{SHOWN}.map(row => row.cells[{index}].dataset.v ?? row.cells[{index}].textContent)")

    everything = column(1)
    chromium.click("#rows th:nth-child(2) button")
    assert list(map(float, column(1))) == sorted(map(float, everything))
    assert chromium.evaluate("document.querySelector('#rows th:nth-child(2)').getAttribute('aria-sort')") == "ascending"
    chromium.click("#rows th:nth-child(2) button")
    assert list(map(float, column(1))) == sorted(map(float, everything), reverse=True)
    chromium.click("#rows th:nth-child(3) button")
    assert [name.split()[0] for name in column(2)] == [str(index) for index in range(400)], (
        "ids with numbers in them sort as people read"
    )
    chromium.type("#find", "39")
    assert len(column(2)) == chromium.evaluate("parseInt(document.querySelector('#count').textContent)") == 13 + 1
    chromium.evaluate(
        "document.querySelector('#chosen').value = 'yes', document.querySelector('#chosen').dispatchEvent(new "
        "Event('input'))"
    )
    assert [name.split()[0] for name in column(2)] == ["39", "139", "239"]


def test_the_theme_follows_the_system_until_it_is_chosen(pages, chromium):
    ink = "getComputedStyle(document.body).color"
    url = (pages / "plain.html").as_uri()
    chromium.open(url, scheme="light")
    light = chromium.evaluate(ink)
    chromium.open(url, scheme="dark")
    dark = chromium.evaluate(ink)
    assert light != dark
    seen = []
    for _ in range(3):
        chromium.click("#theme")
        seen.append((chromium.evaluate("document.querySelector('#theme').textContent"), chromium.evaluate(ink)))
    assert seen == [("Theme: light", light), ("Theme: dark", dark), ("Theme: auto", dark)]


def test_attention_can_be_taken_away_and_bars_say_what_they_are(pages, chromium):
    chromium.open((pages / "plain.html").as_uri())
    over = "getComputedStyle(document.querySelector('.over')).display"
    assert chromium.evaluate(over) == "block"
    chromium.click("#attention")
    assert chromium.evaluate(over) == "none"
    chromium.evaluate("scrollTo(0, 0)")
    box = chromium.evaluate(
        "(b => [b.x + b.width / 2, b.bottom - 1])(document.querySelectorAll('rect')[20].getBoundingClientRect())"
    )
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    assert "chosen" in chromium.evaluate("document.querySelector('#tip').textContent")
    assert json.loads(
        chromium.evaluate(
            "JSON.stringify([...document.querySelectorAll('svg')].every(svg => svg.getAttribute('aria-label')))"
        )
    )
