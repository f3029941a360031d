"""A sample to the inputs of a model, on the CPU: chat template, tokens, the roles of the tokens, images at the model's
size.

Pixels stay bytes here: scaling them to floats is left to the device (`Extractor`), so that what travels between
machines is small."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from scalselect_ray.corpus import MAX_PIXELS, ImagePlaceholder, Reason, Sample, SampleRejectedError, Turn
from scalselect_ray.errors import ModelError
from scalselect_ray.vlm.checkpoint import Checkpoint, own_values, skeleton
from scalselect_ray.vlm.families import vision_token_ids
from scalselect_ray.vlm.patience import at_most
from scalselect_ray.vlm.processors import load_processor
from scalselect_ray.vlm.texts import Rendering, rendering

TokenRule = Literal["reference", "strict"]
_PATCHES = 1024  # along a side of an image
_TOKEN_CHARACTERS = 64  # a text with more a token is not tokenized to find out that it is too long
_LONG_CHARACTERS = 8  # one with more a token is tokenized in pieces first, no further than it must be
_PIECE = 1 << 16  # characters
_BLANK = "\u2581"  # SentencePiece's
_BEGINNING = 16  # characters of an answer
_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "offset_mapping")
_TEMPLATE_SECONDS = 600.0  # of one sample, on however slow a machine


@dataclass(frozen=True, slots=True)
class Prepared:
    """One sample, ready for the model. S = tokens of the sample."""

    input_ids: np.ndarray  # (S,) int64
    position_ids: np.ndarray  # (1 or 3, S) int64
    query: np.ndarray  # (S,) bool: the tokens whose attention counts
    vision: np.ndarray  # (S,) bool: the tokens that attention is paid to
    images: dict[str, np.ndarray] = field(repr=False)  # the family's image inputs; pixel_values uint8, one frame
    picture_tokens: tuple[int, ...] = ()  # image placeholders of each picture


class Preparer:
    """Makes `Prepared` of samples; one is made in each worker, from a checkpoint's description files alone."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        tokens: TokenRule = "reference",
        max_length: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        images_first: bool = False,
        as_published: bool = False,
    ) -> None:
        """`images_first`: they are moved before the first user text. `as_published`: what is above `max_length` is
        left out, where no image stands there, and no reject; texts of users keep the blanks around them, and those
        around an answer are not the answer's."""
        self._family = checkpoint.family
        self._tokens = tokens
        self._images_first, self._as_published = images_first, as_published
        self._folder = folder = checkpoint.folder
        loaded = load_processor(checkpoint)
        self.filled = loaded.filled
        self._processor = loaded.processor
        with own_values(f"{folder}: the processor cannot be used"):
            self._image_token, marks = vision_token_ids(self._family, checkpoint.config, self._processor)
            media = (getattr(self._processor, name, None) for name in ("image_token", "video_token", "audio_token"))
            self._reserved = {token for token in (*media, *self._family.vision_marks) if token}
            self._special = self._reserved | {
                str(token) for token in self._processor.tokenizer.added_tokens_decoder.values() if token.special
            }
        self._vision_tokens = [self._image_token, *(marks if tokens == "reference" else ())]
        for token in self._vision_tokens:
            if not isinstance(token, int):
                raise ModelError(f"{folder}: the tokenizer has no token for images, or none of the marks around them")
        self._max_length = max_length or checkpoint.config.get_text_config().max_position_embeddings
        if not isinstance(self._max_length, int) or self._max_length < 1:
            raise ModelError(
                f"{folder}: config.json: max_position_embeddings is {self._max_length!r}; expected a number of tokens, "
                "1 or more: set extractor.max_length"
            )
        self._kwargs: dict[str, Any] = {} if self._family.bytes_travel else {"return_tensors": "pt"}
        self._images_kwargs: dict[str, Any] = (
            {"do_rescale": False, "do_normalize": False} if self._family.bytes_travel else {}
        )
        if (min_pixels or max_pixels) and not self._family.resizable:
            raise ModelError(
                f"extractor.min_pixels and max_pixels have no meaning for {checkpoint.config.model_type} models"
            )
        with own_values(f"{folder}: the image processor has no usable size"):
            self._set_size(min_pixels, max_pixels)
        self._skeleton = skeleton(checkpoint)  # only its methods that count positions are used
        self.made_up()  # what fails on that fails on every one

    def _set_size(self, min_pixels: int | None, max_pixels: int | None) -> None:
        """Checks how large the processor makes images. Raises ModelError, and what sizes that are none make Python
        raise."""
        processor = self._processor.image_processor
        if self._family.resizable:
            least = min_pixels or processor.size["shortest_edge"]
            most = max_pixels or processor.size["longest_edge"]
            if not 0 < least <= most:
                raise ModelError(
                    f"{self._folder}: images of at least {least:,} and at most {most:,} pixels: expected min_pixels to "
                    "be above 0 and at most max_pixels (extractor.min_pixels, extractor.max_pixels, or the model's own "
                    "processor)"
                )
            if min_pixels or max_pixels:
                self._images_kwargs["size"] = {"shortest_edge": least, "longest_edge": most}
            return
        for size in (processor.size, getattr(processor, "crop_size", None) or {}):
            sides = _sides(size)
            if sides and not (min(sides) > 0 and math.prod(sides) <= MAX_PIXELS):
                raise ModelError(
                    f"{self._folder}: the image processor makes images of {' x '.join(map(str, sides))}; expected "
                    f"above 0, and {MAX_PIXELS:,} pixels at most"
                )
        patch = getattr(self._processor, "patch_size", None) or 1
        if patch < 0 or max(sides, default=0) > patch * _PATCHES:
            raise ModelError(
                f"{self._folder}: the processor's patch_size is {patch} for images of {sides}: too many patches"
            )

    def made_up(self) -> Prepared | None:
        """A sample that any model can prepare and represent; None where `max_length` is too short for it. Raises
        ModelError where this one cannot."""
        turns = Turn("user", (ImagePlaceholder(0), "What is it?")), Turn("assistant", ("It is grey.",))
        with own_values(f"{self._folder}: no sample can be prepared with this processor"):
            try:
                return self(Sample(0, None, turns, ()), [Image.new("RGB", (224, 224), "grey")])
            except SampleRejectedError as error:
                if error.reason == Reason.TOO_LONG:
                    return None
                raise

    def __call__(self, sample: Sample, images: Sequence[Image.Image]) -> Prepared:
        """`images` are those of `sample`, decoded, RGB, in order. Raises SampleRejectedError."""
        turns = _images_first(sample.turns) if self._images_first else sample.turns
        sample = replace(sample, turns=turns if self._as_published else tuple(turn.stripped() for turn in turns))
        self._check_size(sample, images)
        endless = SampleRejectedError(Reason.TOO_COSTLY, "the model's chat template does not end on this conversation")
        with at_most(_TEMPLATE_SECONDS, endless):
            rendered = rendering(sample.turns, self._apply_template)
        if self._as_published:
            bare = [_without_blanks(span, rendered.text) for span in rendered.ranges["assistant"]]
            rendered = replace(rendered, ranges={**rendered.ranges, "assistant": bare})
        self._check_tokens(sample, rendered)
        try:
            batch = self._family.process(
                self._processor, rendered, images, images_kwargs=self._images_kwargs, **self._kwargs
            )
        except Exception as error:  # sizes and aspect ratios that the model's own processor refuses, in whatever way
            sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
            raise SampleRejectedError(
                Reason.IMAGE_REFUSED, f"the model's processor refuses the images ({sizes}): {error}"
            ) from error
        length = len(batch["input_ids"][0])
        if length > self._max_length:
            batch = self._cut_down(batch, length)
        images_of = self._family.inputs(batch)
        inputs = {name: torch.as_tensor(array) for name, array in images_of.items()}
        inputs |= {
            name: torch.as_tensor(batch[name][0]) for name in ("input_ids", "mm_token_type_ids") if name in batch
        }

        input_ids = inputs["input_ids"].numpy()
        vision = np.isin(input_ids, self._vision_tokens)
        expansions = batch["text_replacement_offsets"][0]
        offsets = np.asarray(batch["offset_mapping"][0])
        if self._tokens == "reference":
            answers = _expanded(rendered, "assistant", expansions)
            query = ~vision & ~_overlaps(offsets, answers) & ~self._blanks_before(answers, rendered, input_ids, offsets)
        else:
            query = ~np.isin(input_ids, [self._image_token]) & _overlaps(
                offsets, _expanded(rendered, "user", expansions)
            )
        if not vision.any():
            raise SampleRejectedError(Reason.IMAGE_REFUSED, "the model's processor makes no token of the images")
        if not query.any():
            raise SampleRejectedError(Reason.NO_QUERY_TOKENS, "no token of this sample asks about the image")
        if self._family.bytes_travel:
            pixels = self._family.one_frame(inputs["pixel_values"], self._processor.image_processor)
            images_of["pixel_values"] = pixels.numpy()
        return Prepared(
            input_ids=input_ids,
            position_ids=self._family.position_ids(self._skeleton, inputs).numpy(),
            query=query,
            vision=vision,
            images=images_of,
            picture_tokens=tuple(
                int((input_ids[_overlaps(offsets, [range(*item["new_span"])])] == self._image_token).sum())
                for item in expansions
            ),
        )

    def _check_size(self, sample: Sample, images: Sequence[Image.Image]) -> None:
        """Refuses what is sure to be too long, and images that the model's processor would blow up, before any work
        goes into them."""
        parts = [part for turn in sample.turns for part in turn.content]
        characters = sum(len(part) for part in parts if isinstance(part, str))
        if max(len(parts), len(sample.turns), characters // _TOKEN_CHARACTERS) > self._max_length:
            raise SampleRejectedError(
                Reason.TOO_LONG,
                f"{characters:,} characters in {len(parts):,} parts, more than the limit of {self._max_length} tokens",
            )
        if characters > _LONG_CHARACTERS * self._max_length and not self._as_published:
            self._check_long_text([part for part in parts if isinstance(part, str)], characters)
        pixels = sum(map(self._scaled_pixels, images))
        if pixels > MAX_PIXELS:
            sizes = ", ".join(f"{image.width}x{image.height}" for image in images[:10])
            raise SampleRejectedError(
                Reason.IMAGE_TOO_LARGE,
                f"{sizes}: {pixels:,} pixels at the size of the model's images, above {MAX_PIXELS:,}",
            )

    def _check_long_text(self, texts: Sequence[str], characters: int) -> None:
        """Tokenizing takes time and memory in proportion to a text: one that is far too long is left in the midst."""
        pieces = (text[start : start + _PIECE] for text in texts for start in range(0, len(text), _PIECE))
        tokens = 0
        for piece in pieces:
            tokens += len(self._processor.tokenizer(piece, add_special_tokens=False)["input_ids"])
            if tokens > 2 * self._max_length:  # at the edges of pieces there are a few more than in the whole
                raise SampleRejectedError(
                    Reason.TOO_LONG,
                    f"{characters:,} characters, of which the first are {tokens:,} tokens, more than the limit of "
                    f"{self._max_length}",
                )

    def _cut_down(self, batch: Mapping[str, Any], length: int) -> dict[str, Any]:
        """What the processor made of one sample without the tokens above the limit. Raises SampleRejectedError where
        they are not to be left out, or an image is among them."""
        beyond = np.asarray(batch["input_ids"][0])[self._max_length :]
        message = f"{length} tokens, more than the limit of {self._max_length}"
        if not self._as_published or (beyond == self._image_token).any():
            raise SampleRejectedError(Reason.TOO_LONG, message + ", and images stand beyond it" * self._as_published)
        return {
            name: value[:, : self._max_length] if hasattr(value, "ndim") else [value[0][: self._max_length]]
            for name, value in batch.items()
            if name in _PER_TOKEN
        } | {name: value for name, value in batch.items() if name not in _PER_TOKEN}

    def _blanks_before(
        self, answers: Sequence[range], rendered: Rendering, input_ids: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        """The tokens that are but the blank before an answer, where the tokenizer makes the same one of the answer's
        own beginning (SentencePiece: `5` is a blank and `5`): they are the answer's. (S,) bool."""
        blank = np.zeros(len(input_ids), dtype=bool)
        texts = [rendered.text[span.start : span.stop] for span in rendered.ranges["assistant"]]
        for span, text in zip(answers, texts, strict=True):
            before = (offsets[:, 0] == span.start - 1) & (offsets[:, 1] == span.start)
            if before.any():
                alone = self._processor.tokenizer(text[:_BEGINNING], add_special_tokens=False)["input_ids"]
                blank |= before & (input_ids == alone[0])
        return blank

    @property
    def blanks_are_answers(self) -> bool:
        """Whether the tokenizer makes a blank of the beginning of `5`: where a template has one before an answer, that
        is counted otherwise than versions 0.1 and 0.2 did."""
        tokenizer = self._processor.tokenizer
        first, *more = tokenizer("5", add_special_tokens=False)["input_ids"]
        return bool(more) and tokenizer.convert_ids_to_tokens(first) == _BLANK

    def _scaled_pixels(self, image: Image.Image) -> int:
        """About so many pixels of the image when the processor has scaled it: one of 1x60000 pixels can become
        300x18000000."""
        size, pixels = self._processor.image_processor.size, image.width * image.height
        if self._family.resizable:
            bounds = self._images_kwargs.get("size", size)
            return int(min(max(pixels, bounds["shortest_edge"]), bounds["longest_edge"]))
        if edge := size.get("shortest_edge"):
            return int(pixels * (edge / min(image.size)) ** 2)
        return math.prod(_sides(size))

    def _check_tokens(self, sample: Sample, rendered: Rendering) -> None:
        """A text must not speak for the template: a special token of the tokenizer that stands for media, or that the
        template itself writes (whose turn it is, where it ends), would be read as if the template had put it there.
        Other special tokens in a text (`</s>` of a web page, boxes of a grounding corpus) are what they are to the
        model, and change no other token's role."""
        text, literal = rendered.text, rendered.literal
        for token in sorted(self._special):
            if (
                token in text
                and text.count(token) > literal.count(token)
                and (token in self._reserved or token in literal)
            ):
                holds = next(
                    (
                        f"a text of the {turn.role} holds"
                        for turn in sample.turns
                        if any(isinstance(part, str) and token in part for part in turn.content)
                    ),
                    "the turns together make",
                )
                raise SampleRejectedError(
                    Reason.SPECIAL_TOKEN, f"{holds} {token}, which the model keeps for images or for its template"
                )

    def _apply_template(self, turns: Sequence[Turn]) -> str:
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.content
                ],
            }
            for turn in turns
        ]
        try:
            return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
        except Exception as error:  # templates raise what they like: an order of roles they do not know, for one
            raise SampleRejectedError(
                Reason.BAD_CONVERSATION, f"the model's chat template refuses the conversation: {error}"
            ) from error


def _sides(size: Mapping[str, int | None]) -> list[int]:
    """Height and width of what an image processor makes, by its `size`; the most they can be where it bounds the
    longer one."""
    edge = size.get("shortest_edge") or size.get("longest_edge") or size.get("max_height")
    return [edge, edge] if edge else [side for name in ("height", "width") if (side := size.get(name))]


def _images_first(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns with all images at the beginning of the first user turn, in their order."""
    images = [part for turn in turns for part in turn.content if not isinstance(part, str)]
    texts = [replace(turn, content=tuple(part for part in turn.content if isinstance(part, str))) for turn in turns]
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    text = "".join(map(str, texts[first].content)).strip()
    texts[first] = replace(texts[first], content=(*images, *([text] if text else [])))
    return tuple(texts)


def _without_blanks(span: range, text: str) -> range:
    """A range of a text without the blanks at its ends."""
    said = text[span.start : span.stop]
    start = span.start + len(said) - len(said.lstrip())
    return range(start, start + len(said.strip()))


def share_images(samples: Iterable[Prepared]) -> list[Prepared]:
    """The samples, those with equal images holding the same object: it travels once and passes the vision tower
    once."""
    seen: dict[bytes, dict[str, np.ndarray]] = {}
    shared = []
    for sample in samples:
        digest = hashlib.sha256()
        for name, array in sample.images.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        shared.append(replace(sample, images=seen.setdefault(digest.digest(), sample.images)))
    return shared


def _expanded(
    rendered: Rendering, role: Literal["user", "assistant"], expansions: Sequence[dict[str, Any]]
) -> list[range]:
    """Character ranges of a role's texts, moved to where they stand once each image placeholder is written out in
    full."""
    first = expansions[0]
    before = first["span"][0] - rendered.text.index(first["text"])  # what a processor puts first: Molmo2's `<bos>`
    moved = []
    for span in rendered.ranges[role]:
        shift = before + sum(
            (item["new_span"][1] - item["new_span"][0]) - (item["span"][1] - item["span"][0])
            for item in expansions
            if item["span"][1] <= span.start + before
        )
        moved.append(range(span.start + shift, span.stop + shift))
    return moved


def _overlaps(offsets: np.ndarray, ranges: Sequence[range]) -> np.ndarray:
    """Which tokens, by their character offsets (S, 2), hold a character of one of the ranges. (S,) bool."""
    overlap = np.zeros(len(offsets), dtype=bool)
    for span in ranges:
        overlap |= (offsets[:, 0] < span.stop) & (offsets[:, 1] > span.start)
    return overlap
