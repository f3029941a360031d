"""What a run prints."""

import io

from scalselect_ray.console import Console, duration


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
