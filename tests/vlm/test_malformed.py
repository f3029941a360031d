"""Model folders that cannot be used: each is refused before anything is paid, with the file and what to do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.errors import ModelError
from scalselect_ray.vlm.representer import description_of, make_preparer, try_model

pytestmark = pytest.mark.heavy
Damage = Callable[[Path], object]


def written(name: str, content: str | bytes) -> Damage:
    return lambda model: (model / name).write_bytes(content.encode() if isinstance(content, str) else content)


def gone(*names: str) -> Damage:
    return lambda model: [(model / name).unlink() for name in names]


def cut(name: str, share: float) -> Damage:
    def damage(model: Path) -> None:
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[: int(len(content) * share)])

    return damage


def linked(name: str, target: str) -> Damage:
    def damage(model: Path) -> None:
        (model / name).unlink()
        (model / name).symlink_to(target)

    return damage


def piped(name: str) -> Damage:
    def damage(model: Path) -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    return damage


def folder(name: str) -> Damage:
    def damage(model: Path) -> None:
        (model / name).unlink()
        (model / name).mkdir()

    return damage


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(model: Path) -> None:
        document = json.loads((model / name).read_text())
        change(document)
        (model / name).write_text(json.dumps(document))

    return damage


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        change(tensors)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})

    return damage


def sharded(index: object) -> Damage:
    def damage(model: Path) -> None:
        (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def looped(model: Path) -> None:
    shutil.rmtree(model)
    model.symlink_to(model)


def of_a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.write_bytes(b"{}")


LAYER = "language_model.model.layers.0."
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "the folder links to itself": (looped, "model"),
    "the folder is a file": (of_a_file, "model"),
    "no config": (gone("config.json"), "config.json"),
    "an empty config": (written("config.json", ""), "config.json"),
    "a config that is cut": (cut("config.json", 0.5), "config.json"),
    "a config that is a list": (written("config.json", "[1]"), "config.json"),
    "a config that is null": (written("config.json", "null"), "config.json"),
    "a config in another encoding": (written("config.json", b"\xff\xfe\x00{"), "config.json"),
    "a config that is a folder": (folder("config.json"), "config.json"),
    "a config that links to itself": (linked("config.json", "config.json"), "config.json"),
    "a config that is a pipe": (piped("config.json"), "config.json"),
    "deep nesting": (written("config.json", '{"model_type": ' + "[" * 100_000), "config.json"),
    "no model type": (edited("config.json", lambda at: at.pop("model_type")), "model_type"),
    "an unknown model type": (edited("config.json", lambda at: at.update(model_type="flava2")), "flava2"),
    "a text model": (edited("config.json", lambda at: at.update(model_type="llama")), "llama"),
    "no text config": (edited("config.json", lambda at: at.pop("text_config")), "config.json"),
    "a vision config that is a list": (edited("config.json", lambda at: at.update(vision_config=[])), "config.json"),
    "an image token beyond the vocabulary": (
        edited("config.json", lambda at: at.update(image_token_index=10**6)),
        "image_token",
    ),
    "quantised": (
        edited("config.json", lambda at: at.update(quantization_config={"quant_method": "awq", "bits": 4})),
        "quantization_config",
    ),
    "quantised text": (
        edited("config.json", lambda at: at["text_config"].update(quantization_config={"quant_method": "fp8"})),
        "quantization_config",
    ),
    "the format of the LLaVA project": (
        written("config.json", '{"model_type": "llava_llama", "mm_vision_tower": "x", "hidden_size": 5120}'),
        "llava-hf/llava-1.5-13b-hf",
    ),
    "a flat config of LLaVA": (
        written("config.json", '{"model_type": "llava", "mm_hidden_size": 1024, "image_aspect_ratio": "anyres"}'),
        "llava-hf/llava-v1.6-vicuna-7b-hf",
    ),
    "an adapter alone": (
        lambda model: (model / "config.json").rename(model / "adapter_config.json"),
        "merge_and_unload",
    ),
    "no weights": (gone("model.safetensors"), "model.safetensors"),
    "pickled weights": (pickled, "pytorch_model.bin"),
    "empty weights": (written("model.safetensors", b""), "model.safetensors"),
    "weights that are cut": (cut("model.safetensors", 0.9), "model.safetensors"),
    "weights of zeros": (written("model.safetensors", bytes(1 << 16)), "model.safetensors"),
    "a pointer in the place of weights": (
        written("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "model.safetensors",
    ),
    "weights that link to nothing": (linked("model.safetensors", "../blobs/4711"), "model.safetensors"),
    "weights that are a pipe": (piped("model.safetensors"), "model.safetensors"),
    "a tensor that is missing": (
        with_tensors(lambda at: at.pop(f"{LAYER}self_attn.q_proj.weight")),
        "q_proj",
    ),
    "tensors of other names": (
        with_tensors(lambda at: [at.__setitem__(f"x.{name}", at.pop(name)) for name in list(at)]),
        "tensors",
    ),
    "a tensor of another shape": (
        with_tensors(
            lambda at: at.__setitem__(f"{LAYER}self_attn.q_proj.weight", torch.zeros(64, 65)),
        ),
        "q_proj",
    ),
    "a tensor of whole numbers": (
        with_tensors(
            lambda at: at.__setitem__(f"{LAYER}mlp.up_proj.weight", torch.zeros(128, 64, dtype=torch.int8)),
        ),
        "up_proj",
    ),
    "an index that is a list": (sharded([]), "model.safetensors.index.json"),
    "an index of a file that is not there": (
        sharded({"weight_map": {"a": "model-00002-of-00002.safetensors"}}),
        "model-00002-of-00002.safetensors",
    ),
    "an index that leads elsewhere": (sharded({"weight_map": {"a": "../x.safetensors"}}), "index.json"),
    "no tokenizer": (gone("tokenizer.json"), "tokenizer"),
    "a tokenizer that is cut": (cut("tokenizer.json", 0.7), "tokenizer.json"),
    "a tokenizer that is a list": (written("tokenizer.json", "[]"), "tokenizer.json"),
    "a tokenizer that is a pipe": (piped("tokenizer.json"), "tokenizer.json"),
    "a tokenizer config that is a list": (written("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "a tokenizer without the image token": (
        edited(
            "tokenizer.json",
            lambda at: at.update(added_tokens=[item for item in at["added_tokens"] if item["content"] != "<image>"]),
        ),
        "<image>",
    ),
    "a processor config that is a list": (written("processor_config.json", "[]"), "processor_config.json"),
    "a processor config that is cut": (cut("processor_config.json", 0.5), "processor_config.json"),
    "a processor config that is a text": (written("processor_config.json", '"x"'), "processor_config.json"),
    "no image processor": (
        edited("processor_config.json", lambda at: at.pop("image_processor")),
        "preprocessor_config.json",
    ),
    "another patch size": (edited("processor_config.json", lambda at: at.update(patch_size=28)), "patch_size"),
    "another patch size of the model": (
        edited("config.json", lambda at: at["vision_config"].update(image_size=56)),
        "config.json",
    ),
    "a template that does not end": (written("chat_template.jinja", LOOP), "chat_template.jinja"),
    "a template that raises": (written("chat_template.jinja", "{{ raise_exception('never') }}"), "never"),
    "a template that is none": (written("chat_template.jinja", "{% for %}"), "chat_template.jinja"),
    "a template in another encoding": (written("chat_template.jinja", b"\xff\xfe\x00"), "chat_template.jinja"),
    "a template without the texts": (written("chat_template.jinja", "USER: <image> ASSISTANT:"), "chat_template.jinja"),
    "a template without the image": (
        written(
            "chat_template.jinja",
            "{% for m in messages %}{% for c in m.content %}{{ c.text }} {% endfor %}{% endfor %}",
        ),
        "chat_template.jinja",
    ),
    "a template that is a pipe": (piped("chat_template.jinja"), "chat_template.jinja"),
    "templates that are a list": (
        lambda model: (gone("chat_template.jinja")(model), written("chat_template.json", "[]")(model)),
        "chat_template.json",
    ),
}


def opened(extractor: ExtractorConfig) -> None:
    """As a run opens its model."""
    preparer = make_preparer(extractor)
    description_of(extractor)
    try_model(extractor, preparer)


def test_the_folder_that_is_damaged_is_sound() -> None:
    opened(ExtractorConfig(model=str(GOLDEN / "llava" / "model"), dtype="float32"))


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.timeout(60)
def test_a_malformed_folder_is_refused_with_its_file(name: str, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    shutil.copytree(GOLDEN / "llava" / "model", tmp_path / "model")
    damage(tmp_path / "model")
    extractor = ExtractorConfig(model=str(tmp_path / "model"), dtype="float32")
    with pytest.raises(ModelError) as raised:
        opened(extractor)
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)
