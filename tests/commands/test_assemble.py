"""LLaVA from its parts: what the classes of transformers make of them, and nothing where the parts do not fit."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from scalselect_ray.cli import main
from scalselect_ray.commands import assemble
from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import ImagePlaceholder, Sample, Turn
from scalselect_ray.testing.tokenizer import byte_tokenizer
from scalselect_ray.vlm.processors import TEMPLATES
from scalselect_ray.vlm.representer import make_extractor, make_preparer

pytestmark = pytest.mark.heavy

WIDTH, TOWER, WORDS = 32, 24, 258
CLIP = {"hidden_size": TOWER, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TURNS = (Turn("user", (ImagePlaceholder(0), "What is it?")), Turn("assistant", ("It is red.",)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts as they are published: pickles of a language model and of both halves of CLIP, and a projector."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    words = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(words).half().save_pretrained(folder / "llm", max_shard_size="40KB")
    byte_tokenizer(["<unk>", "</s>"], "").save_pretrained(folder / "llm")
    vision = CLIPVisionConfig(**CLIP, image_size=28, patch_size=14)
    text = CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    clip = CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=8))
    clip.save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "clip"
    )
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    (folder / "projector").mkdir()
    layers = {"0": torch.nn.Linear(TOWER, WIDTH), "2": torch.nn.Linear(WIDTH, WIDTH)}
    named = {f"model.mm_projector.{n}.{k}": v for n, layer in layers.items() for k, v in layer.state_dict().items()}
    torch.save({name: tensor.bfloat16() for name, tensor in named.items()}, folder / "projector" / "mm_projector.bin")
    return folder


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "parts"))


def typed(parts: Path, *more: str) -> list[str]:
    projector = str(parts / "projector" / "mm_projector.bin")
    named = ["--llm", str(parts / "llm"), "--vision", str(parts / "clip"), "--projector", projector]
    return ["assemble-llava", *named, str(parts / "out"), *more]


def as_pickles(folder: Path) -> None:
    """As Vicuna and CLIP are published: no safetensors, old buffers among the tensors."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)} if len(files) > 1 else {}
        buffers |= {} if buffers else {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
        torch.save(
            {**load_file(path), **buffers},
            path.with_name(path.name.replace("model", "pytorch_model", 1)).with_suffix(".bin"),
        )
        path.unlink()
    if index.is_file():
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


def by_transformers(parts: Path) -> LlavaForConditionalGeneration:
    """The whole in memory, by the classes of transformers: rows of new tokens are the mean of the others."""
    llm = LlamaForCausalLM.from_pretrained(parts / "llm", dtype=torch.float32)
    clip = CLIPModel.from_pretrained(parts / "clip", dtype=torch.float32)
    llm.config.vocab_size = 320
    config = LlavaConfig(text_config=llm.config, vision_config=clip.config.vision_config, image_token_index=258)
    whole = LlavaForConditionalGeneration(config).eval()
    for ours, theirs in (
        (whole.model.language_model.embed_tokens, llm.model.embed_tokens),
        (whole.lm_head, llm.lm_head),
    ):
        rows = theirs.weight.data
        mean = rows.double().mean(dim=0).half().float()
        theirs.weight = torch.nn.Parameter(torch.cat([rows, mean.expand(320 - len(rows), -1)]))
        ours.weight = theirs.weight
    whole.model.language_model.load_state_dict(llm.model.state_dict())
    whole.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    projector = torch.load(parts / "projector" / "mm_projector.bin", weights_only=True)
    names = {"model.mm_projector.0": "linear_1", "model.mm_projector.2": "linear_2"}
    state = {names[name.rpartition(".")[0]] + "." + name.rpartition(".")[2]: part for name, part in projector.items()}
    whole.model.multi_modal_projector.load_state_dict(state)
    return whole


@pytest.mark.parametrize("pickles", [(), ("llm",), ("llm", "clip")], ids=str)
def test_it_is_what_transformers_makes_of_the_same_parts(pickles, parts, monkeypatch, capsys):
    expected = by_transformers(parts)
    for part in pickles:
        as_pickles(parts / part)
    monkeypatch.setattr(assemble, "_SHARD", 30_000)
    assert main(typed(parts, "--json")) == 0
    said = capsys.readouterr()
    pickled = [path for part in ("projector", *pickles) for path in (parts / part).glob("*.bin")]
    assert " ".join(said.err.split()).count("is a pickle") == len(pickled)
    out = Path(json.loads(said.out)["model"])
    assert out == parts / "out"
    assert len(list(out.glob("*.safetensors"))) > 3

    found, loading = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    processor = AutoProcessor.from_pretrained(out)
    assert isinstance(processor, LlavaProcessor)
    assert processor.chat_template == TEMPLATES["vicuna"]
    assert (processor.image_token_id, processor.tokenizer.pad_token_id) == (258, 259)
    picture = Image.new("RGB", (40, 30), "red")
    inputs = processor(text=["USER: <image>\nWhat is it? ASSISTANT: It is red."], images=[picture], return_tensors="pt")
    assert (inputs["input_ids"] == 258).sum() == 4
    with torch.inference_mode():
        assert torch.equal(found.eval()(**inputs).logits, expected(**inputs).logits)


def test_a_run_can_open_it_and_nothing_of_it_is_filled_in(parts):
    assert main(typed(parts)) == 0
    extractor = ExtractorConfig(model=str(parts / "out"), dtype="float32")
    preparer = make_preparer(extractor)
    assert preparer.filled == []
    sample = preparer(Sample(0, None, TURNS, ()), [Image.new("RGB", (40, 30), "red")])
    (answer,) = make_extractor(extractor)([sample])
    assert answer.num_vision_tokens == 4
    assert answer.feature.shape == (WIDTH,)


def test_a_tokenizer_that_is_a_sentencepiece_model_alone_as_vicuna_has_it(parts):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["USER: What is it? ASSISTANT: It is red."] * 20),
        model_writer=written,
        vocab_size=WORDS,
        model_type="bpe",
        minloglevel=2,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    assert len(pieces) < WORDS
    for path in (parts / "llm").glob("tokenizer*"):
        path.unlink()
    (parts / "llm" / "tokenizer.model").write_bytes(written.getvalue())
    said = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "pad_token": "<unk>"}
    (parts / "llm" / "tokenizer_config.json").write_text(json.dumps(said))
    assert main(typed(parts)) == 0
    sample = make_preparer(ExtractorConfig(model=str(parts / "out")))(
        Sample(0, None, TURNS, ()), [Image.new("RGB", (40, 30), "red")]
    )
    ids = sample.input_ids
    assert (ids == len(pieces)).sum() == sample.vision.sum() == 4
    before, after = (part[part != len(pieces)] for part in np.split(ids, [int(np.argmax(ids == len(pieces)))]))
    assert before.tolist() == [pieces.bos_id(), *pieces.encode("USER: ")]
    assert pieces.decode(after.tolist()).strip() == "What is it? ASSISTANT: It is red."
    assert json.loads((parts / "out" / "config.json").read_text())["image_token_index"] == len(pieces)


def test_the_same_parts_make_the_same_bytes(parts):
    def content() -> dict[str, bytes]:
        assert main(typed(parts)) == 0
        found = {path.name: path.read_bytes() for path in (parts / "out").iterdir()}
        shutil.rmtree(parts / "out")
        return found

    assert content() == content()


def test_each_tensor_keeps_its_dtype(parts):
    assert main(typed(parts)) == 0
    tensors = load_file(parts / "out" / "model.safetensors")
    kinds = {"language_model": torch.float16, "vision_tower": torch.float32, "multi_modal_projector": torch.bfloat16}
    assert {name.partition(".")[0] for name in tensors} == set(kinds)
    assert all(tensor.dtype == kinds[name.partition(".")[0]] for name, tensor in tensors.items())


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def projector(parts: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = parts / "projector" / "mm_projector.bin"
    torch.save(change(torch.load(path, weights_only=True)), path)


class Runs:
    """Would make a file if it were opened as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a projector of one layer": (
        lambda parts: projector(parts, lambda _: {"model.mm_projector.weight": torch.ones(WIDTH, TOWER)}),
        "no part of a projector of two layers",
    ),
    "a projector of another tower": (
        lambda parts: projector(parts, lambda made: made | {"model.mm_projector.0.weight": torch.ones(WIDTH, 7)}),
        "trained between these two",
    ),
    "a projector without a bias": (
        lambda parts: projector(parts, lambda made: {k: v for k, v in made.items() if k.endswith("weight")}),
        "no tensor linear_1.bias",
    ),
    "a projector that would run": (
        lambda parts: projector(parts, lambda made: made | {"x": Runs(parts / "ran")}),
        "other things than tensors",
    ),
    "an old pickle that would run": (
        lambda parts: (parts / "projector" / "mm_projector.bin").write_bytes(pickle.dumps(Runs(parts / "ran"))),
        "other things than tensors",
    ),
    "a projector that is cut": (
        lambda parts: (parts / "projector" / "mm_projector.bin").write_bytes(b"PK\x03\x04 and no more"),
        "damaged",
    ),
    "an empty projector": (lambda parts: projector(parts, lambda _: {}), "no tensor linear_1"),
    "a list": (lambda parts: projector(parts, lambda made: list(made.values())), "found list of other things"),
    "a projector of LLaVA 1.0, as it says": (
        lambda parts: (parts / "projector" / "config.json").write_text('{"mm_projector_type": "linear"}'),
        "mm_projector_type is 'linear'",
    ),
    "no projector": (lambda parts: (parts / "projector" / "mm_projector.bin").unlink(), "no such file"),
    "no language model": (lambda parts: shutil.rmtree(parts / "llm"), "is no folder of this machine"),
    "no config": (lambda parts: (parts / "llm" / "config.json").unlink(), "no config.json"),
    "no weights": (
        lambda parts: [path.unlink() for path in (parts / "llm").glob("model*")],
        "neither model.safetensors nor pytorch_model.bin",
    ),
    "a shard is missing": (
        lambda parts: min((parts / "llm").glob("*.safetensors")).unlink(),
        "is missing, which its index names",
    ),
    "an index that leads out": (
        lambda parts: edit(parts / "llm" / "model.safetensors.index.json", weight_map={"a": "../x.safetensors"}),
        "names a file outside",
    ),
    "a tensor is missing": (
        lambda parts: save_file({"logit_scale": torch.ones(1)}, parts / "clip" / "model.safetensors"),
        "is this a complete checkpoint?",
    ),
    "a tensor too many": (
        lambda parts: _add(parts / "clip" / "model.safetensors", "vision_model.extra"),
        "have no place in the model",
    ),
    "quantised": (
        lambda parts: edit(parts / "llm" / "config.json", quantization_config={"quant_method": "awq"}),
        "awq",
    ),
    "integers": (lambda parts: _as_integers(parts / "clip" / "model.safetensors"), "quantised weights are not read"),
    "a LLaVA for the language model": (
        lambda parts: edit(parts / "llm" / "config.json", model_type="llava_llama", mm_vision_tower="x"),
        "describes a whole LLaVA",
    ),
    "a tower for the language model": (
        lambda parts: shutil.copy(parts / "clip" / "config.json", parts / "llm" / "config.json"),
        "describes no language model",
    ),
    "a language model for the tower": (
        lambda parts: shutil.copy(parts / "llm" / "config.json", parts / "clip" / "config.json"),
        "expected clip",
    ),
    "pictures of another size": (
        lambda parts: edit(
            parts / "clip" / "preprocessor_config.json",
            size={"shortest_edge": 56},
            crop_size={"height": 56, "width": 56},
        ),
        "makes pictures of 56 pixels, but the tower takes 28",
    ),
    "no image processor": (
        lambda parts: (parts / "clip" / "preprocessor_config.json").unlink(),
        "no preprocessor_config.json",
    ),
    "no tokenizer": (
        lambda parts: [path.unlink() for path in (parts / "llm").glob("tokenizer*")],
        "tokenizer",
    ),
    "a tokenizer that is none": (
        lambda parts: (parts / "llm" / "tokenizer.json").write_text("[]"),
        "tokenizer.json is a JSON array",
    ),
}


def _add(path: Path, name: str) -> None:
    save_file({**load_file(path), name: torch.ones(1)}, path)


def _as_integers(path: Path) -> None:
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("kind", BROKEN)
def test_parts_that_do_not_fit_are_exit_2_and_nothing_is_left(kind, parts, capsys):
    change, words = BROKEN[kind]
    change(parts)
    before = sorted(parts.iterdir())
    assert main(typed(parts)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said
    assert "Traceback" not in said
    assert str(parts) in said
    assert sorted(parts.iterdir()) == before, "neither a folder, nor what a pickle would have made"


def test_a_hub_id_is_told_how_it_is_had(parts, capsys):
    arguments = typed(parts)
    arguments[arguments.index("--llm") + 1] = "lmsys/vicuna-7b-v1.5"
    assert main(arguments) == 2
    assert "hf download lmsys/vicuna-7b-v1.5" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("there", ["file", "folder with a file", "bucket"])
def test_a_place_with_other_things_is_refused_and_left(there, parts, capsys):
    out = parts / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "folder with a file":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    arguments = typed(parts)
    if there == "bucket":
        arguments[-1] = "s3://bucket/out"
    before = sorted(parts.rglob("*"))
    assert main(arguments) == 2
    assert "folder" in capsys.readouterr().err
    assert sorted(parts.rglob("*")) == before


def test_an_empty_folder_is_taken(parts):
    (parts / "out").mkdir()
    assert main(typed(parts)) == 0
    assert (parts / "out" / "config.json").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_nothing_is_left_when_it_is_broken_off(error, parts, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(assemble, "check_tensors", fail)
    before = sorted(parts.iterdir())
    assert main(typed(parts)) == (2 if isinstance(error, OSError) else 130)
    assert sorted(parts.iterdir()) == before


def test_what_the_projector_says_of_its_training_is_taken(parts, capsys):
    said = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}
    said |= {"mm_vision_tower": "openai/some-clip", "_name_or_path": "lmsys/some-vicuna"}
    (parts / "projector" / "config.json").write_text(json.dumps(said))
    assert main(typed(parts)) == 0
    assert "trained between lmsys/some-vicuna and openai/some-clip" in " ".join(capsys.readouterr().err.split())
    config = json.loads((parts / "out" / "config.json").read_text())
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-1, "full")
    sample = make_preparer(ExtractorConfig(model=str(parts / "out"))).made_up()
    assert sample is not None
    assert sample.vision.sum() == 5, "with the class token"


def test_a_tower_alone_and_a_projector_of_transformers_are_read(parts):
    assert main(typed(parts)) == 0
    expected = load_file(parts / "out" / "model.safetensors")
    shutil.rmtree(parts / "out")
    shutil.copy(parts / "clip" / "preprocessor_config.json", parts / "tower")
    tower = {name: part for name, part in expected.items() if name.startswith("vision_tower.")}
    save_file(
        {name.removeprefix("vision_tower."): part for name, part in tower.items()},
        parts / "tower" / "model.safetensors",
    )
    layers = {name: part for name, part in expected.items() if name.startswith("multi_modal_projector.")}
    save_file(layers, parts / "projector" / "layers.safetensors")
    arguments = typed(parts)
    arguments[arguments.index("--vision") + 1] = str(parts / "tower")
    arguments[arguments.index("--projector") + 1] = str(parts / "projector" / "layers.safetensors")
    assert main(arguments) == 0
    found = load_file(parts / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], part) for name, part in expected.items())
