"""What `preset: published` and the blank before an answer come to, against the published way of counting, written anew:
the conversation as its script makes it, the whole model, answers searched by their own tokens."""

import string
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from oracle import attention_and_output, whole
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from scalselect_ray.config import CorpusConfig, ExtractorConfig, JobConfig, SourceConfig
from scalselect_ray.console import Console
from scalselect_ray.corpus import ImageRef, Reason, SampleRejectedError, normalise
from scalselect_ray.job import open_store
from scalselect_ray.testing.checkpoints import _CLIP, _CROP, _TEXT, MAKERS, _save
from scalselect_ray.vlm.processors import TEMPLATES
from scalselect_ray.vlm.representer import checkpoint_of, earlier_id, make_extractor, make_preparer

pytestmark = pytest.mark.heavy

ROWS = {
    "an answer of a digit": (1, [("human", "<image>\nHow many?"), ("gpt", "5")]),
    "an answer of a word": (1, [("human", "<image>\nWhat is it?"), ("gpt", "It is grey.")]),
    "an image at the end": (1, [("human", "What is it?\n<image>"), ("gpt", "A cat")]),
    "images between texts": (2, [("human", "Look at <image> and <image>."), ("gpt", "7 of them")]),
    "an image in a later turn": (1, [("human", "Hi."), ("gpt", "9"), ("human", " So?  <image>"), ("gpt", "No")]),
    "blanks of a later turn": (
        1,
        [("human", "<image> Hi."), ("gpt", "Hello"), ("human", "  And now? \n"), ("gpt", "8 "), ("human", "Z")],
    ),
}


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, and letters with a blank before them; a text begins with a blank, as Llama's does."""
    special = ["<pad>", "</s>", "<image>"]
    letters = ["\u2581", *string.ascii_letters, *string.digits, *string.punctuation, "\n"]
    words = ["\u2581" + letter for letter in string.ascii_letters]
    vocabulary = {token: number for number, token in enumerate([*special, *letters, *words])}
    merges = [("\u2581", letter) for letter in string.ascii_letters]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<pad>", pad_token="<pad>", eos_token="</s>")


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vicuna")
    tokenizer = sentencepiece_tokenizer()
    tokenizer.chat_template = TEMPLATES["vicuna"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_CLIP),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT),
        image_token_index=2,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(**_CROP),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATES["vicuna"],
    )
    _save(LlavaForConditionalGeneration(config), processor, folder)
    return folder


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(count)]


def as_published(folder: Path, images: list[Image.Image], said: list[tuple[str, str]]) -> tuple[np.ndarray, int, int]:
    """The representation, and the numbers of query and attended tokens."""
    processor, model = whole(folder)
    roles = {"human": "user", "gpt": "assistant"}
    messages: list[dict] = []
    for number, (role, text) in enumerate(said):
        content: list[dict] = [{"type": "image"} for _ in images] if number == 0 else []
        words = text.replace("<image>", "").strip() if number == 0 else text.replace("<image>", "")
        content += [{"type": "text", "text": words}] if words else []
        messages.append({"role": roles[role], "content": content})
    text = processor.apply_chat_template(messages)
    inputs = processor(text=[text], images=images, return_tensors="pt")
    attention, output = attention_and_output(model, inputs)
    ids = inputs["input_ids"][0].tolist()
    vision = [place for place, token in enumerate(ids) if token == model.config.image_token_id]
    answers: set[int] = set()
    start = 0
    for role, words in said:
        if role == "gpt":
            own = processor.tokenizer(words.strip(), add_special_tokens=False)["input_ids"]
            first = next(at for at in range(start, len(ids)) if ids[at : at + len(own)] == own)
            start = first + len(own)
            answers |= set(range(first, start))
    query = [place for place in range(len(ids)) if place not in answers and place not in vision]
    received = attention[query][:, vision].mean(0)
    received = received / received.sum()
    order = received.argsort(descending=True)
    kept = int((received[order].cumsum(0) <= 0.9).sum()) + 1
    rows = [vision[place] for place in order[:kept].tolist()]
    return output[rows].mean(0).numpy(), len(query), kept


def sample_of(count: int, said: list[tuple[str, str]]):
    turns = [{"from": role, "value": text} for role, text in said]
    record = {"images": [f"{number}.png" for number in range(count)], "conversations": turns}
    return normalise(0, record, lambda field: ImageRef(str(field), uri=str(field)))


@pytest.mark.parametrize("name", ROWS)
def test_the_preset_gives_what_the_published_code_gives_where_its_search_succeeds(name, vicuna):
    count, said = ROWS[name]
    settings = ExtractorConfig(model=str(vicuna), dtype="float32", preset="published")
    (answer,) = make_extractor(settings)([make_preparer(settings)(sample_of(count, said), pictures(count))])
    feature, query, attended = as_published(vicuna, pictures(count), said)
    assert (answer.num_query_tokens, answer.num_attended_tokens) == (query, attended)
    np.testing.assert_allclose(answer.feature, feature, atol=1e-5)


def test_the_blank_before_an_answer_is_the_answers_where_the_tokenizer_begins_with_one(vicuna, tmp_path):
    """Also without the preset. A tokenizer of bytes begins no answer with a blank: what stands before it is the
    template's."""
    _, said = ROWS["an answer of a digit"]
    settings = ExtractorConfig(model=str(vicuna), dtype="float32")
    preparer = make_preparer(settings)
    prepared = preparer(sample_of(1, said), pictures(1))
    assert prepared.query.sum() == as_published(vicuna, pictures(1), said)[1]
    assert preparer.blanks_are_answers
    MAKERS["llava"](tmp_path)
    assert not make_preparer(ExtractorConfig(model=str(tmp_path))).blanks_are_answers


def test_a_sample_is_cut_where_no_image_stands_behind_the_limit(vicuna):
    settings = ExtractorConfig(model=str(vicuna), dtype="float32", preset="published", max_length=60)
    preparer = make_preparer(settings)
    said = [("human", "<image>\nWhat is it?"), ("gpt", "It is " + "very " * 40 + "grey.")]
    prepared = preparer(sample_of(1, said), pictures(1))
    assert len(prepared.input_ids) == len(prepared.query) == len(prepared.vision) == 60
    uncut = make_preparer(ExtractorConfig(model=str(vicuna), images="first"))(sample_of(1, said), pictures(1))
    assert (prepared.input_ids == uncut.input_ids[:60]).all()
    assert (prepared.query == uncut.query[:60]).all()
    with pytest.raises(SampleRejectedError, match="more than the limit of 60, and images stand beyond it") as rejected:
        preparer(sample_of(5, [("human", "<image>" * 5), ("gpt", "No")]), pictures(5))
    assert rejected.value.reason == Reason.TOO_LONG


def test_images_of_qwen_have_the_published_sizes_and_what_is_set_holds(tmp_path):
    MAKERS["qwen2_vl"](tmp_path)
    said = [("human", "<image>\nWhat is it?"), ("gpt", "It.")]
    big = [Image.new("RGB", (2000, 1000), "grey")]

    def pixels(**settings) -> int:
        prepared = make_preparer(ExtractorConfig(model=str(tmp_path), **settings))(sample_of(1, said), big)
        _, rows, columns = prepared.images["image_grid_thw"][0]
        return int(rows * columns) * 14 * 14

    assert 500_000 < pixels(preset="published") <= 589_824
    assert pixels(preset="published", max_pixels=300_000) <= 300_000
    assert pixels() <= 112 * 112


def test_the_preset_and_the_place_of_images_are_part_of_an_extractors_identity_and_their_defaults_are_not():
    settings = ExtractorConfig(model="x").feature_settings()
    assert not {"preset", "images", "layer"} & settings.keys()
    assert ExtractorConfig(model="x", preset="published").feature_settings() == settings | {"preset": "published"}
    assert ExtractorConfig(model="x", images="first").feature_settings() == settings | {"images": "first"}


def test_checkpoint_of_knows_the_layer(tmp_path):
    MAKERS["llava"](tmp_path)
    assert checkpoint_of(ExtractorConfig(model=str(tmp_path), layer=1), weights=False).layer == 1


def test_answers_of_nlvr_stand_in_their_questions_where_the_published_search_meets_them_first(shared):
    rows = [
        row
        for path in sorted((shared / "data" / "nlvr" / "parquet").glob("*.parquet"))
        for row in pq.read_table(path, columns=["messages"])["messages"].to_pylist()
    ]
    assert len(rows) > 3000
    assert all(asked["content"].count(answer["content"]) for asked, answer in rows)


@pytest.mark.parametrize("blank", [True, False], ids=["SentencePiece", "bytes"])
def test_earlier_features_are_gone_on_with_only_where_they_were_counted_alike(blank, vicuna, tmp_path):
    model = vicuna
    if not blank:
        model = tmp_path / "model"
        MAKERS["llava"](model)
    settings = ExtractorConfig(model=str(model), dtype="float32")
    features = tmp_path / "out" / "features"
    (features / earlier_id(settings)).mkdir(parents=True)
    (features / earlier_id(settings) / "extractor.json").write_text("{}")
    source = SourceConfig(name="s", paths=[str(tmp_path / "rows.json")])
    config = JobConfig(corpus=CorpusConfig(sources=[source]), extractor=settings, output=str(tmp_path / "out"))
    open_store(config, Console())
    assert len(list(features.iterdir())) == (2 if blank else 1)
