"""The front of a VLM from its checkpoint: vision tower, projector, embeddings and the decoder layers up to the one that
is read, and nothing else.

Layer 0 is all that the method reads (paper section 3.2), so the text model is built with one layer and without its
head, and only the safetensors files (and in them only the tensors) that this front needs are fetched and read: about 1
GB of the 15 GB of a 7B model."""

import functools
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from scalselect_ray.config import is_hub_id
from scalselect_ray.errors import ModelError, NoAnswerError, ScalSelectError, StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.safetensors_header import read_header
from scalselect_ray.vlm import model_cache
from scalselect_ray.vlm.families import Family
from scalselect_ray.vlm.model_folder import DESCRIPTION, hub_id, link_to_nothing, look_through
from scalselect_ray.vlm.supported import family_of
from scalselect_ray.vlm.watched_attention import WATCHED

# Loading a front leaves most of a checkpoint unread: transformers' report of that is long, and what matters is checked
# below.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_PLAIN_TOWERS = (
    "clip_vision_model",
    "siglip_vision_model",
)  # whose hidden states are the layers' outputs, the last one's as well
_ATTENTION = {"": "sdpa", "text_config": WATCHED}
_NO_SAFETENSORS = "not a safetensors file, or not all of it: get it again (git lfs pull, where it is a pointer)"
_FLOATS = ("BF16", "F16", "F32", "F64")
_BLOCK = 1 << 24  # bytes
_MAX_SAID = 1000  # characters of what a library says
_TEXT_LAYER = re.compile(
    r"^(?:model\.)?(?:(?:language_model|text_model|transformer)\.)?(?:model\.)?(?:layers|blocks)\.(\d+)\."
)
_HEAD = re.compile(r"(?:^|\.)lm_head\.")
SOFTMAX = ("full_attention", "sliding_attention", "chunked_attention", "attention")
"""Kinds of layers, in `layer_types` of configs of transformers, that the method can read."""

FirstAttention = Literal["first_attention"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine, with the config of its front."""

    folder: Path
    config: PretrainedConfig
    family: Family
    layer: int
    """The decoder layer that is read, from 0: the last one of the front."""


def open_checkpoint(
    model: str, revision: str | None = None, *, layer: int | FirstAttention = 0, weights: bool = True
) -> Checkpoint:
    """The checkpoint a config names: a local folder, a folder in a bucket, or a hub id with an optional pinned
    revision.

    What is not on this machine yet is fetched, without the weights that are not needed, or without any. Raises
    ModelError.
    """

    def needed(folder: Path) -> set[str]:
        return needed_files([_WEIGHTS], weight_map(folder), _described(folder, model, layer).layer)

    return _described(_local_folder(model, revision, needed if weights else None), model, layer)


def _described(folder: Path, model: str, layer: int | FirstAttention) -> Checkpoint:
    """The checkpoint in a folder, by its description files. Raises ModelError."""
    family = family_of(look_through(folder, model), model)
    with own_values(f"{model}: config.json cannot be used"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for each in (config, *(getattr(config, name) for name in config.sub_configs)):
            if each is not None:
                each._attn_implementation = "sdpa"  # which attention computes is for us to choose
        number = _layer_number(config.get_text_config(), layer, model)
        keep_front(config, number)
    return Checkpoint(folder, config, family, number)


def _layer_number(text: Any, layer: int | FirstAttention, model: str) -> int:
    """Which decoder layer is read. Raises ModelError where the text model has it not, or where it is no softmax
    attention."""
    kinds = list(getattr(text, "layer_types", None) or ["attention"] * text.num_hidden_layers)
    if layer == "first_attention":
        number = next((number for number, kind in enumerate(kinds) if kind in SOFTMAX), None)
        if number is None:
            raise ModelError(f"{model}: none of the {len(kinds)} layers of the language model is softmax attention")
        return number
    if layer >= len(kinds):
        raise ModelError(
            f"extractor.layer: {layer}, but {model} has {len(kinds)} decoder layers; expected 0 to {len(kinds) - 1}"
        )
    if kinds[layer] not in SOFTMAX:
        raise ModelError(
            f"{model}: layer {layer} of the language model is no softmax attention but {kinds[layer]}: it says of no "
            "token how much it is attended to. extractor.layer: first_attention reads the first layer that does (an "
            "extension: the paper reads layer 0)"
        )
    return layer


@contextmanager
def own_values(problem: str) -> Iterator[None]:
    """A checkpoint's own values are used in the block: whatever these make its classes raise is a ModelError with the
    problem before it."""
    try:
        yield
    except ScalSelectError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":  # a panic of the tokenizers
            raise ModelError(f"{problem}: {type(error).__name__}: {str(error)[:_MAX_SAID]}") from error
        raise


def keep_front(config: PretrainedConfig, layer: int) -> None:
    """Cuts a composite config down to what comes before and in a decoder layer (in place)."""
    text = config.get_text_config()
    layers = text.num_hidden_layers
    for name, value in vars(text).items():
        if "layer" in name and isinstance(value, list) and len(value) == layers:  # layer_types and its like
            setattr(text, name, value[: layer + 1])
    text.num_hidden_layers = layer + 1
    tower: Any = getattr(config, "vision_config", None)
    if layer == 0 and hasattr(tower, "deepstack_visual_indexes"):
        tower.deepstack_visual_indexes = []  # DeepStack features are added after the layer: never read
    if getattr(tower, "model_type", None) in _PLAIN_TOWERS:
        _cut_tower(config)


def _cut_tower(config: PretrainedConfig) -> None:
    """Leaves the tower the layers up to the one that LLaVA reads, the last but one."""
    layer = getattr(config, "vision_feature_layer", None)
    if isinstance(layer, int):
        layers = config.vision_config.num_hidden_layers
        used = (
            layer if layer >= 0 else layers + 1 + layer
        )  # of the hidden states: the input of layer 0, then each layer's output
        if 0 < used < layers:
            config.vision_config.num_hidden_layers, config.vision_feature_layer = used, used


def load_front(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model's front, in eval mode on `device`. Raises ModelError when a tensor is missing or has another shape."""
    check_tensors(checkpoint)
    with tempfile.TemporaryDirectory() as view, own_values(f"{checkpoint.folder}: the weights cannot be loaded"):
        _link_needed(checkpoint, Path(view))
        model, loading = AutoModel.from_pretrained(
            view,
            config=checkpoint.config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            attn_implementation=_ATTENTION,
            generation_config=GenerationConfig(),  # one of the folder would be looked for
        )
    missing = [key for key in loading["missing_keys"] if is_needed(key, checkpoint.layer)]
    problems = sorted(missing) + sorted(str(key) for key in loading["mismatched_keys"])
    if problems:
        raise ModelError(
            f"{checkpoint.folder}: {len(problems)} tensors are missing or have another shape than config.json says, "
            f"first {problems[0]}; is this a complete checkpoint of a {checkpoint.config.model_type} model?"
        )
    return model.to(device).eval().requires_grad_(False)


def skeleton(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model's front without weights: it takes no memory. Raises ModelError."""
    with own_values(f"{checkpoint.folder}: config.json cannot be used"), torch.device("meta"):
        return AutoModel.from_config(checkpoint.config, attn_implementation=_ATTENTION)


def front_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Memory that the front's parameters take. Reads no weights."""
    parameters = skeleton(checkpoint).named_parameters()
    return sum(int(part.numel()) for name, part in parameters if is_needed(name, checkpoint.layer)) * dtype.itemsize


def check_tensors(checkpoint: Checkpoint) -> None:
    """Reads the headers of the weights alone. Raises ModelError when a weight is quantised, or when the front has more
    parameters than its tensors: memory for them is not even asked for."""
    there = 0
    for path in _weight_files(checkpoint):
        with own_values(f"{path}: {_NO_SAFETENSORS}"), safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                if not is_needed(name, checkpoint.layer):
                    continue
                part = file.get_slice(name)
                if name.endswith((".weight", ".bias")) and part.get_dtype() not in _FLOATS:
                    raise ModelError(
                        f"{path}: {name} is {part.get_dtype()}, expected one of {', '.join(_FLOATS)}: quantised "
                        f"weights "
                        "are not read; use the unquantised checkpoint"
                    )
                there += math.prod(part.get_shape())
    expected = front_bytes(checkpoint, torch.uint8)
    if expected > there:
        raise ModelError(
            f"{checkpoint.folder}: config.json describes {expected:,} parameters, but the tensors hold {there:,}; "
            f"is this a complete checkpoint of a {checkpoint.config.model_type} model?"
        )


def is_needed(tensor: str, layer: int) -> bool:
    """Whether a tensor of a checkpoint, by its name, belongs to the front that ends with a decoder layer. True when in
    doubt."""
    found = _TEXT_LAYER.match(tensor)
    return not (int(found[1]) > layer if found else _HEAD.search(tensor))


def needed_files(names: Iterable[str], weight_map: dict[str, str], layer: int) -> set[str]:
    """The safetensors files that hold a needed tensor; `weight_map` is that of the index, empty when there is none."""
    if weight_map:
        return {file for tensor, file in weight_map.items() if is_needed(tensor, layer)}
    return {_WEIGHTS} & set(names)


Needed = Callable[[Path], Iterable[str]]
"""The weight files that are needed, when the description files are in a folder."""


def _local_folder(model: str, revision: str | None, needed: Needed | None) -> Path:
    if storage.is_local(model) and Path(storage.absolute(model)).is_dir():
        return Path(storage.absolute(model))
    if "://" in model:
        return _fetch_from_bucket(model, needed)
    if is_hub_id(model):
        return _fetch_from_hub(model, revision, needed)
    kind = "not a folder but a file" if Path(storage.absolute(model)).is_file() else "no such folder"
    raise ModelError(f"extractor.model: {kind}: {model} (nor is it a hub id of the form owner/name)")


def _fetch_from_hub(repository: str, revision: str | None, needed: Needed | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))

    try:
        folder = fetch(list(DESCRIPTION))
        return fetch([*DESCRIPTION, *needed(folder)]) if needed else folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"extractor.model: {repository} is no folder here and cannot be had from the hub (revision "
            f"{revision or 'main'}): {error}"
        ) from error


def _fetch_from_bucket(uri: str, needed: Needed | None) -> Path:
    new: list[Path] = []

    def fetch(name: str) -> None:
        if not model_cache.is_kept(folder / name):
            storage.download(files[name].uri, str(folder / name))
            new.append(folder / name)

    try:
        files = _right_inside(uri)
    except NoAnswerError:
        raise
    except OSError as error:  # before any work it is the place that is wrong
        raise ModelError(f"extractor.model: {uri} cannot be listed: {error}") from error
    try:
        if "config.json" not in files:
            raise ModelError(f"extractor.model: no config.json right inside {uri}")
        state = json.dumps(sorted((name, file.size, file.version) for name, file in files.items()))
        folder = model_cache.folder_of(f"{uri} {state}")
        for name in files:
            if any(Path(name).match(pattern) for pattern in DESCRIPTION):
                fetch(name)
        for name in set(needed(folder) if needed else ()) & files.keys():
            fetch(name)
        if new and _right_inside(uri) != files:
            raise ModelError(f"extractor.model: {uri} changed while it was fetched; run again when nobody writes there")
        for path in new:
            model_cache.keep(path)
    except StorageError:
        raise  # the store's trouble may pass
    except (OSError, KeyError) as error:
        raise ModelError(f"extractor.model: {uri} cannot be fetched: {error}") from error
    return folder


def _right_inside(uri: str) -> dict[str, storage.FileInfo]:
    """The files of a folder by their names, without those of folders below it."""
    fs, path = storage.filesystem(uri)
    start = fs.unstrip_protocol(path).rstrip("/") + "/"
    listed = [(file.uri.removeprefix(start), file) for file in storage.list_tree(uri)]
    return {name: file for name, file in listed if "/" not in name}


def weight_map(folder: Path, weights: str = _WEIGHTS) -> dict[str, str]:
    """The file of each tensor, by the index beside them; empty where there is none, and all stand in the file
    `weights`. Raises ModelError."""
    index = folder / f"{weights}.index.json"
    if not index.is_file():
        return {}
    try:
        files: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        if not isinstance(files, dict) or not files:
            raise ValueError("its weight_map maps nothing")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{index}: not an index of weights: {error}") from error
    suffix = Path(weights).suffix
    if not all(isinstance(file, str) and Path(file).name == file and file.endswith(suffix) for file in files.values()):
        raise ModelError(f"{index}: names a file outside the model folder, or one that is no {suffix} file")
    return files


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    folder = checkpoint.folder
    files = [folder / name for name in sorted(needed_files([_WEIGHTS], weight_map(folder), checkpoint.layer))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        found = (
            f"; {pickled[0]} is there, but a pickle can run code and is never opened: save the model as safetensors"
            if pickled
            else ""
        )
        first = folder / (missing[0] if missing else _WEIGHTS)
        if first.is_symlink() and not first.exists():
            raise ModelError(f"{folder}: {first.name} {link_to_nothing(first)}")
        if repository := hub_id(folder):
            found = f"; the hub's cache is incomplete: hf download {repository}"
        raise ModelError(f"{folder}: no {first.name}; weights are read from safetensors only{found}")
    return files


def _link_needed(checkpoint: Checkpoint, view: Path) -> None:
    """Makes `view` a checkpoint of the needed tensors: the weight files by link, and an index that names no others."""
    for file in _weight_files(checkpoint):
        (view / file.name).symlink_to(file.resolve())
    files = weight_map(checkpoint.folder)
    files = {tensor: file for tensor, file in files.items() if is_needed(tensor, checkpoint.layer)}
    if files:
        (view / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as it stands in a file."""

    name: str
    dtype: str
    shape: list[int]
    path: Path
    start: int  # of its bytes in the file
    stop: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a few MB at a time. Raises ModelError."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.stop - self.start
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise ModelError(f"{self.path}: {_NO_SAFETENSORS}: it ends in {self.name}")
                left -= len(block)
                yield block


def stored_tensors(checkpoint: Checkpoint) -> Iterator[StoredTensor]:
    """All that the weight files hold of the front: file by file, and by name within each. Raises ModelError."""
    for path in _weight_files(checkpoint):
        yield from (tensor for tensor in tensors_in(path) if is_needed(tensor.name, checkpoint.layer))


def tensors_in(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, by name. Raises ModelError."""
    try:
        with safe_open(path, framework="np"):  # checks the header and the file's length
            pass
        header = read_header(functools.partial(storage.read_bytes, str(path)))
        return [
            StoredTensor(name, said["dtype"], said["shape"], path, *header.place(name))
            for name, said in sorted(header.tensors.items())
        ]
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: {_NO_SAFETENSORS}: {error}") from error
