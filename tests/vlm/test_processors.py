"""Folders in the layouts of before: what they lack is filled in, and samples are prepared as with the whole folder."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import ImagePlaceholder, Sample, Turn
from scalselect_ray.errors import ModelError
from scalselect_ray.testing.checkpoints import MAKERS
from scalselect_ray.vlm import Preparer
from scalselect_ray.vlm.processors import TEMPLATES
from scalselect_ray.vlm.representer import make_preparer, try_model

pytestmark = pytest.mark.heavy
LLAVA = ["llava", "llava_next", "llava_onevision"]
TURNS = (
    Turn("user", (ImagePlaceholder(0), "What is it?")),
    Turn("assistant", ("It is red.",)),
    Turn("user", ("And now?",)),
    Turn("assistant", ("It still is.",)),
)
TEXT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] | replace('<image>\n', '<image>\n') }} {% endfor "
    "%}"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "model"
            MAKERS[family](made[family])
        return made[family]

    return folder


def edit(path: Path, **values: object) -> None:
    document = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**document, **values}))


def drop(path: Path, *names: str) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in document.items() if name not in names}))


def old_layout(model: Path) -> None:
    """As it was before processors had a file of their own."""
    document = json.loads((model / "processor_config.json").read_text())
    edit(model / "preprocessor_config.json", **document["image_processor"])
    (model / "processor_config.json").unlink()


def template_in_tokenizer(model: Path) -> None:
    path = model / "chat_template.jinja"
    edit(model / "tokenizer_config.json", chat_template=path.read_text())
    path.unlink()


def template_in_json(model: Path) -> None:
    path = model / "chat_template.jinja"
    edit(model / "chat_template.json", chat_template=path.read_text())
    path.unlink()


LACKS = {
    "no processor config": old_layout,
    "no processor config, and the template in the tokenizer's": lambda at: (old_layout(at), template_in_tokenizer(at)),
    "no patch size": lambda at: drop(at / "processor_config.json", "patch_size"),
    "no number of image tokens": lambda at: drop(at / "processor_config.json", "num_image_tokens"),
    "no count of further tokens": lambda at: drop(at / "processor_config.json", "num_additional_image_tokens"),
    "no strategy": lambda at: drop(at / "processor_config.json", "vision_feature_select_strategy"),
    "null in the place of values": lambda at: edit(
        at / "processor_config.json", patch_size=None, vision_feature_select_strategy=None
    ),
    "the template in the tokenizer's config": template_in_tokenizer,
    "the template in a file of its own": template_in_json,
}


def prepared(preparer: Preparer) -> dict[str, np.ndarray]:
    answer = preparer(Sample(0, None, TURNS, ()), [Image.new("RGB", (120, 60), "red")])
    return {"ids": answer.input_ids, "query": answer.query, "vision": answer.vision, **answer.images}


@pytest.mark.parametrize("family", LLAVA)
@pytest.mark.parametrize("lack", LACKS)
def test_a_folder_that_lacks_what_its_config_says_is_as_the_whole_one(lack, family, whole, tmp_path):
    shutil.copytree(whole(family), tmp_path / "model")
    LACKS[lack](tmp_path / "model")
    expected, found = (
        prepared(make_preparer(ExtractorConfig(model=str(at)))) for at in (whole(family), tmp_path / "model")
    )
    for name in expected:
        assert np.array_equal(expected[name], found[name]), name


@pytest.mark.parametrize("family", LLAVA)
def test_a_folder_without_any_of_it_is_represented_and_says_what_was_filled_in(family, whole, tmp_path):
    shutil.copytree(whole(family), tmp_path / "model")
    old_layout(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    drop(tmp_path / "model" / "tokenizer_config.json", "chat_template")
    extractor = ExtractorConfig(model=str(tmp_path / "model"))
    preparer = make_preparer(extractor)
    name = "chatml" if family == "llava_onevision" else "mistral" if family == "llava_next" else "vicuna"
    assert any(f"the one named {name} is used" in line for line in preparer.filled)
    assert any("vision_feature_select_strategy" in line for line in preparer.filled)
    try_model(extractor, preparer)  # the vision tower makes as many features as there are image tokens


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_template_of_a_text_model_is_given_one_text(family, whole, tmp_path):
    shutil.copytree(whole(family), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    edit(tmp_path / "model" / "tokenizer_config.json", chat_template=TEXT_TEMPLATE)
    preparer = make_preparer(ExtractorConfig(model=str(tmp_path / "model")))
    image = "<image>\n" if family == "llava" else "<|vision_start|><|image_pad|><|vision_end|>"
    assert preparer._apply_template(TURNS) == (
        f"USER: {image}What is it? ASSISTANT: It is red. USER: And now? ASSISTANT: It still is. "
    )


def test_no_template_is_made_up_for_a_family_that_has_none(whole, tmp_path):
    shutil.copytree(whole("qwen2_vl"), tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    drop(tmp_path / "model" / "tokenizer_config.json", "chat_template")
    with pytest.raises(ModelError, match=r"no chat_template\.jinja, and no template in tokenizer_config\.json"):
        make_preparer(ExtractorConfig(model=str(tmp_path / "model")))


DIGESTS = {
    "vicuna": "1679c82298ee8068",
    "mistral": "b938dc57fadc3311",
    "chatml": "a6acf7e2abe05eb3",
    "paligemma": "a5e9113594e121e7",
}


def test_the_named_templates_never_change():
    """Features were made with them, and the id of an extractor does not hold their text."""
    digests = {name: hashlib.sha256(template.encode()).hexdigest()[:16] for name, template in TEMPLATES.items()}
    assert digests == DIGESTS


def test_a_tokenizer_that_is_a_sentencepiece_model_alone(whole, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(whole("llava"), model)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["USER: What is it? ASSISTANT: It is red."] * 20),
        model_writer=written,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    (model / "tokenizer.model").write_bytes(written.getvalue())
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    (model / "added_tokens.json").write_text(json.dumps({"<image>": len(pieces)}))
    edit(model / "config.json", image_token_index=len(pieces))
    ids = prepared(make_preparer(ExtractorConfig(model=str(model))))["ids"]
    text = ids[ids != len(pieces)].tolist()
    assert (ids == len(pieces)).sum() == 16
    assert "What is it?" in pieces.decode(text)
    assert len(text) < len(pieces.decode(text))  # pieces, and no bytes
