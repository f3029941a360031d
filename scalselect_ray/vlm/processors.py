"""The processor of a checkpoint. What folders that were saved before late 2024 lack is filled in: from config.json
where the model itself says it, and the chat template from the tokenizer, or from those that the families are published
with.

Nothing that a folder says is replaced."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from scalselect_ray.errors import ModelError
from scalselect_ray.vlm.checkpoint import Checkpoint, own_values
from scalselect_ray.vlm.model_folder import unreadable
from scalselect_ray.vlm.patience import at_most

_TEMPLATE_SECONDS = 10.0  # of a conversation of two short turns
_COUNTED = ("patch_size", "num_image_tokens")  # of which the number of an image's tokens is made
_TRIED = (("user", "What is it?"), ("assistant", "It is grey."))
_IMAGES_FIRST = (
    "{% for c in m['content'] if c['type'] == 'image' %}{{ IMAGE }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}TEXT{% endfor %}"
)
TEMPLATES = {
    "vicuna": (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}"
        + _IMAGES_FIRST.replace("{{ IMAGE }}", "{{ '<image>\\n' }}").replace("TEXT", "{{ c['text'] + ' ' }}")
        + "{% endfor %}"
    ),
    "mistral": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<<SYS>>\\n' }}"
        "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{{ '\\n<</SYS>>\\n\\n' }}"
        "{% elif m['role'] == 'user' %}[INST] "
        + _IMAGES_FIRST.replace("{{ IMAGE }}", "{{ '<image>\\n' }}").replace("TEXT", "{{ c['text'] }}")
        + " [/INST]{% else %} {% for c in m['content'] %}{{ c['text'] }}{% endfor %}</s> {% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} "
        + _IMAGES_FIRST.replace("{{ IMAGE }}", "<image>").replace("TEXT", "{{ '\\n' + c['text'] }}")
        + "<|im_end|>{% endfor %}"
    ),
    "paligemma": (
        "{% if messages | length != 2 or messages[0]['role'] != 'user' or messages[1]['role'] != 'assistant' %}"
        "{{ raise_exception('PaliGemma knows one question and one answer') }}{% endif %}{% set m = messages[0] %}"
        + _IMAGES_FIRST.partition("{% endfor %}")[0].replace("{{ IMAGE }}", "<image>")
        + "{% endfor %}{{ bos_token }}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
        "{{ '\\n' }}{% for c in messages[1]['content'] %}{{ c['text'] }}{% endfor %}{{ eos_token }}"
    ),
}
"""As llava-hf publishes LLaVA 1.5, LLaVA-NeXT with Mistral, and LLaVA-OneVision, and as PaliGemma's processor puts a
question and an answer together. Never change one: features were made with it."""

_FLAT = (
    "{%- set flat = namespace(messages=[]) -%}{%- for m in messages -%}{%- set said = namespace(text='') -%}"
    "{%- for c in m['content'] -%}{%- set said.text = said.text + (IMAGE if c['type'] == 'image' else c['text']) -%}"
    "{%- endfor -%}{%- set flat.messages = flat.messages + [{'role': m['role'], 'content': said.text}] -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
)  # before a template of a text model, whose content is one text


@dataclass(frozen=True, slots=True)
class LoadedProcessor:
    """A processor of transformers, and a line for people on each thing that its folder lacked."""

    processor: Any
    filled: list[str] = field(default_factory=list)


def load_processor(checkpoint: Checkpoint) -> LoadedProcessor:
    """Raises ModelError where files are missing or cannot be used, and where the chat template renders no
    conversation."""
    folder, config = checkpoint.folder, checkpoint.config
    try:
        with own_values(f"{folder}: the processor cannot be loaded"):
            processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            token_id, _ = processor.image_token_id, processor.image_processor
    except ModelError as error:
        raise ModelError(f"{error}{unreadable(folder)}") from error.__cause__
    if checkpoint.family.bytes_travel and (not isinstance(token_id, int) or token_id != config.image_token_id):
        raise ModelError(
            f"{folder}: config.json says that the image token (image_token_id) is {config.image_token_id}, but "
            f"{processor.image_token} is {token_id} in tokenizer.json: take both from one checkpoint"
        )
    filled = []
    with own_values(f"{folder}: config.json cannot be used"):
        stated = _stated(folder / "processor_config.json")
        for name, value in checkpoint.family.processor_values(config).items():
            if stated.get(name) is None:
                setattr(processor, name, value)
                filled.append(f"processor_config.json has no {name}: it is {value} by config.json")
            elif name in _COUNTED and stated[name] != value:
                raise ModelError(
                    f"{folder}: processor_config.json: {name} is {stated[name]!r}, but {value} by config.json: take "
                    "both from one checkpoint"
                )
    template = f"{folder}: {_template_of(folder)}: the chat template"
    with at_most(_TEMPLATE_SECONDS, ModelError(f"{template} does not end: get the checkpoint's own template")):
        if not processor.chat_template:
            filled.append(_find_template(checkpoint, processor))
        _check_template(processor, template)
    return LoadedProcessor(processor, filled)


def _check_template(processor: Any, template: str) -> None:
    """Raises ModelError, after what `template` says of it, when it does not render a short conversation as it must."""
    conversation = "a conversation of one image, a question and an answer"
    try:
        text = _rendered(processor)
    except Exception as error:  # templates raise what they like
        raise ModelError(f"{template} refuses {conversation}: {type(error).__name__}: {error}") from error
    wanted = [processor.image_token, *(said for _, said in _TRIED)]
    if missing := [piece for piece in wanted if piece not in text]:
        raise ModelError(
            f"{template} leaves out {missing[0]!r} of {conversation}: get the template of this checkpoint, one that "
            "knows images"
        )


def _stated(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _template_of(folder: Path) -> str:
    """The file that the chat template stands in."""
    names = ("chat_template.jinja", "chat_template.json", "processor_config.json")
    return next((name for name in names if (folder / name).is_file()), "tokenizer_config.json")


def _find_template(checkpoint: Checkpoint, processor: Any) -> str:
    """Gives the processor a chat template; returns what is to be said of it. Raises ModelError where none fits."""
    own = processor.tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if own:
        marks = checkpoint.family.vision_marks
        image = f"{marks[0]}{processor.image_token}{marks[1]}" if marks else f"{processor.image_token}\n"
        for template in (own, _FLAT.replace("IMAGE", json.dumps(image)) + own):
            processor.chat_template = template
            if _shows_image(processor):
                return "there is no chat_template.jinja: the template of the tokenizer is used"
    name = checkpoint.family.template_name(checkpoint.config, processor.tokenizer)
    if name is None:
        raise ModelError(
            f"{checkpoint.folder}: no chat_template.jinja, and no template in tokenizer_config.json: get the "
            "checkpoint's own template"
        )
    processor.chat_template = TEMPLATES[name]
    return f"there is no chat template in the model's folder: the one named {name} is used"


def _shows_image(processor: Any) -> bool:
    try:
        return _rendered(processor).count(processor.image_token) == 1
    except Exception:  # a text model's template fails in whatever way on content that is no text
        return False


def _rendered(processor: Any) -> str:
    messages = [{"role": role, "content": [{"type": "text", "text": said}]} for role, said in _TRIED]
    messages[0]["content"].insert(0, {"type": "image"})  # type: ignore[attr-defined]
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
