"""What tells one checkpoint from another: a hash of all in it that can change a feature, and of nothing else.

That is the tensors of the front, by name, whatever files hold them, and the files that a config, a processor, a
tokenizer and a chat template are made of: those of JSON by what they say, however it is laid out. All that they say
counts but the keys that are known to change no feature."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from scalselect_ray.vlm.checkpoint import Checkpoint, stored_tensors
from scalselect_ray.vlm.model_folder import description_files

_READ = (
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer*.json",  # tokenizer.json, tokenizer_config.json, and tokenizer.json for some versions of transformers
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges.txt",
    "tekken.json",
    "*.model",
)
"""Files of a checkpoint that transformers makes a config, an image processor, a tokenizer and a chat template of."""

_SAVED_BY = {"transformers_version", "_name_or_path", "name_or_path"}
_GENERATION = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_p",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_cache",
}
_COMPUTING = {"architectures", "dtype", "torch_dtype", "attn_implementation", "_attn_implementation"}  # set by us
_LOADED_BY = {"is_local", "local_files_only"}  # how a tokenizer was loaded that was saved then
_CUTTING = {"model_max_length", "padding_side", "truncation_side"}  # nothing is padded or cut

_UNREAD: Mapping[str, set[str]] = {
    "config.json": _SAVED_BY | _GENERATION | _COMPUTING,
    "processor_config.json": _SAVED_BY | {"video_processor"},
    "preprocessor_config.json": _SAVED_BY,
    "tokenizer_config.json": _SAVED_BY | _LOADED_BY | _CUTTING,
}
"""Keys that change no feature, whatever they hold."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of all in a checkpoint that can change a feature. Reads the tensors of the front once, a few MB at a time.
    Raises ModelError."""
    tensors = []
    for tensor in stored_tensors(checkpoint):
        digest = hashlib.sha256()
        for block in tensor.blocks():
            digest.update(block)
        tensors.append((tensor.name, f"{tensor.dtype} {tensor.shape} {digest.hexdigest()}"))
    distinct = dict.fromkeys(tensors)  # one that stands in several files is one
    return _hash([description_fingerprint(checkpoint), *map(str, sorted(distinct, key=lambda named: named[0]))])


def description_fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of all that preparing a sample reads: config, processor, tokenizer, chat template."""
    return _hash(
        f"{path.name} {hashlib.sha256(_content(path)).hexdigest()}"
        for path in description_files(checkpoint.folder)
        if any(fnmatchcase(path.name, pattern) for pattern in _READ)
    )


def earlier_fingerprint(checkpoint: Checkpoint) -> str:
    """The fingerprint that versions 0.1 and 0.2 had: of every description file to the byte, and of the tensors in the
    order of their files. Raises ModelError."""
    digest = hashlib.sha256()
    for path in description_files(checkpoint.folder):
        if path.name not in ("model.safetensors.index.json", "README.txt"):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    for tensor in stored_tensors(checkpoint):
        digest.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
        for block in tensor.blocks():
            digest.update(block)
    return digest.hexdigest()


def _hash(lines: "Iterator[str] | list[str]") -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content(path: Path) -> bytes:
    """What counts of a description file. One of JSON that is none is whoever's problem reads it."""
    content = path.read_bytes()
    if path.suffix != ".json":
        return content
    try:
        return json.dumps(_counting(json.loads(content), _UNREAD.get(path.name, set())), sort_keys=True).encode()
    except (ValueError, RecursionError):
        return content


def _counting(document: Any, unread: set[str]) -> Any:
    """A document without its unread keys, nor those of the configs and processors inside."""
    if not unread or not isinstance(document, dict):
        return document
    return {
        key: _counting(value, unread) if key.endswith(("_config", "_processor")) else value
        for key, value in document.items()
        if key not in unread
    }
