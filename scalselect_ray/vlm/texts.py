"""Where the texts of a conversation stand in what a chat template makes of it.

The template is rendered a second time with a mark in place of each text: what stands between the marks is the
template's own, so each text is found by where it stands and never by a search that could meet the same words elsewhere.

A template may look into a text and do otherwise by what it finds there (it takes off what a model thought, or writes it
anew around its own lines): then the rendering with marks is another one. Such texts are found by a mark that is put
into the text itself, at one place after the other: where the rendering is the same but for the mark, it shows where
that place has gone."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from scalselect_ray.corpus import ImagePlaceholder, Reason, SampleRejectedError, Turn
from scalselect_ray.corpus.sample import Role

Render = Callable[[Sequence[Turn]], str]
_TAG = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{2,32}\]")  # what templates look for in a text
_MOST_ATOMS = 256  # of one text
_MARKS = [chr(code) for code in range(0xE000, 0xE020)]  # of nobody's alphabet
_MOST_WORK = 1 << 26  # characters that are rendered to find the texts of a conversation, and
_TURN_WORK = 200  # what a turn counts for beside its own
_SHOWN = 60  # characters of a text in a message


@dataclass(frozen=True, slots=True)
class Rendering:
    """What the template makes of a conversation."""

    text: str
    literal: str  # the same with a mark in place of each text: what is left is the template's own
    ranges: dict[Role, list[range]]  # of the characters of texts, in their order


@dataclass(frozen=True, slots=True)
class _Text:
    """One text of a conversation."""

    role: Role
    text: str
    turn: int
    part: int


def rendering(turns: Sequence[Turn], render: Render) -> Rendering:
    """Raises SampleRejectedError where the template refuses the conversation, drops one of its texts or writes another
    one."""
    text = render(turns)
    texts = [
        _Text(turn.role, part, number, place)
        for number, turn in enumerate(turns)
        for place, part in enumerate(turn.content)
        if isinstance(part, str)
    ]
    marks = [f"\u27e6{number}\u27e7" for number in range(len(texts))]
    literal = _render_or_none(_with(turns, dict(zip(texts, marks, strict=True))), render)
    found = None if literal is None else _by_marks(text, literal, texts, marks)
    if literal is None or found is None:
        found = _by_places(turns, text, texts, render)
        literal = _without(text, found, marks)
    ranges: dict[Role, list[range]] = {"assistant": [], "user": [], "system": []}
    for known, spans in zip(texts, found, strict=True):
        ranges[known.role] += spans
    return Rendering(text, literal, ranges)


def _by_marks(text: str, literal: str, texts: Sequence[_Text], marks: Sequence[str]) -> list[list[range]] | None:
    """The range of each text; None where the rendering with marks is another one."""
    found: list[list[range]] = [[] for _ in texts]
    at_literal = at_text = 0
    for start_of_mark, number in sorted((literal.find(mark), number) for number, mark in enumerate(marks)):
        between = literal[at_literal:start_of_mark]
        start = at_text + len(between)
        known = texts[number].text
        kept = next((form for form in (known, known.strip()) if text.startswith(between + form, at_text)), None)
        if start_of_mark < 0 or kept is None:
            return None
        found[number] = [range(start, start + len(kept))]
        at_literal, at_text = start_of_mark + len(marks[number]), start + len(kept)
    return found if text[at_text:] == literal[at_literal:] else None


def _by_places(turns: Sequence[Turn], text: str, texts: Sequence[_Text], render: Render) -> list[list[range]]:
    """The ranges of each text, found by a mark inside it: several where the template left out a part, or put something
    of its own between two."""
    mark = next((mark for mark in _MARKS if mark not in text), "")
    left = _MOST_WORK
    found = []
    for known in texts:

        def place(at: int, known: _Text = known) -> int | None:
            """Where the character `at` of the text, or its end, stands in the rendering."""
            nonlocal left
            left -= len(text) + _TURN_WORK * len(turns)
            if left < 0:
                raise SampleRejectedError(
                    Reason.TOO_COSTLY,
                    f"the model's chat template rewrites what is said, and to find {len(texts):,} texts in "
                    f"{len(text):,} characters takes more than is agreed",
                )
            marked = _render_or_none(_with(turns, {known: known.text[:at] + mark + known.text[at:]}), render)
            if marked is None or marked.count(mark) != 1 or marked.replace(mark, "") != text:
                return None
            return marked.index(mark)

        spans = _spans(known, text, place) if mark else []
        if not spans and known.text.strip():
            raise _rejected(known, "leaves out", "nothing of it stands in what the template makes of the conversation")
        found.append(spans)
    ordered = sorted((span for spans in found for span in spans), key=lambda span: span.start)
    if any(first.stop > second.start for first, second in itertools.pairwise(ordered)):
        raise SampleRejectedError(
            Reason.BAD_CONVERSATION, "the model's chat template does not keep the texts of the conversation apart"
        )
    return found


def _spans(known: _Text, text: str, place: Callable[[int], int | None]) -> list[range]:
    """The ranges of one text: one where it stands there as a whole, else one for each part that was kept."""
    size = len(known.text)
    places = _places((0, size // 2, size), place)
    for form in (known.text, known.text.strip()):
        lead = known.text.index(form)
        for at, found in places.items():
            if (start := found - at + lead) >= 0 and text.startswith(form, start):
                return [range(start, start + len(form))]
    atoms = list(_atoms(known.text))
    if len(atoms) > _MOST_ATOMS:
        raise _rejected(known, "rewrites", f"it has more than {_MOST_ATOMS} parts to look for")
    places |= _places([at for first, stop in atoms for at in (first, (first + stop) // 2, stop)], place)
    kept: list[tuple[range, int]] = []  # where a part stands, and where in the text it begins
    for first, stop in atoms:
        inside = {at: found for at, found in places.items() if first <= at <= stop}
        starts = {found - at + first for at, found in inside.items() if found - at + first >= 0}
        fitting = [start for start in sorted(starts) if text.startswith(known.text[first:stop], start)]
        if not fitting:
            instead = text[places[first] : places[stop]].strip() if first in places and stop in places else ""
            if any(first < at < stop for at in inside) or instead not in ("", known.text[first:stop]):
                raise _rejected(known, "rewrites", f"{_short(known.text[first:stop])} became something else")
            continue
        start = fitting[0]
        previous = kept[-1][0] if kept else range(0)
        between = known.text[kept[-1][1] + len(previous) : first] if kept else ""
        if kept and start >= previous.stop and text[previous.stop : start] == between:
            kept[-1] = (range(previous.start, start + stop - first), kept[-1][1])
        else:
            kept.append((range(start, start + stop - first), first))
    return [span for span, _ in kept]


def _places(asked: Iterable[int], place: Callable[[int], int | None]) -> dict[int, int]:
    """Where characters of a text stand in the rendering: those that stand there."""
    return {at: found for at in sorted(set(asked)) if (found := place(at)) is not None}


def _atoms(text: str) -> Iterator[tuple[int, int]]:
    """(start, stop) of the parts of a text that a template keeps or drops as a whole: tags, and what stands between
    them, blanks around it aside."""
    at = 0
    for first, stop in [*(tag.span() for tag in _TAG.finditer(text)), (len(text), len(text))]:
        between = text[at:first]
        if between.strip():
            start = at + len(between) - len(between.lstrip())
            yield start, start + len(between.strip())
        if stop > first:
            yield first, stop
        at = stop


def _with(turns: Sequence[Turn], texts: dict[_Text, str]) -> list[Turn]:
    """The turns with other words for some of their texts."""
    known = {(text.turn, text.part): words for text, words in texts.items()}
    made: list[Turn] = []
    for number, turn in enumerate(turns):
        parts: list[str | ImagePlaceholder] = [
            known.get((number, place), part) for place, part in enumerate(turn.content)
        ]
        made.append(Turn(turn.role, tuple(parts)))
    return made


def _without(text: str, found: Sequence[Sequence[range]], marks: Sequence[str]) -> str:
    """The rendering with a mark in place of each range."""
    pieces, at = [], 0
    marked = [(span.start, span.stop, mark) for spans, mark in zip(found, marks, strict=True) for span in spans]
    for start, stop, mark in sorted(marked):
        pieces += [text[at:start], mark]
        at = stop
    return "".join([*pieces, text[at:]])


def _render_or_none(turns: Sequence[Turn], render: Render) -> str | None:
    try:
        return render(turns)
    except SampleRejectedError:  # the template wants something of the text that it has with its own words only
        return None


def _rejected(known: _Text, does: str, why: str) -> SampleRejectedError:
    return SampleRejectedError(
        Reason.BAD_CONVERSATION,
        f"the model's chat template {does} a text of the {known.role}, {_short(known.text)}: {why}",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
