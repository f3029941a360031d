"""The corpora of the quality benchmark: instructions about NLVR's scenes, with sources of unequal size and
near-duplicates by construction.

A *scene* is three boxes of objects. Its picture here is the three boxes, 30 x 30 pixels each, in a square of four (the
fourth is empty). Scenes, not samples, are split: what is in the boxes of a test picture is in no picture of the
training data, in whatever order."""

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

BOX = 30
COLOURS = {"yellow": "Yellow", "black": "Black", "blue": "#0099ff"}
SHAPES = ("square", "circle", "triangle")
HUMAN = "human"
_SPLITS = {"warm-up": 0.30, "corpus": 0.45, "validation": 0.10, "test": 0.15}
_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_EMPTY = 128  # the grey between NLVR's boxes
_DRAWS = 12
_MOST = 8  # the largest count that is asked for


@dataclass(frozen=True, slots=True)
class Scene:
    """What NLVR says of one scene."""

    boxes_3HWC: np.ndarray  # uint8
    objects: tuple[tuple[tuple[str, str], ...], ...]  # (colour, shape) of each object, box by box
    centres: tuple[tuple[tuple[float, float], ...], ...]  # of the same objects: (x, y) in the box, from 0 to 1
    statements: tuple[tuple[str, str], ...]  # what people wrote, and whether it is true


@dataclass(frozen=True, slots=True)
class Row:
    """One sample: a picture, a question and its answer of one word. Rows of one `group` are near-duplicates."""

    source: str
    scene: int
    order: tuple[int, ...]  # of the boxes
    question: str
    answer: str
    group: int


@dataclass(frozen=True, slots=True)
class Source:
    """So many groups of near-duplicates of one kind of question, `copies` rows at most each."""

    groups: int
    copies: int


# The big source is easy and says everything eight times; the rare ones ask what no other source asks.
SOURCES = {
    "easy": Source(300, 8),
    "exist": Source(250, 2),
    "count": Source(250, 2),
    "compare": Source(150, 2),
    "colour": Source(90, 2),
    "shape": Source(60, 2),
    "boxes": Source(60, 2),
    HUMAN: Source(200, 1),
}


def read_scenes(folder: Path, most: int | None) -> list[Scene]:
    """The scenes of NLVR's dev and test files, each once (a scene comes in six orders of its boxes, and with several
    statements)."""
    scenes: dict[str, tuple[np.ndarray, Any, Any, set[tuple[str, str]]]] = {}
    for text, label, objects, data in _records(folder):
        key = json.dumps(
            sorted(
                sorted([thing["x_loc"], thing["y_loc"], thing["size"], thing["color"], thing["type"]] for thing in box)
                for box in objects
            )
        )
        if key not in scenes:
            if len(scenes) == most:
                break
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            cut = [
                picture.crop((left, 0, left + 100, 100)).resize((BOX, BOX), Image.Resampling.BOX)
                for left in (0, 150, 300)
            ]
            names = {colour: name for name, colour in COLOURS.items()}
            things = tuple(tuple((names[thing["color"]], thing["type"]) for thing in box) for box in objects)
            centres = tuple(
                tuple(
                    ((thing["x_loc"] + thing["size"] / 2) / 100, (thing["y_loc"] + thing["size"] / 2) / 100)
                    for thing in box
                )
                for box in objects
            )
            scenes[key] = np.stack([np.asarray(box) for box in cut]), things, centres, set()
        scenes[key][3].add((text, label))
    return [Scene(boxes, things, centres, tuple(sorted(said))) for boxes, things, centres, said in scenes.values()]


def _records(folder: Path) -> Iterator[tuple[str, str, Any, bytes]]:
    """Statement, true or false, scene and PNG of each sample."""
    for path in sorted((folder / "parquet").glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(250):
            for row in batch.to_pylist():
                said = row["messages"][0]["content"].split("\n")[1]
                yield said, row["messages"][1]["content"], json.loads(row["scene"]), row["images"][0]["bytes"]
    for path in sorted((folder / "webdataset").glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: member for member in tar}
            for name in sorted(files):
                if name.endswith(".json"):
                    row = json.loads(tar.extractfile(files[name]).read())  # type: ignore[union-attr]
                    turns = row["conversations"]
                    scene = json.loads(row["scene"]) if isinstance(row["scene"], str) else row["scene"]
                    picture = tar.extractfile(files[name.removesuffix(".json") + ".png"])
                    yield turns[0]["value"].split("\n")[1], turns[1]["value"], scene, picture.read()  # type: ignore[union-attr]


def split_scenes(count: int) -> dict[str, list[int]]:
    """Which scenes each split has."""
    shuffled = random.Random(0).sample(range(count), count)
    splits, start = {}, 0
    for name, share in _SPLITS.items():
        stop = min(start + round(share * count), count)
        splits[name], start = shuffled[start:stop], stop
    return splits


def compose(boxes_3HWC: np.ndarray, order: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """The picture of three boxes. (60, 60, 3) uint8."""
    picture = np.full((2 * BOX, 2 * BOX, 3), _EMPTY, dtype=np.uint8)
    for place, box in enumerate(order):
        top, left = divmod(place, 2)
        picture[top * BOX : (top + 1) * BOX, left * BOX : (left + 1) * BOX] = boxes_3HWC[box]
    return picture


def make_corpus(scenes: list[Scene], places: list[int], scale: float) -> list[Row]:
    """The corpus to select from, shuffled. Copies say the same again, in other words, or of the same boxes in another
    order."""
    dice = random.Random(1)
    rows: list[Row] = []
    for name, source in SOURCES.items():
        for row in _bases(name, scenes, places, max(round(source.groups * scale), 2), dice, len(rows)):
            rows.append(row)
            for _ in range(source.copies - 1 if source.copies > 2 else dice.randrange(source.copies)):
                order = row.order if dice.random() < 0.5 else dice.choice(_ORDERS)
                question = row.question if dice.random() < 0.5 else dice.choice(_paraphrases(row.question))
                rows.append(Row(name, row.scene, order, question, row.answer, row.group))
    dice.shuffle(rows)
    return rows


def make_test(scenes: list[Scene], places: list[int], each: int, seed: int) -> list[Row]:
    """`each` samples of every kind, none twice."""
    dice = random.Random(seed)
    return [row for name in SOURCES for row in _bases(name, scenes, places, each, dice, 0)]


def _bases(
    name: str, scenes: list[Scene], places: list[int], count: int, dice: random.Random, first_group: int
) -> list[Row]:
    """Samples of one kind that differ; of the answers that the scenes offer, each draw takes the rarest so far."""
    given: Counter[str] = Counter()
    rows: list[Row] = []
    seen: set[tuple[int, str]] = set()
    for _ in range(4 * count):
        drawn = [(place, *_ask(name, scenes[place], dice)) for place in dice.choices(places, k=_DRAWS)]
        fresh = [item for item in drawn if item[2] and (item[0], item[1]) not in seen]
        if fresh and len(rows) < count:
            place, question, answer = min(fresh, key=lambda item: given[item[2]])
            given[answer] += 1
            seen.add((place, question))
            worded = question if name == HUMAN else dice.choice([question, *_paraphrases(question)])
            rows.append(Row(name, place, dice.choice(_ORDERS), worded, answer, first_group + len(rows)))
    return rows


def _ask(name: str, scene: Scene, dice: random.Random) -> tuple[str, str]:
    """A question of one kind about a scene, and its answer; an empty answer where it has none."""
    objects = [thing for box in scene.objects for thing in box]
    colour, shape = dice.choice(list(COLOURS)), dice.choice(SHAPES)
    other = dice.choice([name for name in COLOURS if name != colour])
    colours, shapes = Counter(colour for colour, _ in objects), Counter(shape for _, shape in objects)
    if name == "easy":
        return f"is there a {colour} object ?", "yes" if colours[colour] else "no"
    if name == "exist":
        return f"is there a {colour} {shape} ?", "yes" if (colour, shape) in objects else "no"
    if name == "count":
        words, found = dice.choice(
            [
                (f"{colour} objects", colours[colour]),
                (f"{shape}s", shapes[shape]),
                (f"{colour} {shape}s", objects.count((colour, shape))),
            ]
        )
        return f"how many {words} are there ?", str(found) if found <= _MOST else ""
    if name == "compare":
        return f"are there more {colour} than {other} objects ?", "yes" if colours[colour] > colours[other] else "no"
    if name == "colour":
        return "which colour is the most common ?", _winner(colours)
    if name == "shape":
        return "which shape is the most common ?", _winner(shapes)
    if name == "boxes":
        return f"how many boxes hold a {colour} {shape} ?", str(sum((colour, shape) in box for box in scene.objects))
    return dice.choice(scene.statements)


def _winner(counts: Counter[str]) -> str:
    """The name that is most often there; empty where two are."""
    (first, most), *others = counts.most_common(2)
    return "" if others and others[0][1] == most else first


def _paraphrases(question: str) -> list[str]:
    """The same in other words."""
    words = question.removesuffix(" ?")
    for start, ends in {
        "is there a ": ("can you see a {} ?", "does the picture show a {} ?"),
        "how many boxes hold a ": ("in how many boxes is a {} ?", "count the boxes with a {} ."),
        "how many ": ("count the {} .", "what is the number of {} ?"),
        "are there more ": ("is the number of {} larger ?", "do you see more {} ?"),
        "which ": ("tell me which {} .", "say which {} ."),
    }.items():
        if words.startswith(start):
            return [end.format(words.removeprefix(start).removesuffix(" are there")) for end in ends]
    return [question]
