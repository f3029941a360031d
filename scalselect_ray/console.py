"""What a run says on stderr: a live bar on a terminal, now and then one clean line in a job log."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scalselect_ray.redaction import redact

_LINE_EVERY_S = 30.0


class Stage:
    """Progress of one stage. Rates are of this run's work alone."""

    def __init__(self, name: str, total: int, unit: str, clock: Callable[[], float]) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.rejects = 0
        self._clock = clock
        self._started = clock()

    def advance(self, count: int, rejects: int = 0) -> None:
        """`count` more units are done, `rejects` of them rejected."""
        self.done += count
        self.rejects += rejects
        self.show()

    def show(self) -> None:
        """Overridden by what draws it."""

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    def line(self) -> str:
        """The state in one line."""
        share = f" ({100 * self.done // self.total}%)" if self.total else ""
        parts = [f"{self.name:<10}{self.done:,}/{self.total:,} {self.unit}{share}"]
        if self.rate:
            parts.append(f"{self.rate:,.1f}/s")
        if self.rejects:
            parts.append(f"{self.rejects:,} rejects")
        if self.rate and self.done < self.total:
            parts.append(f"about {duration((self.total - self.done) / self.rate)} left")
        else:
            parts.append(f"{duration(self.seconds)}")
        return "  ".join(parts)


class Console:
    """Everything a run prints. Nothing goes to stdout."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rich = RichConsole(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._clock = clock

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        """A stage of the run, while it lasts."""
        drawn = self._bar(name, total, unit) if self._rich.is_terminal else self._lines(name, total, unit)
        with drawn as stage:
            yield stage
        self.note(stage.line())

    def note(self, text: str) -> None:
        self._rich.print(shown(text), markup=False)

    def warn(self, text: str) -> None:
        self._rich.print(f"warning: {shown(text)}", markup=False, style="yellow")

    def error(self, *lines: str) -> None:
        self._rich.print("error: " + "\n".join(map(shown, lines)), markup=False, style="red")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A small table; all but the first column are aligned to the right."""
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(f"{value:,}" if isinstance(value, int) else shown(str(value))) for value in row))
        self._rich.print(table)

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values, a line each."""
        width = max(map(len, facts)) + 2
        for name, value in facts.items():
            self.note(f"  {name:<{width}}{value}")

    @contextmanager
    def _bar(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._rich, transient=True) as progress:
            task = progress.add_task(name, total=total, note="")

            class Bar(Stage):
                def show(self) -> None:
                    note = f"{self.unit}  {self.rate:,.1f}/s" + (f"  {self.rejects:,} rejects" if self.rejects else "")
                    progress.update(task, completed=self.done, note=note)

            yield Bar(name, total, unit, self._clock)

    @contextmanager
    def _lines(self, name: str, total: int, unit: str) -> Iterator[Stage]:
        note, clock = self.note, self._clock

        class Lines(Stage):
            _said = clock()

            def show(self) -> None:
                if self.done < self.total and clock() - self._said >= _LINE_EVERY_S:
                    self._said = clock()
                    note(self.line())

        yield Lines(name, total, unit, self._clock)


def shown(text: str) -> str:
    """Any text on one line of a terminal: without secrets, and as `one_line`. Ids and names are chosen by others."""
    return one_line(redact(text))


def one_line(text: str) -> str:
    """What is no printable character (escape sequences, line breaks, halves of characters) written as Python, JSON and
    YAML escape it."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def counted(count: int, noun: str) -> str:
    """1 slice, 2 slices."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Seconds for people: 4.2s, 3m 05s, 2h 10m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"
