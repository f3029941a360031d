"""The checkpoint that the paper scores with, LLaVA before its tuning, from its three public parts: a language model
(Vicuna), a vision tower (CLIP) and the projector that was trained between them.

Nothing is computed but the rows of new tokens: every other tensor is copied, a few MB at a time, and keeps its dtype.
Parts that are published as pickles alone are read here, tensors and nothing else (`weights_only`); a run never opens
one."""

import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AddedToken, AutoConfig, AutoImageProcessor, AutoTokenizer, LlavaConfig, LlavaProcessor
from transformers import LlavaForConditionalGeneration as Llava

from scalselect_ray.config import is_hub_id
from scalselect_ray.console import Console
from scalselect_ray.errors import ModelError, OutputError, ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.vlm.checkpoint import check_tensors, open_checkpoint, own_values, tensors_in, weight_map
from scalselect_ray.vlm.families import Family
from scalselect_ray.vlm.model_folder import look_through, unreadable
from scalselect_ray.vlm.processors import TEMPLATES, load_processor

_ROWS = 64  # embeddings are padded to a multiple of it, as llava-hf does
_SHARD = 4 << 30  # bytes
_BLOCK = 1 << 24  # bytes
_MEAN_ROWS = 4096  # added up at a time
_WEIGHTS = "model.safetensors", "pytorch_model.bin"
_DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
_FLOATS = {name: dtype for dtype, name in _DTYPES.items()}
_CURE = "take a projector of LLaVA 1.5, such as liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"
_COUNTED = re.compile(r"(^|\.)(position_ids|inv_freq)$")  # buffers that older versions saved: they are computed
_OF_TEXT = re.compile(r"^(text_model|text_projection|visual_projection)\.|^logit_scale$")  # the other half of CLIP
_LAYERS = re.compile(r"(?:^|\.)(?:mm_projector\.([02])|multi_modal_projector\.linear_([12]))\.(weight|bias)$")
_PLACES = (  # how a name begins in the class of transformers; its part; how it begins there; as llava-hf has it
    ("model.language_model.", "llm", "model.", "language_model.model."),
    ("lm_head.", "llm", "lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision", "", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "projector", "", "multi_modal_projector."),
)
_GROWN = "model.language_model.embed_tokens.weight", "lm_head.weight"


class _Tensor(NamedTuple):
    """A tensor of a part, which is read when it is written."""

    dtype: str  # as safetensors has it
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[bytes]]

    @property
    def size(self) -> int:
        return _FLOATS[self.dtype].itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class _Trained:
    """How the projector was trained, as far as a config.json of the LLaVA project beside it says."""

    layer: int = -2
    strategy: str = "default"
    said: str = ""


def assemble_llava(llm: str, vision: str, projector: str, out: str, console: Console) -> dict[str, Any]:
    """Writes the checkpoint to the folder `out`, whole or not at all; returns what it holds. Raises ModelError where
    the parts cannot be used or do not fit together, OutputError."""
    target = _new_folder(out)
    llm_folder, vision_folder = _part_folder("--llm", llm), _part_folder("--vision", vision)
    file = Path(storage.absolute(projector))
    if not file.is_file():
        raise ModelError(
            f"--projector: no such file: {projector}; expected a projector that was trained, such as the "
            "mm_projector.bin of liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"
        )
    trained = _trained(file)
    if trained.said:
        console.note(f"the projector says that it was trained between {trained.said}")
    tokenizer = _tokenizer(llm_folder)
    config = _config(llm_folder, vision_folder, tokenizer, trained)
    tensors = _joined(
        config,
        {
            "llm": dict(_named(_tensors_of(llm_folder, console))),
            "vision": dict(_named(_tensors_of(vision_folder, console), "vision_model.")),
            "projector": _projector(file, console),
        },
        {"llm": str(llm_folder), "vision": str(vision_folder), "projector": str(file)},
    )
    processor = _processor(vision_folder, tokenizer, config)
    size = sum(tensor.size for tensor in tensors.values())
    with _written_whole(target, size) as folder:
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        _write(folder, tensors)
        checkpoint = open_checkpoint(str(folder))
        check_tensors(checkpoint)
        load_processor(checkpoint)
    console.note(f"{target}: LLaVA before its tuning, {len(tensors):,} tensors of {size:,} bytes")
    return {"model": str(target), "tensors": len(tensors), "bytes": size}


def _new_folder(out: str) -> Path:
    target = Path(storage.absolute(out))
    if not storage.is_local(out):
        raise OutputError(f"{out}: give a folder of this machine; what is there can be copied to a bucket afterwards")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is no folder: give a new one")
    if target.is_dir() and (there := sorted(path.name for path in target.iterdir())):
        raise OutputError(f"{target} holds files ({', '.join(there[:3])}): give a new folder")
    return target


def _part_folder(option: str, given: str) -> Path:
    folder = Path(storage.absolute(given))
    if not storage.is_local(given) or not folder.is_dir():
        cure = f": get it first, with hf download {given} --local-dir FOLDER" if is_hub_id(given) else ""
        raise ModelError(f"{option}: {given} is no folder of this machine{cure}")
    return folder


def _trained(file: Path) -> _Trained:
    path = file.with_name("config.json")
    try:
        said = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}; get that file again, or give the projector alone") from error
    if not isinstance(said, dict) or not any(str(key).startswith("mm_") for key in said):
        return _Trained()
    kind = said.get("mm_projector_type", "linear")
    if kind != "mlp2x_gelu":
        raise ModelError(f"{path}: mm_projector_type is {kind!r}; expected 'mlp2x_gelu', as LLaVA 1.5 has it: {_CURE}")
    if said.get("mm_use_im_start_end"):
        raise ModelError(f"{path}: mm_use_im_start_end: tokens around the pictures, which LLaVA 1.5 has not: {_CURE}")
    feature, layer = said.get("mm_vision_select_feature", "patch"), said.get("mm_vision_select_layer", -2)
    strategies = {"patch": "default", "cls_patch": "full"}
    if feature not in strategies or not isinstance(layer, int):
        raise ModelError(
            f"{path}: mm_vision_select_feature is {feature!r} and mm_vision_select_layer {layer!r}; "
            f"expected one of {', '.join(strategies)}, and a number: {_CURE}"
        )
    names = [str(said[key]) for key in ("_name_or_path", "mm_vision_tower") if said.get(key)]
    return _Trained(layer, strategies[feature], " and ".join(names))


def _tokenizer(folder: Path) -> Any:
    """The language model's, with the tokens that llava-hf adds."""
    try:
        with own_values(f"{folder}: the tokenizer cannot be loaded"):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            tokenizer.add_tokens(AddedToken("<image>", special=True, normalized=False), special_tokens=True)
            if "<|im_start|>" not in tokenizer.get_vocab():  # a tokenizer of Qwen pads with a token of its own
                tokenizer.add_special_tokens({"pad_token": "<pad>"})
            tokenizer.chat_template = None  # the processor has it
    except ModelError as error:
        raise ModelError(f"{error}{unreadable(folder)}") from error.__cause__
    return tokenizer


def _config(llm: Path, vision: Path, tokenizer: Any, trained: _Trained) -> LlavaConfig:
    text = _part_config(llm, "--llm", "a language model, such as lmsys/vicuna-7b-v1.5")
    tower = _part_config(vision, "--vision", "a CLIP, such as openai/clip-vit-large-patch14-336")
    if hasattr(text, "text_config") or hasattr(text, "vision_config") or not hasattr(text, "vocab_size"):
        raise ModelError(
            f"--llm: {llm}: config.json describes no language model but {text.model_type}: take one that "
            "has not seen pictures yet, such as lmsys/vicuna-7b-v1.5"
        )
    tower = getattr(tower, "vision_config", tower)
    if tower.model_type != "clip_vision_model":
        raise ModelError(
            f"--vision: {vision}: config.json describes {tower.model_type}; expected clip or "
            "clip_vision_model, such as openai/clip-vit-large-patch14-336"
        )
    with own_values(f"{llm} and {vision}: config.json cannot be used"):
        rows = max(text.vocab_size, -(-len(tokenizer) // _ROWS) * _ROWS if len(tokenizer) > text.vocab_size else 0)
        text.vocab_size, text.pad_token_id = rows, tokenizer.pad_token_id
        for part in (text, tower):
            part.name_or_path = ""
        config = LlavaConfig(
            text_config=text,
            vision_config=tower,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=(tower.image_size // tower.patch_size) ** 2 + (trained.strategy == "full"),
            vision_feature_layer=trained.layer,
            vision_feature_select_strategy=trained.strategy,
        )
        config.architectures, config.dtype, config.pad_token_id = [Llava.__name__], text.dtype, tokenizer.pad_token_id
    return config


def _part_config(folder: Path, option: str, expected: str) -> Any:
    said = look_through(folder, f"{option}: {folder}")
    if any(str(key).startswith("mm_") for key in said):
        raise ModelError(f"{option}: {folder}: config.json describes a whole LLaVA; expected {expected}")
    with own_values(f"{option}: {folder}: config.json cannot be used"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _processor(vision: Path, tokenizer: Any, config: LlavaConfig) -> Any:
    if not (vision / "preprocessor_config.json").is_file() and not (vision / "processor_config.json").is_file():
        raise ModelError(f"--vision: {vision}: no preprocessor_config.json: copy it there from the published CLIP")
    with own_values(f"--vision: {vision}: the image processor cannot be loaded"):
        images = AutoImageProcessor.from_pretrained(vision, local_files_only=True, trust_remote_code=False)
        side = (getattr(images, "crop_size", None) or images.size).get("height")
        if side != config.vision_config.image_size:
            raise ModelError(
                f"--vision: {vision}: preprocessor_config.json makes pictures of {side} pixels, but the "
                f"tower takes {config.vision_config.image_size}: take both from one checkpoint"
            )
        family = Family()
        template = family.template_name(config, tokenizer) or "vicuna"
        return LlavaProcessor(images, tokenizer, chat_template=TEMPLATES[template], **family.processor_values(config))


def _tensors_of(folder: Path, console: Console) -> Iterator[tuple[str, _Tensor]]:
    """All tensors of a part: of safetensors where there are any, else of pickles."""
    for weights in _WEIGHTS:
        files = sorted(set(weight_map(folder, weights).values())) or [weights]
        if not any((folder / name).exists() for name in files):
            continue
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise ModelError(f"{folder}: {missing[0]} is missing, which its index names: get the checkpoint again")
        for name in files:
            yield from _tensors_in(folder / name, console)
        return
    raise ModelError(f"{folder}: neither {' nor '.join(_WEIGHTS)}, nor an index of shards: get the weights as well")


def _tensors_in(path: Path, console: Console) -> Iterator[tuple[str, _Tensor]]:
    if path.suffix == ".safetensors":
        for stored in tensors_in(path):
            if stored.dtype not in _FLOATS and not _COUNTED.search(stored.name):
                raise ModelError(_quantised(path, stored.name, stored.dtype))
            yield stored.name, _Tensor(stored.dtype, tuple(stored.shape), stored.blocks)
        return
    console.note(f"{path} is a pickle: tensors are read from it, and nothing else")
    for name, tensor in _unpickled(path).items():
        if tensor.dtype not in _DTYPES and not _COUNTED.search(name):
            raise ModelError(_quantised(path, name, str(tensor.dtype)))
        dtype = _DTYPES.get(tensor.dtype, str(tensor.dtype))
        yield name, _Tensor(dtype, tuple(tensor.shape), partial(_blocks, tensor))


def _quantised(path: Path, name: str, dtype: str) -> str:
    return (
        f"{path}: {name} is {dtype}, expected one of {', '.join(_FLOATS)}: quantised weights are not read; use the "
        "unquantised checkpoint"
    )


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, which stay in the file until they are read."""
    # The public projectors (and Vicuna) are published as pickles alone. `weights_only` unpickles tensors and plain
    # values and refuses all else, so nothing in the file can run; a run never comes here, it reads safetensors only.
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # of pickles that are cut, are none, or hold what could run
        raise ModelError(
            f"{path}: it is damaged, or holds other things than tensors, which are never opened: get it again, or as "
            f"safetensors ({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})"
        ) from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise ModelError(f"{path}: expected tensors by their names, found {type(loaded).__name__} of other things")
    return dict(loaded)


def _blocks(tensor: torch.Tensor) -> Iterator[bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    step = _BLOCK // flat.itemsize
    for start in range(0, len(flat), step):
        yield flat[start : start + step].view(torch.uint8).numpy().tobytes()


def _projector(file: Path, console: Console) -> dict[str, _Tensor]:
    found = dict(_tensors_in(file, console))
    named = {}
    for name, tensor in found.items():
        if (match := _LAYERS.search(name)) is None:
            raise ModelError(
                f"{file}: holds {name}, which is no part of a projector of two layers "
                f"(mm_projector.0 and .2, each with weight and bias): {_CURE}"
            )
        number = 1 + int(match[1]) // 2 if match[1] else int(match[2])
        named[f"linear_{number}.{match[3]}"] = tensor
    if len(named) < len(found):
        raise ModelError(f"{file}: holds some tensors twice, under several names: {_CURE}")
    return named


def _named(tensors: Iterable[tuple[str, _Tensor]], prefix: str = "") -> Iterator[tuple[str, _Tensor]]:
    for name, tensor in tensors:
        if not _COUNTED.search(name) and not (prefix and _OF_TEXT.search(name)):
            yield name.removeprefix(prefix), tensor


def _joined(
    config: LlavaConfig, parts: Mapping[str, dict[str, _Tensor]], places: Mapping[str, str]
) -> dict[str, _Tensor]:
    """The tensors of the whole, by the names that llava-hf gives them. Raises ModelError where a part lacks one, or has
    one of another shape or for which the whole has no place."""
    with own_values("config.json of the parts cannot be used"), torch.device("meta"):
        wanted = {name: tuple(part.shape) for name, part in Llava(config).state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight")
        parts["llm"].pop("lm_head.weight", None)
    joined = {}
    for name, shape in wanted.items():
        prefix, part, there, here = next(place for place in _PLACES if name.startswith(place[0]))
        rest = name.removeprefix(prefix).removeprefix("vision_model.")
        theirs, ours = there + rest, here + rest
        tensor = parts[part].pop(theirs, None)
        if tensor is None:
            raise ModelError(f"--{part}: {places[part]}: no tensor {theirs}: is this a complete checkpoint?")
        if name in _GROWN and len(tensor.shape) == 2 and tensor.shape[0] < shape[0]:
            tensor = tensor._replace(shape=shape, blocks=partial(_grown, tensor, shape[0]))
        if tensor.shape != shape:
            raise ModelError(
                f"--{part}: {places[part]}: {theirs} is {list(tensor.shape)}, expected {list(shape)} by config.json"
                + (
                    " of the other parts: take the projector that was trained between these two"
                    if part == "projector"
                    else ": take both from one checkpoint"
                )
            )
        joined[ours] = tensor
    for part, left in parts.items():
        if left:
            raise ModelError(
                f"--{part}: {places[part]}: {len(left)} tensors have no place in the model that its "
                f"config.json describes, first {min(left)}: take both from one checkpoint"
            )
    return joined


def _grown(tensor: _Tensor, rows: int) -> Iterator[bytes]:
    """A table of embeddings with the mean of its rows for each new token: as llava-hf has it, without the noise that it
    adds, so that the same parts make the same checkpoint. The table alone is in memory as a whole."""
    table = bytearray()
    for block in tensor.blocks():
        table += block
        yield block
    rows_VE = torch.frombuffer(table, dtype=_FLOATS[tensor.dtype]).view(tensor.shape)
    total_E = torch.zeros(tensor.shape[1], dtype=torch.float64)
    for start in range(0, len(rows_VE), _MEAN_ROWS):
        total_E += rows_VE[start : start + _MEAN_ROWS].double().sum(dim=0)
    yield from _blocks((total_E / len(rows_VE)).to(rows_VE.dtype).expand(rows - len(rows_VE), -1))


@contextmanager
def _written_whole(target: Path, size: int) -> Iterator[Path]:
    """A folder beside the target, which takes its place at the end. Raises OutputError."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise OutputError(f"{target.parent} has {free:,} bytes free, and the checkpoint takes {size:,}")
        draft.mkdir()
        yield draft
        draft.replace(target)
    except ScalSelectError:
        raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(folder: Path, tensors: Mapping[str, _Tensor]) -> None:
    """Safetensors, in shards where they are large."""
    shards: list[dict[str, _Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(other.size for other in shards[-1].values()) + tensor.size > _SHARD:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        _write_shard(folder / "model.safetensors", shards[0])
        return
    files = {f"model-{number:05}-of-{len(shards):05}.safetensors": shard for number, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        _write_shard(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(tensor.size for tensor in tensors.values())},
        "weight_map": {name: file for file, shard in files.items() for name in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_shard(path: Path, tensors: Mapping[str, _Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, tensor in tensors.items():
        start, stop = stop, stop + tensor.size
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, stop]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)  # tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little") + said)
        for tensor in tensors.values():
            file.writelines(tensor.blocks())
