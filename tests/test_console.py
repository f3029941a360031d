"""What a run prints."""

import io

import pytest

from scalselect_ray.console import Console, duration, shown


def test_a_log_gets_one_clean_line_now_and_then():
    now = [0.0]
    stream = io.StringIO()
    console = Console(stream, clock=lambda: now[0])
    with console.stage("extract", 1000, "samples") as stage:
        for _ in range(10):
            now[0] += 10
            stage.advance(100, rejects=1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "extract   300/1,000 samples (30%)  10.0/s  3 rejects  about 1m 10s left"
    assert lines[-1].startswith("extract   1,000/1,000 samples (100%)  10.0/s  10 rejects")
    assert "\x1b" not in stream.getvalue()


def test_durations_for_people():
    assert [duration(seconds) for seconds in (4.21, 185, 7800)] == ["4.2s", "3m 05s", "2h 10m"]


FOREIGN = ["\x1b[2J", "a\nerror: b", "\r", "\x9b31m", "\u202egnp.exe", "\udc80", "\x00", "\u2028", "\x07"]


@pytest.mark.parametrize("text", FOREIGN, ids=ascii)
def test_what_others_wrote_does_nothing_to_a_terminal(text):
    for show in (
        lambda console: console.note(f"id {text}!"),
        lambda console: console.warn(f"id {text}!"),
        lambda console: console.error(f"id {text}!"),
        lambda console: console.facts({"id": f"{text}!"}),
        lambda console: console.table(["id"], [[f"{text}!"]]),
    ):
        stream = io.StringIO()
        show(Console(stream))
        lines = stream.getvalue().removesuffix("\n").split("\n")
        assert lines[-1].rstrip().endswith(f"{text.encode('unicode_escape').decode()}!"), lines
        assert all(character.isprintable() for line in lines for character in line)


def test_words_of_all_languages_stay_as_they_are():
    assert shown("Bär 图片 صورة [bold]x[/] \\n") == "Bär 图片 صورة [bold]x[/] \\n"
