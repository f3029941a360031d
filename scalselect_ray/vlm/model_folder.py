"""A model folder before any of it is used: what its files are, and what stands in those that describe the model.

What cannot be used is refused here with the file and what to do: further on it would be a traceback of somebody else's
code, or memory for 10^9 layers."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalselect_ray.errors import ModelError

DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")  # config, processor, tokenizer, chat template
_OBJECTS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
_MOST_BYTES = 1 << 28  # of a file that describes a model
_LOOPED = ("layers", "depth", "experts", "blocks")  # a module is made for each
_SIDES = ("height", "width", "image_size", "patch_size", "temporal_patch_size", "merge_size", "spatial_merge_size")
_QUANTISED = re.compile(
    r"[-_.](?:(?:unsloth[-_.])?bnb[-_.]?\d*-?(?:bit)?|awq|gptq|int[48]|fp8|nf4|[48]-?bit|w\d+a\d+|quantized|dynamic)"
    r"(?=$|[-_.])",
    re.IGNORECASE,
)


def look_through(folder: Path, name: str) -> dict[str, Any]:
    """What config.json of the folder says. Raises ModelError when a file that describes the model is none, names code
    that comes with the checkpoint (`auto_map`), or a number of things that nobody could make: that many would be made
    before anything is checked."""
    for path in description_files(folder):
        if path.is_symlink() and not path.exists():
            raise ModelError(f"{name}: {path.name} {link_to_nothing(path)}")
        if not path.is_file():
            raise ModelError(f"{name}: {path.name} is no file but a folder, a pipe or a device: remove it")
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(
                f"{name}: {path.name} has {path.stat().st_size:,} bytes; expected {_MOST_BYTES:,} at most in a file "
                "that describes a model: remove it if it is none, else get the checkpoint again"
            )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name}: no config.json in the model folder; expected a folder written by save_pretrained"
            f"{_elsewhere(folder)}"
        )
    described = {
        path.name: _described(path, name)
        for path in sorted({*folder.glob("*config.json"), *(folder / known for known in _OBJECTS)})
        if path.is_file()
    }
    config: dict[str, Any] = described["config.json"]
    for holder in (config, *(config.get(part) for part in ("text_config", "vision_config"))):
        if isinstance(holder, dict) and holder.get("quantization_config"):
            raise ModelError(_quantised(holder["quantization_config"], config, name))
    return config


def description_files(folder: Path) -> list[Path]:
    """All files right inside the folder that describe a model, in order."""
    return sorted({path for pattern in DESCRIPTION for path in folder.glob(pattern)})


def link_to_nothing(path: Path) -> str:
    """What is wrong with a link that leads nowhere, and what to do."""
    cure = "get the checkpoint again, or copy it with what its links lead to (cp -L)"
    if repository := hub_id(path.parent):
        cure = f"the hub's cache is incomplete: hf download {repository}"
    return f"is a link to {path.readlink()}, which is not there: {cure}"


def hub_id(snapshot: Path) -> str | None:
    """The hub id of a folder in the hub's cache; None for any other folder."""
    repository = snapshot.parent.parent.name
    if snapshot.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1)


def unreadable(folder: Path) -> str:
    """Which file of a tokenizer or a processor is not what it is called, as the end of a sentence; nothing where all
    can be read. For after a failure: a tokenizer may have 30 MB."""
    for path in description_files(folder):
        try:
            content = path.read_bytes() if path.suffix != ".model" else b""
            if path.suffix == ".json":
                document = json.loads(content)
                if path.name in ("tokenizer.json", *_OBJECTS) and not isinstance(document, dict):
                    return f"; {path.name} is {_kind(document)}, expected a JSON object"
            else:
                content.decode()
        except (ValueError, RecursionError) as error:
            kind = "JSON" if path.suffix == ".json" else "UTF-8 text"
            return f"; {path.name} is not {kind}: {error}; get that file again"
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return (
            "; there is no tokenizer.json (nor tokenizer.model, vocab.json): copy the tokenizer's files there"
            f"{_cached(folder)}"
        )
    return _cached(folder)


def _cached(folder: Path) -> str:
    """What else to do about a file that is missing, where the folder is one of the hub's cache."""
    repository = hub_id(folder)
    return f"; the hub's cache may be incomplete: hf download {repository}" if repository else ""


def _described(path: Path, name: str) -> Any:
    auto_maps: list[object] = []

    def look(described: dict[str, Any]) -> dict[str, Any]:
        auto_maps.append(described.get("auto_map"))
        for key, value in described.items():
            most = _most(key)
            if isinstance(value, int | float) and abs(value) > most:
                raise ModelError(f"{name}: {path.name}: {key} is {str(value)[:40]}; expected at most {most:,}")
        return described

    try:
        document = json.loads(path.read_bytes(), object_hook=look)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} is not JSON: {error}; get that file again") from error
    if path.name in _OBJECTS and not isinstance(document, dict):
        raise ModelError(f"{name}: {path.name} is {_kind(document)}, expected a JSON object; get that file again")
    if any(auto_maps):
        raise ModelError(
            f"{name}: {path.name} asks for code that comes with the checkpoint (auto_map). Code from a checkpoint "
            "is never run, and there is no option for it: use a checkpoint in the format of transformers' own classes"
        )
    return document


def _kind(document: object) -> str:
    names = {list: "a JSON array", str: "a JSON string", type(None): "null"}
    return names.get(type(document), f"a JSON {type(document).__name__}")


def _most(key: str) -> float:
    """The largest number that a checkpoint may have under a key, whatever file it stands in."""
    if any(word in key for word in _LOOPED):
        return 1000
    return 1 << 16 if key.startswith("num_") or key in _SIDES else math.inf


def _elsewhere(folder: Path) -> str:
    """Where the checkpoint may be meant to lie."""
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if (folder / "adapter_config.json").is_file():
        return "; adapter_config.json is there: merge the adapter into its base model first (merge_and_unload of peft)"
    return f"; there is one in {', '.join(inside[:3])} below it: name that folder" if inside else _cached(folder)


def _quantised(how: object, config: dict[str, Any], name: str) -> str:
    method = how.get("quant_method", "unknown") if isinstance(how, dict) else "unknown"
    origins: Sequence[object] = (
        hub_id(Path(name)),
        Path(name).name if "://" in name else name,
        config.get("_name_or_path"),
    )
    twins = [
        _QUANTISED.sub("", origin.rstrip("/"))
        for origin in origins
        if isinstance(origin, str) and _QUANTISED.search(Path(origin).name)
    ]
    twin = f", {Path(twins[0]).name if Path(twins[0]).is_absolute() else twins[0]}" if twins else ""
    return (
        f"{name}: config.json has a quantization_config (quant_method {str(method)[:40]}): quantised weights are not "
        f"read, since features of them would be others; use the unquantised checkpoint that it was made of{twin}"
    )
