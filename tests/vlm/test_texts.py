"""Where texts stand in a rendering, by templates that look into them and templates that do not."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import GOLDEN, SHARED
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from scalselect_ray.corpus import ImagePlaceholder, Reason, SampleRejectedError, Turn
from scalselect_ray.vlm import texts
from scalselect_ray.vlm.texts import rendering

WRITTEN = sorted(GOLDEN.glob("*/model/chat_template.jinja"))
WILD = SHARED / "wild" / "thinking-template" / "chat_template.jinja"

_HEAD = """{%- for message in messages -%}{{ '<|' + message.role + '|>\\n' }}
{%- set said = namespace(text='') -%}{%- for part in message.content -%}
{%- set said.text = said.text + ('[IMG]' if part.type == 'image' else part.text) -%}{%- endfor -%}"""
_TAIL = "{{ '<|end|>\\n' }}{%- endfor -%}"
TAKEN_OFF = (
    _HEAD
    + """{%- if message.role == 'assistant' and '</think>' in said.text and not loop.last -%}
{{- said.text.split('</think>')[-1].lstrip('\\n') -}}{%- else -%}{{- said.text -}}{%- endif -%}"""
    + _TAIL
)
"""What was thought is shown for the last turn alone."""
WRITTEN_ANEW = (
    _HEAD
    + """{%- if message.role == 'assistant' -%}{%- set thought = namespace(text='') -%}
{%- if '</think>' in said.text -%}
{%- set thought.text = said.text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set said.text = said.text.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{%- if loop.last or thought.text -%}{{- '<think>\\n' + thought.text.strip('\\n') + '\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}{{- said.text -}}"""
    + _TAIL
)
"""What was thought is taken apart and written with the template's own lines around it."""
CUT_OUT = (
    _HEAD
    + """{%- if '<note>' in said.text -%}{{- said.text.split('<note>')[0] + said.text.split('</note>')[-1] -}}
{%- else -%}{{- said.text -}}{%- endif -%}"""
    + _TAIL
)
REPLACED = (
    _HEAD
    + """{%- if '<think>' in said.text -%}{{- 'Thought: none. ' + said.text.split('</think>')[-1] -}}
{%- else -%}{{- said.text -}}{%- endif -%}"""
    + _TAIL
)
DEMANDING = (
    _HEAD
    + """{%- if message.role == 'assistant' and '</think>' not in said.text -%}{{- raise_exception('think!') -}}
{%- endif -%}{{- said.text -}}"""
    + _TAIL
)
WHOLE_ONLY = (
    _HEAD
    + """{%- if said.text.startswith('<answer>') and said.text.endswith('</answer>') -%}{{- '* ' -}}{%- endif -%}
{{- said.text -}}"""
    + _TAIL
)


def renderer(template: str) -> Callable[[Sequence[Turn]], str]:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refused(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refused
    made = environment.from_string(template)

    def render(turns: Sequence[Turn]) -> str:
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.content
                ],
            }
            for turn in turns
        ]
        try:
            return made.render(messages=messages, add_generation_prompt=False)
        except TemplateError as error:
            raise SampleRejectedError(Reason.BAD_CONVERSATION, f"refused: {error}") from error

    return render


def conversation(*answers: str, system: str = "") -> list[Turn]:
    turns = [Turn("system", (system,))] if system else []
    for number, answer in enumerate(answers):
        asked = (ImagePlaceholder(0), "What?") if not number else ("Sure?",)
        turns += [Turn("user", asked), Turn("assistant", (answer,))]
    return turns


def literal(template: str, turns: list[Turn]) -> str:
    """The rendering with brackets around each part of a text."""
    found = rendering(turns, renderer(template))
    spans = sorted((span.start, span.stop) for spans in found.ranges.values() for span in spans)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    text = found.text
    for start, stop in reversed(spans):
        text = f"{text[:start]}⟪{text[start:stop]}⟫{text[stop:]}"
    assert re.sub("⟪[^⟫]*⟫", "", text) == re.sub("\u27e6[0-9]+\u27e7", "", found.literal)
    return text


USER = "<|user|>\n[IMG]⟪What?⟫<|end|>\n"
AGAIN = "<|user|>\n⟪Sure?⟫<|end|>\n"


@pytest.mark.parametrize(
    ("template", "answers", "expected"),
    [
        (TAKEN_OFF, ["<think>Hm.</think>\n\nA"], f"{USER}<|assistant|>\n⟪<think>Hm.</think>\n\nA⟫<|end|>\n"),
        (
            TAKEN_OFF,
            ["<think>Sure? A\n</think>\n\nA", "<think></think>B"],
            f"{USER}<|assistant|>\n⟪A⟫<|end|>\n{AGAIN}<|assistant|>\n⟪<think></think>B⟫<|end|>\n",
        ),
        (
            TAKEN_OFF,
            ["<think>a</think><b>bold</b> and x</think>A", "B"],
            f"{USER}<|assistant|>\n⟪A⟫<|end|>\n{AGAIN}<|assistant|>\n⟪B⟫<|end|>\n",
        ),
        (
            WRITTEN_ANEW,
            ["<think>\nHm.\n</think>\n\nA"],
            f"{USER}<|assistant|>\n⟪<think>\nHm.\n</think>\n\nA⟫<|end|>\n",
        ),
        (
            WRITTEN_ANEW,
            ["<think>Hm. A</think>A"],
            f"{USER}<|assistant|>\n<think>\n⟪Hm. A⟫\n</think>\n\n⟪A⟫<|end|>\n",
        ),
        (WRITTEN_ANEW, ["A"], f"{USER}<|assistant|>\n<think>\n\n</think>\n\n⟪A⟫<|end|>\n"),
        (
            WRITTEN_ANEW,
            ["A", "Hm\n\nhm</think>B C"],
            f"{USER}<|assistant|>\n⟪A⟫<|end|>\n{AGAIN}<|assistant|>\n<think>\n⟪Hm\n\nhm⟫\n</think>\n\n⟪B C⟫<|end|>\n",
        ),
        (CUT_OUT, ["A <note>x</note> B"], f"{USER}<|assistant|>\n⟪A⟫  ⟪B⟫<|end|>\n"),
        (DEMANDING, ["<think>a</think>A"], f"{USER}<|assistant|>\n⟪<think>a</think>A⟫<|end|>\n"),
        (WHOLE_ONLY, ["<answer>A</answer>"], f"{USER}<|assistant|>\n* ⟪<answer>A</answer>⟫<|end|>\n"),
    ],
)
def test_texts_are_found_where_the_template_left_them(template, answers, expected):
    assert literal(template, conversation(*answers)) == expected


@pytest.mark.parametrize(
    ("template", "answers", "words"),
    [
        (
            TAKEN_OFF,
            ["<think>nothing else</think>\n", "B"],
            r"leaves out a text of the assistant, '<think>nothing "
            "else",
        ),
        (REPLACED.replace("+ said.text.split('</think>')[-1]", ""), ["<think>a</think>"], "leaves out a text"),
        (_HEAD + "{{- said.text.upper() -}}" + _TAIL, ["a b c d"], r"rewrites a text of the user, 'What\?'"),
        (_HEAD + "{{- said.text.replace('cat', 'dog') -}}" + _TAIL, ["the cat sat"], "rewrites.*'the cat sat'"),
        (_HEAD + "{%- if loop.index != 2 -%}{{- said.text -}}{%- endif -%}" + _TAIL, ["A"], "leaves out.*'A'"),
    ],
)
def test_a_text_that_is_dropped_or_rewritten_is_named(template, answers, words):
    with pytest.raises(SampleRejectedError, match=words) as raised:
        rendering(conversation(*answers), renderer(template))
    assert raised.value.reason == Reason.BAD_CONVERSATION


TEMPLATES = [path.read_text() for path in WRITTEN] + [TAKEN_OFF, WRITTEN_ANEW, CUT_OUT, WHOLE_ONLY]
WORDS = st.text("ab \n.", min_size=1, max_size=8).filter(str.strip)
THOUGHTS = st.one_of(WORDS, st.builds("<think>{}</think>{}".format, WORDS, WORDS))


def test_there_are_templates_of_golden_models():
    assert len(WRITTEN) >= 2


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
@given(answers=st.lists(THOUGHTS, min_size=1, max_size=3), system=st.sampled_from(["", "Be kind."]))
def test_what_is_found_is_what_was_said_in_its_order(template, answers, system):
    turns = conversation(*answers, system=system)
    found = rendering(turns, renderer(template))
    said = "".join(found.text[span.start : span.stop] for span in found.ranges["assistant"])
    letters = iter("".join("".join(answers).split()))
    assert all(letter in letters for letter in said if letter.strip()), "a part of the answers, in order"
    for answer in answers:
        last = answer.rpartition("</think>")[2].strip()
        assert last in said or "<note>" in template
    asked = [found.text[span.start : span.stop] for span in found.ranges["user"]]
    assert asked == ["What?", *["Sure?"] * (len(answers) - 1)]
    assert all("What?" not in found.text[span.start : span.stop] for span in found.ranges["assistant"])


@given(answers=st.lists(THOUGHTS, min_size=1, max_size=3))
def test_where_a_template_does_not_look_into_texts_marks_are_enough(answers):
    rendered = []
    for path in WRITTEN:
        render = renderer(path.read_text())
        rendering(conversation(*answers), lambda turns, render=render: rendered.append(turns) or render(turns))
    assert len(rendered) == 2 * len(WRITTEN)


def test_the_template_that_went_wrong(shared: Path):
    turns = conversation("<think>Hm.</think>\n\nA", "<think>Hm.</think>\n\nB")
    found = rendering(turns, renderer(WILD.read_text()))
    said = [found.text[span.start : span.stop] for span in found.ranges["assistant"]]
    assert said == ["A", "<think>Hm.</think>\n\nB"]


def test_the_search_is_bounded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_MOST_WORK", 10_000)
        with pytest.raises(SampleRejectedError) as raised:
            rendering(conversation(*["<think>a</think>A"] * 20), renderer(WRITTEN_ANEW))
    assert raised.value.reason == Reason.TOO_COSTLY
    assert rendering(conversation(*["<think>a</think>A"] * 20), renderer(WRITTEN_ANEW))
    with pytest.raises(SampleRejectedError, match="more than 256 parts"):
        rendering(conversation("<a>" * 300 + "<think>a</think>A", "B"), renderer(TAKEN_OFF))
