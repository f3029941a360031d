"""The small VLM of the quality benchmark: a LLaVA of transformers' own class, how it is warmed up and how it is tuned.

Tuning is LLaVA's second stage: the vision tower stays as it is, projector and language model are trained on the
answers. What the tower makes of a picture is therefore computed once. The warm-up stands for what comes before in life:
first the tower learns to see (which objects have their middle in a patch), then, with the tower as it is, the rest
learns to write captions that count, and last to answer the common kinds of questions. Its scenes are in neither the
corpus nor the tests; the pictures of its captions mix their boxes."""

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import BOX, COLOURS, SHAPES, Row, Scene, compose
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PATCH = 10
_SIDE = 2 * BOX // PATCH
VISION_TOKENS = _SIDE**2
_KINDS = list(itertools.product(COLOURS, SHAPES))
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] | trim }} {% endif %}{% endfor %}{% endfor %}"
)
_CAPTION = "describe the picture"
_SAID = 8  # counts in a caption
_EVALUATED = 256  # samples of one forward pass where nothing is trained


@dataclass(frozen=True, slots=True)
class Encoded:
    """Samples as the model takes them, each a picture, then its question, then the answer. N = samples, L = tokens of
    the longest text."""

    picture_N: torch.Tensor  # place among the pictures
    text_NL: torch.Tensor  # the question up to where the answer begins, padded on the right
    last_N: torch.Tensor  # place of the token that the answer follows
    answer_N: torch.Tensor

    def __getitem__(self, places: torch.Tensor) -> "Encoded":
        last_N = self.last_N[places]
        return Encoded(
            self.picture_N[places], self.text_NL[places, : int(last_N.max()) + 1], last_N, self.answer_N[places]
        )

    def __len__(self) -> int:
        return len(self.answer_N)


class Vlm:
    """A model with its processor, and the two ways of training it."""

    def __init__(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
        self.model = model
        self.processor = processor
        self._prefix = torch.tensor(self._tokens("USER :"))

    @staticmethod
    def create(texts: Sequence[str], width: int, layers: int) -> "Vlm":
        """One with random weights; its words are those of `texts` and of the captions."""
        words = {"USER :", "ASSISTANT :", _CAPTION, "object", *COLOURS, *SHAPES, *map(str, range(30)), *texts}
        split = pre_tokenizers.Whitespace()
        known = sorted({word for text in words for word, _ in split.pre_tokenize_str(text.lower())})
        special = ["<pad>", "</s>", "<image>", "<unk>"]
        tokenizer = Tokenizer(
            models.WordLevel({word: number for number, word in enumerate([*special, *known])}, unk_token="<unk>")
        )
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = split
        tokenizer.add_special_tokens(special)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
        fast.chat_template = _TEMPLATE
        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            image_size=2 * BOX,
            patch_size=PATCH,
        )
        text = LlamaConfig(
            vocab_size=len(fast),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=2,
            image_seq_length=VISION_TOKENS,
            vision_feature_layer=-1,
        )
        edge = {"height": 2 * BOX, "width": 2 * BOX}
        processor = LlavaProcessor(
            CLIPImageProcessor(size=edge, crop_size=edge),
            fast,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=_TEMPLATE,
        )
        return Vlm(LlavaForConditionalGeneration(config), processor)

    @staticmethod
    def load(folder: Path) -> "Vlm":
        return Vlm(LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder))

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def pixels(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """(N, 3, 60, 60)"""
        return torch.as_tensor(self.processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"])

    def encode(self, rows: Sequence[Row], pictures: dict[tuple[int, tuple[int, ...]], int]) -> Encoded:
        """`pictures` says where the picture of a scene in an order of its boxes is."""
        texts = [self._tokens(f"{row.question} ASSISTANT :") for row in rows]
        length = max(map(len, texts))
        return Encoded(
            torch.tensor([pictures[row.scene, row.order] for row in rows]),
            torch.tensor([text + [0] * (length - len(text)) for text in texts]),
            torch.tensor([len(text) - 1 for text in texts]),
            torch.tensor([self._tokens(row.answer)[0] for row in rows]),
        )

    @torch.no_grad()
    def see(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        """What the vision tower makes of pictures: (N, V, E)."""
        return torch.cat([self._see(part) for part in pixels_N3HW.split(_EVALUATED)])

    def logits(self, seen_NVE: torch.Tensor, text_NL: torch.Tensor, places_NA: torch.Tensor) -> torch.Tensor:
        """Of the token that follows each of the places in the text. (N, A, words)"""
        inner = self.model.model
        embed = inner.get_input_embeddings()
        prefix = embed(self._prefix).expand(len(text_NL), -1, -1)
        inputs = torch.cat([prefix, inner.multi_modal_projector(seen_NVE), embed(text_NL)], dim=1)
        hidden = inner.language_model(
            inputs_embeds=inputs, use_cache=False
        ).last_hidden_state  # padding is behind what is read
        start = len(self._prefix) + seen_NVE.shape[1]
        return self.model.lm_head(hidden[torch.arange(len(text_NL))[:, None], start + places_NA])

    @torch.no_grad()
    def right(self, seen_PVE: torch.Tensor, data: Encoded) -> np.ndarray:
        """Whether the most likely token is the answer. (N,) bool"""
        answers = []
        for places in torch.arange(len(data)).split(_EVALUATED):
            part = data[places]
            logits = self.logits(seen_PVE[part.picture_N], part.text_NL, part.last_N[:, None])[:, 0]
            answers.append(logits.argmax(dim=-1) == part.answer_N)
        return torch.cat(answers).numpy()

    def tune(self, seen_PVE: torch.Tensor, data: Encoded, steps: int, rate: float, batch: int, seed: int) -> None:
        """`steps` steps over the samples in an order drawn by `seed`, again and again; the vision tower stays as it
        is."""
        generator = torch.Generator().manual_seed(seed)
        orders: list[int] = []

        def loss() -> torch.Tensor:
            while len(orders) < batch:
                orders.extend(torch.randperm(len(data), generator=generator).tolist())
            part = data[torch.tensor(orders[:batch])]
            del orders[:batch]
            return F.cross_entropy(
                self.logits(seen_PVE[part.picture_N], part.text_NL, part.last_N[:, None])[:, 0], part.answer_N
            )

        _train(self._tuned(), loss, steps, rate)

    def warm_up(
        self, scenes: Sequence[Scene], steps: tuple[int, int], rate: float, batch: int, report: Callable[[str], None]
    ) -> None:
        """`steps` to see and to write captions: how many objects of some kinds there are, in a drawn order."""
        dice = random.Random(0)
        boxes = [(scene.boxes_3HWC[n], scene.objects[n], scene.centres[n]) for scene in scenes for n in range(3)]
        prompt = self._tokens(f"{_CAPTION} ASSISTANT :")
        head = torch.nn.Linear(self.model.config.vision_config.hidden_size, len(_KINDS))
        recent: list[float] = []
        started = time.process_time()

        def noted(right: torch.Tensor, what: str) -> None:
            recent.append(float(right.float().mean()))
            if len(recent) % 100 == 0:
                report(
                    f"warm-up: step {len(recent)}, {what} right {np.mean(recent[-100:]):.3f}, "
                    f"{time.process_time() - started:.0f} s"
                )

        def seeing() -> torch.Tensor:
            drawn = [_draw(boxes, dice) for _ in range(batch)]
            there_NVK = torch.from_numpy(np.stack([there_VK for _, there_VK, _ in drawn]))
            logits_NVK = head(self._see(self.pixels([picture for picture, _, _ in drawn])))
            noted((logits_NVK > 0)[there_NVK > 0], "objects")
            return F.binary_cross_entropy_with_logits(logits_NVK, there_NVK)

        def writing() -> torch.Tensor:
            drawn = [_draw(boxes, dice) for _ in range(batch)]
            captions = [_caption(objects, dice) for _, _, objects in drawn]
            words = [[token for word in caption for token in self._tokens(word)] for caption in captions]
            text_NL = torch.tensor([prompt + line for line in words])  # a token a word: all captions are of one length
            digits_NA = torch.tensor(
                [[len(prompt) + place for place, word in enumerate(line) if word.isdigit()] for line in captions]
            )
            answer_NA = text_NL.gather(1, digits_NA)
            logits = self.logits(self.see(self.pixels([picture for picture, _, _ in drawn])), text_NL, digits_NA - 1)
            noted(logits.argmax(dim=-1) == answer_NA, "counts")
            return F.cross_entropy(logits.flatten(0, 1), answer_NA.flatten())

        _train([*self.model.model.vision_tower.parameters(), *head.parameters()], seeing, steps[0], rate)
        _train(self._tuned(), writing, steps[1], rate)

    def _tuned(self) -> list[torch.nn.Parameter]:
        """All but the vision tower."""
        return [parameter for name, parameter in self.model.named_parameters() if "vision_tower" not in name]

    def _see(self, pixels_N3HW: torch.Tensor) -> torch.Tensor:
        return self.model.model.vision_tower(pixels_N3HW).last_hidden_state[:, 1:]

    def _tokens(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def _draw(boxes: Sequence[Any], dice: random.Random) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """A picture of three boxes of any scenes, mirrored or not; what has its middle in each patch (V, K); its
    objects."""
    drawn, objects = [], []
    there_RCK = np.zeros((_SIDE, _SIDE, len(_KINDS)), dtype=np.float32)
    half = _SIDE // 2
    for place, (picture, things, centres) in enumerate(dice.sample(boxes, 3)):
        down, across = dice.choice((1, -1)), dice.choice((1, -1))
        drawn.append(picture[::down, ::across])
        objects += things
        for thing, (x, y) in zip(things, centres, strict=True):
            row = place // 2 * half + min(int(half * (y if down > 0 else 1 - y)), half - 1)
            column = place % 2 * half + min(int(half * (x if across > 0 else 1 - x)), half - 1)
            there_RCK[row, column, _KINDS.index(thing)] = 1
    return compose(np.stack(drawn)), there_RCK.reshape(-1, len(_KINDS)), objects


def _caption(objects: Sequence[tuple[str, str]], dice: random.Random) -> list[str]:
    """The words of some counts: `yellow circle 2 black object 5 ...`."""
    pairs = Counter(objects)
    colours, shapes = Counter(colour for colour, _ in objects), Counter(shape for _, shape in objects)
    counts = {kind: pairs[kind] for kind in _KINDS}
    counts |= {(colour, "object"): colours[colour] for colour in COLOURS} | {
        ("a", shape): shapes[shape] for shape in SHAPES
    }
    return [word for kind in dice.sample(sorted(counts), _SAID) for word in (*kind, str(counts[kind]))]


def _train(parameters: list[torch.nn.Parameter], loss: Callable[[], torch.Tensor], steps: int, rate: float) -> None:
    """AdamW; the rate rises over the first tenth of the steps and falls to zero by a cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    rising = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * step / max(steps, 1)))
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
