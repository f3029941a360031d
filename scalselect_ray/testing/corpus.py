"""A small corpus of pictures that a program draws."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

_COLOURS = ("red", "green", "blue", "yellow", "black", "purple")
_SHAPES = ("circle", "square", "bar")
_QUESTIONS = ("What is in the picture?", "Which shapes can you see?", "Describe the colours.")


def draw(folder: Path, count: int) -> Path:
    """Writes `folder/shapes.json`, a list of `count` conversations about one picture each, and the pictures below
    `folder/images`; returns the path of the list. The same bytes each time."""
    dice = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture = Image.new("RGB", (dice.randint(60, 160), dice.randint(60, 160)), "white")
        draw = ImageDraw.Draw(picture)
        drawn = []
        for _ in range(dice.randint(1, 4)):
            shape, colour = dice.choice(_SHAPES), dice.choice(_COLOURS)
            x, y, size = dice.randint(0, 50), dice.randint(0, 50), dice.randint(10, 60)
            box = (x, y, x + size, y + size)
            if shape == "circle":
                draw.ellipse(box, fill=colour)
            else:
                draw.rectangle(box if shape == "square" else (x, y, x + size, y + 8), fill=colour)
            drawn.append(f"a {colour} {shape}")
        name = f"images/{number:04d}.png"
        picture.save(folder / name)
        turns = [
            {"from": "human", "value": f"<image>\n{dice.choice(_QUESTIONS)}"},
            {"from": "gpt", "value": f"I can see {' and '.join(drawn)}."},
        ]
        rows.append({"id": number, "image": name, "conversations": turns})
    path = folder / "shapes.json"
    path.write_text(json.dumps(rows))
    return path
