"""A checkpoint as it is found: what it is called by, how it gets here, and what of it is believed."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import ImagePlaceholder, ImageRef, Sample, Turn
from scalselect_ray.errors import ModelError
from scalselect_ray.testing.checkpoints import qwen2_vl
from scalselect_ray.vlm import open_checkpoint
from scalselect_ray.vlm.representer import Representer, description_of, id_of, make_preparer, preparing_of, slow_on_cpu

MODEL = GOLDEN / "llava" / "model"
pytestmark = pytest.mark.heavy


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


def test_preparing_is_the_same_with_other_weights(model):
    extractor = ExtractorConfig(model=str(model))
    before = preparing_of(extractor), id_of(description_of(extractor))
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert preparing_of(extractor) == before[0]
    assert id_of(description_of(extractor)) != before[1]


def changed(model: Path, name: str, path: str, value: object) -> ExtractorConfig:
    """The model with one value of one of its files changed; `path` is dotted."""
    document = json.loads((model / name).read_text())
    holder = document
    *above, last = path.split(".")
    for key in above:
        holder = holder[key]
    holder[last] = value
    (model / name).write_text(json.dumps(document))
    return ExtractorConfig(model=str(model), dtype="float32")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("config.json", "model_type", ["llava"]),
        ("config.json", "text_config", None),
        ("config.json", "text_config", "x"),
        ("config.json", "text_config.num_hidden_layers", 10**9),
        ("config.json", "vision_config.num_hidden_layers", 10**9),
        ("config.json", "text_config.hidden_size", 10**9),
        ("config.json", "text_config.vocab_size", 10**12),
        ("config.json", "text_config.num_attention_heads", 0),
        ("config.json", "text_config.max_position_embeddings", "many"),
        ("config.json", "vision_config.patch_size", 0),
        ("config.json", "vision_config.image_size", 10**9),
        ("config.json", "num_labels", 10**9),
        ("processor_config.json", "patch_size", 0),
        ("processor_config.json", "num_additional_image_tokens", 10**9),
        ("processor_config.json", "image_processor.size.shortest_edge", -1),
        ("processor_config.json", "image_processor.crop_size.height", 10**9),
        ("processor_config.json", "image_processor.image_mean", 3),
        ("processor_config.json", "image_processor.image_std", ["", "", ""]),
        ("tokenizer.json", "model", {}),
        ("tokenizer.json", "added_tokens", [{"id": -1}]),
        ("tokenizer_config.json", "tokenizer_class", 7),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_name_of_the_model(name, path, value, model):
    extractor = changed(model, name, path, value)
    with pytest.raises(ModelError, match=re.escape(str(model))):
        Representer(extractor)


@pytest.mark.parametrize("holder", ["", "text_config.", "vision_config."])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_the_attention_that_a_config_asks_for_is_ignored(holder, key, model):
    expected = Representer(ExtractorConfig(model=str(MODEL), dtype="float32"))
    found = Representer(changed(model, "config.json", f"{holder}{key}", "flash_attention_2"))
    sample = Sample(0, None, (Turn("user", (ImagePlaceholder(0), "What?")), Turn("assistant", ("A",))), (red(),))
    (one,), (other,) = expected([sample]), found([sample])
    assert np.array_equal(one.feature, other.feature)


def red() -> ImageRef:
    sink = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(sink, "PNG")
    return ImageRef("red", data=sink.getvalue())


def test_least_pixels_above_the_most_are_refused(tmp_path):
    qwen2_vl(tmp_path / "qwen")  # its own bounds are 56 * 56 and 112 * 112
    for bounds in ({"min_pixels": 5000, "max_pixels": 4000}, {"min_pixels": 20_000}, {"max_pixels": 3000}):
        with pytest.raises(ModelError, match="min_pixels to be above 0 and at most max_pixels"):
            make_preparer(ExtractorConfig(model=str(tmp_path / "qwen"), **bounds))
    make_preparer(ExtractorConfig(model=str(tmp_path / "qwen"), min_pixels=4000, max_pixels=4000))


def test_a_template_that_fails_is_refused_before_any_sample(model):
    (model / "chat_template.jinja").write_text("{{ raise_exception('no conversation is good enough') }}")
    with pytest.raises(ModelError, match="no conversation is good enough"):
        make_preparer(ExtractorConfig(model=str(model)))


def test_a_limit_that_the_made_up_sample_exceeds_refuses_nothing(model):
    assert make_preparer(ExtractorConfig(model=str(model), max_length=2)).made_up() is None


@pytest.mark.parametrize("name", ["./nope", "../nope", "~/nope", "nope", "/nope/at/all", "a/b/c"])
def test_what_is_written_as_a_path_is_no_hub_id(name):
    with pytest.raises(ModelError, match=f"no such folder: {re.escape(name)}"):
        open_checkpoint(name)


def test_a_folder_by_a_relative_path_or_of_the_home_folder_is_found(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("HOME", str(model.parent))
    for name in ("./model", "model", f"../{model.parent.name}/model", "~/model"):
        assert open_checkpoint(name).folder == model


@pytest.mark.parametrize("lacks", ["model.safetensors", "tokenizer.json", "config.json"])
def test_an_incomplete_cache_of_the_hub_is_told_from_a_wrong_model(lacks, tmp_path, monkeypatch):
    """As an interrupted download leaves it: links to blobs, of which one is not there."""
    repository = tmp_path / "models--owner--some-model"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in MODEL.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(blobs / path.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    extractor = ExtractorConfig(model="owner/some-model")

    def opened(extractor: ExtractorConfig) -> None:
        make_preparer(extractor)
        description_of(extractor)

    opened(extractor)
    (blobs / lacks).unlink()
    for _ in range(2):  # with a link that leads nowhere, and without one
        with pytest.raises(ModelError, match="incomplete: hf download owner/some-model"):
            opened(extractor)
        (snapshot / lacks).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "origin", "twin"),
    [
        ("Qwen2.5-VL-7B-Instruct-AWQ", None, "Qwen2.5-VL-7B-Instruct"),
        ("Qwen2-VL-7B-Instruct-GPTQ-Int4", None, "Qwen2-VL-7B-Instruct"),
        ("llava-1.5-7b-hf-bnb-4bit", None, "llava-1.5-7b-hf"),
        ("Qwen2.5-VL-3B-Instruct-unsloth-bnb-4bit", None, "Qwen2.5-VL-3B-Instruct"),
        ("Qwen3-VL-8B-Instruct-FP8", None, "Qwen3-VL-8B-Instruct"),
        ("model", "Qwen/Qwen2-VL-7B-Instruct-AWQ", "Qwen/Qwen2-VL-7B-Instruct"),
        ("model", None, None),
    ],
)
def test_a_quantised_checkpoint_is_refused_with_its_twin(name, origin, twin, model):
    changed(model, "config.json", "quantization_config", {"quant_method": "awq"})
    changed(model, "config.json", "_name_or_path", origin)
    model.rename(model.parent / name)
    with pytest.raises(ModelError, match="quantization_config") as raised:
        open_checkpoint(str(model.parent / name))
    assert str(raised.value).endswith(f"it was made of, {twin}" if twin else "it was made of")


def test_float16_on_a_cpu_is_said():
    assert "bfloat16" in slow_on_cpu(ExtractorConfig(model="x", dtype="float16"))
    assert slow_on_cpu(ExtractorConfig(model="x")) is None
