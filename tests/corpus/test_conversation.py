"""Rows of real corpora to one schema."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalselect_ray.corpus import ImagePlaceholder, ImageRef, Reason, SampleRejectedError, fields, resolver
from scalselect_ray.corpus.conversation import normalise


def resolve(field: object) -> ImageRef:
    return ImageRef(str(field), uri=str(field))


HUMAN = {"from": "human", "value": "<image>\n What is it? "}
GPT = {"from": "gpt", "value": " A cat. "}
TURNS = [("user", (ImagePlaceholder(0), "What is it?")), ("assistant", (" A cat. ",))]


@pytest.mark.parametrize(
    ("record", "images"),
    [
        pytest.param(
            {"id": 7, "image": "coco/1.jpg", "conversations": [HUMAN, GPT], "model": ""},
            ["coco/1.jpg"],
            id="LLaVA-665K",
        ),
        pytest.param(
            {"conversations": [HUMAN, {**GPT, "text": "x", "markdown": None}], "image": ["a"]},
            ["a"],
            id="stray keys, a list of one",
        ),
        pytest.param([HUMAN, GPT], None, id="LLaVA-Pretrain WebDataset: a bare list of turns"),
        pytest.param(
            {
                "messages": [
                    {"role": "user", "content": HUMAN["value"]},
                    {"role": "assistant", "content": GPT["value"]},
                ],
                "images": ["a"],
            },
            ["a"],
            id="LLaMA-Factory",
        ),
        pytest.param(
            {"texts": [{"user": "What is it?", "assistant": " A cat. ", "source": "x"}], "images": ["a"]},
            ["a"],
            id="The Cauldron",
        ),
        pytest.param(
            {"conversation": [{"human": "What is it?", "assistant": " A cat. "}], "image": "a"}, ["a"], id="pairs"
        ),
        pytest.param(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": "a"}, {"type": "text", "text": "What is it?"}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": " A cat. "}]},
                ]
            },
            ["a"],
            id="Nemotron: images inside the turns",
        ),
        pytest.param(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "a"}},
                            {"type": "text", "text": "What is it?"},
                        ],
                    },
                    {"role": "assistant", "content": " A cat. "},
                ]
            },
            ["a"],
            id="OpenAI",
        ),
    ],
)
def test_layouts(record, images):
    if images is None:
        record = {"conversations": record, "image": "a"}
        images = ["a"]
    sample = normalise(3, record, resolve)
    assert [(turn.role, turn.stripped().content) for turn in sample.turns] == TURNS
    assert [image.name for image in sample.images] == images
    assert sample.row == 3


@pytest.mark.parametrize(("raw", "known"), [(7, "7"), ("x", "x"), (None, None), (math.nan, None), ("", None)])
def test_ids_become_text_or_nothing(raw, known):
    assert normalise(0, {"id": raw, "image": "a", "conversations": [HUMAN, GPT]}, resolve).id == known


def test_several_images_keep_their_places():
    record = {"images": ["a", "b"], "conversations": [{"from": "human", "value": "Is <image> or <image>larger?"}, GPT]}
    assert normalise(0, record, resolve).turns[0].stripped().content == (
        "Is",
        ImagePlaceholder(0),
        "or",
        ImagePlaceholder(1),
        "larger?",
    )


@pytest.mark.parametrize(
    "null", ["", "None", "none", "nan", "null", math.nan, None, [], [None], {"bytes": None, "path": None}]
)
def test_images_that_are_none(null):
    with pytest.raises(SampleRejectedError) as caught:
        normalise(0, {"image": null, "conversations": [{"from": "human", "value": "Hi"}, GPT]}, resolve)
    assert caught.value.reason == Reason.TEXT_ONLY


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        (
            {"image": "a", "conversations": [{"from": "human", "value": "<image><image>"}, GPT]},
            Reason.PLACEHOLDER_MISMATCH,
            "2 .* 1 images",
        ),
        ({"conversations": [HUMAN, GPT]}, Reason.PLACEHOLDER_MISMATCH, "1 .* 0 images"),
        ({"image": "a", "conversations": []}, Reason.BAD_CONVERSATION, "no conversation"),
        ({"image": "a", "conversations": [GPT]}, Reason.BAD_CONVERSATION, "user turn"),
        ({"image": "a", "conversations": [HUMAN]}, Reason.BAD_CONVERSATION, "assistant"),
        ({"image": "a", "conversations": [{"from": "wizard", "value": "x"}]}, Reason.BAD_CONVERSATION, "'wizard'"),
        ({"image": "a", "conversations": [{"from": "human", "value": True}]}, Reason.BAD_CONVERSATION, "bool"),
        ({"image": "a", "conversations": [{"from": "human", "value": "a\0b"}, GPT]}, Reason.BAD_CONVERSATION, "NUL"),
        ({"videos": ["v.mp4"], "conversations": [HUMAN, GPT]}, Reason.UNSUPPORTED_MEDIA, "videos"),
        ("text", Reason.BROKEN_ROW, "str"),
    ],
)
def test_what_cannot_be_used_says_why(record, reason, message):
    with pytest.raises(SampleRejectedError, match=message) as caught:
        normalise(0, record, resolve)
    assert caught.value.reason == reason


KEYS = st.sampled_from(
    [
        *fields.FIELDS,
        *("role", "content", "from", "value", "type", "text", "user", "assistant", "human", "gpt"),
        *("image_url", "url", "bytes", "path", "source", "base64", "<image>", "<image_1>"),
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.sampled_from(
        ["human", "gpt", "<image>", "text", "image", '[{"from": "human", "value": "<image>"}]', "iVBORw0KGgo="]
    )
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


COLUMNS = st.dictionaries(st.sampled_from(fields.COLUMNS), KEYS, max_size=3)


@settings(deadline=None, max_examples=400)
@given(JSON, COLUMNS, st.sampled_from([resolve, resolver("/images"), resolver(None)]))
def test_any_row_is_a_sample_or_a_reject(record, columns, resolve_image):
    try:
        sample = normalise(0, record, resolve_image, columns=columns)
    except SampleRejectedError:
        return
    places = [part.index for turn in sample.turns for part in turn.content if isinstance(part, ImagePlaceholder)]
    assert places == list(range(len(sample.images))) != []
