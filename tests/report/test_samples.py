"""The attention over the pictures against the golden values, and where it lies on them."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image

from scalselect_ray.corpus import ImagePlaceholder, Sample, Turn, load_image
from scalselect_ray.corpus.conversation import normalise
from scalselect_ray.corpus.images import resolver
from scalselect_ray.report.gallery import draw_overlay, thumbnail_of
from scalselect_ray.testing.checkpoints import MAKERS
from scalselect_ray.vlm import AttentionMap, Extractor, Preparer, open_checkpoint
from scalselect_ray.vlm.extractor import on_picture
from scalselect_ray.vlm.families import Grid

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", params=["llava", "qwen3"])
def golden(request):
    """(name, preparer, extractor, samples with their pictures, expected values)"""
    folder = GOLDEN / request.param
    checkpoint = open_checkpoint(str(folder / "model"))
    extractor = Extractor(
        checkpoint, dtype=torch.float32, device=torch.device("cpu"), attention_threshold=0.9, batch_tokens=8192
    )
    samples = [
        normalise(row, record, resolver(str(folder)))
        for row, record in enumerate(json.loads((folder / "samples.json").read_text()))
    ]
    pictures = [[load_image(image) for image in sample.images] for sample in samples]
    return (
        request.param,
        Preparer(checkpoint),
        extractor,
        list(zip(samples, pictures, strict=True)),
        np.load(folder / "expected.npz"),
    )


def test_the_attended_patches_are_those_of_the_golden_features(golden):
    """Qwen's marks around an image are tokens that may be attended to and lie on no picture."""
    name, prepare, extractor, samples, expected = golden
    marks = {"llava": 0, "qwen3": 2}[name]
    for row, (sample, pictures) in enumerate(samples):
        prepared = prepare(sample, pictures)
        maps = extractor.attention_maps(prepared, [picture.size for picture in pictures])
        assert len(maps) == len(pictures)
        on_pictures = sum(item.attended_RC.sum() for item in maps)
        assert 0 <= expected["num_attended_tokens"][row] - on_pictures <= marks * len(pictures)
        assert sum(item.attended_RC.size for item in maps) == expected["num_vision_tokens"][row] - marks * len(pictures)
        received = np.concatenate([item.received_RC.ravel() for item in maps])
        attended = np.concatenate([item.attended_RC.ravel() for item in maps])
        assert received.sum() <= 1 + 1e-5
        assert received[attended].min() >= received[~attended].max(initial=0), "the most attended are kept"
        assert marks or received[attended].sum() > 0.9


def test_each_token_lies_where_its_pixels_are(golden):
    """White on one place of a black picture: the token of that index has the bright pixels."""
    name, prepare, extractor, samples, _ = golden
    sample = next(sample for sample, pictures in samples if len(pictures) == 1)
    for width, height in ((300, 200), (160, 256), (224, 224)):
        grid = extractor.attention_maps(prepare(sample, [Image.new("RGB", (width, height))]), [(width, height)])[0]
        rows, columns = grid.received_RC.shape
        left, top, right, bottom = (edge * side for edge, side in zip(grid.box, (width, height) * 2, strict=True))
        assert 0 <= left < right <= width + 0.01
        assert 0 <= top < bottom <= height + 0.01
        for row, column in ((0, 0), (1, columns - 1), (rows - 1, 2)):
            picture = Image.new("RGB", (width, height))
            x, y = ((right - left) / columns, (bottom - top) / rows)
            box = [left + column * x, top + row * y, left + (column + 1) * x, top + (row + 1) * y]
            picture.paste((255, 255, 255), [round(edge) for edge in box])
            pixels = prepare(sample, [picture]).images["pixel_values"].astype(float)
            if name == "llava":
                light = pixels[0].mean(0).reshape(rows, 14, columns, 14).mean((1, 3))
            else:
                light = (
                    pixels.mean(1).reshape(rows, columns, 4).mean(2)
                )  # 2 x 2 patches, one after the other, are one token
            assert np.unravel_index(light.argmax(), light.shape) == (row, column)


def test_llava_sees_the_middle_of_a_wide_picture_and_qwen_all_of_it(golden):
    name, prepare, extractor, samples, _ = golden
    sample = next(sample for sample, pictures in samples if len(pictures) == 1)
    box = extractor.attention_maps(prepare(sample, [Image.new("RGB", (400, 100))]), [(400, 100)])[0].box
    assert box == ((0.375, 0.0, 0.625, 1.0) if name == "llava" else (0.0, 0.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("family", "sizes", "shapes"),
    [
        ("llava_next", [(112, 56)], [(4, 8)]),
        ("llava_next", [(56, 112)], [(8, 4)]),
        ("llava_next", [(100, 70)], [(6, 8)]),
        ("llava_next", [(112, 50), (60, 110)], [(4, 8), (8, 4)]),
        ("llava_onevision", [(100, 70)], [(6, 8)]),
        pytest.param(
            "llava_onevision", [(112, 50), (60, 110)], [(4, 4), (4, 4)], id="OneVision crops no picture of several"
        ),
    ],
)
def test_a_picture_in_crops_has_one_map_of_its_finest_grid(family, sizes, shapes, tmp_path, monkeypatch):
    MAKERS[family](tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    extractor = Extractor(
        checkpoint, dtype=torch.float32, device=torch.device("cpu"), attention_threshold=0.9, batch_tokens=8192
    )
    pictures = [Image.new("RGB", size, (90, 10 * index, 200)) for index, size in enumerate(sizes)]
    asked = tuple(piece for index in range(len(sizes)) for piece in (ImagePlaceholder(index), "and"))
    prepared = Preparer(checkpoint)(Sample(0, "0", (Turn("user", asked), Turn("assistant", ("No.",))), ()), pictures)
    maps = extractor.attention_maps(prepared, sizes)
    assert [seen.received_RC.shape for seen in maps] == shapes
    assert all(seen.attended_RC.any() for seen in maps)

    def uniform(query, key, query_Q, vision_V, *more):
        return torch.full((len(vision_V),), 1 / len(vision_V))

    monkeypatch.setattr("scalselect_ray.vlm.attended_rows.attention_received", uniform)
    maps = extractor.attention_maps(prepared, sizes)
    on_pictures = sum(
        16 + (rows * columns if (rows, columns) != (4, 4) else 0) for rows, columns in shapes
    )  # 16: the whole picture
    share = sum(seen.received_RC.sum() for seen in maps)
    assert share == pytest.approx(on_pictures / prepared.vision.sum()), "the newlines at the ends of rows have the rest"


def test_a_place_adds_up_what_it_has_in_the_whole_picture_and_in_its_crop():
    whole, crops = Grid(1, 2), Grid(2, 2, newlines=True)
    received = np.array([0.2, 0.4, 0.01, 0.02, 0.1, 0.03, 0.04, 0.2])  # 0.1 and 0.2 are those of the newlines
    attended = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
    seen = on_picture(received, attended, [whole, crops])
    np.testing.assert_allclose(seen.received_RC, [[0.11, 0.22], [0.13, 0.24]], rtol=1e-6)
    assert seen.attended_RC.tolist() == [[True, True], [False, True]]
    class_token = on_picture(received[:3], attended[:3], [Grid(1, 2, before=1)])
    np.testing.assert_allclose(class_token.received_RC, [[0.4, 0.01]], rtol=1e-6)


def test_an_overlay_has_a_pixel_a_token_dark_where_nothing_is_attended():
    seen = AttentionMap(
        np.array([[0.6, 0.0, 0.3], [0.02, 0.05, 0.03]]), np.array([[1, 0, 1], [0, 0, 0]], bool), (0, 0, 1, 1)
    )
    drawn = draw_overlay(seen)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["overlay"].partition(",")[2]))))
    assert pixels.shape == (2, 3, 4)
    veiled = pixels[..., :3].max(-1) < 30
    assert veiled.tolist() == (~seen.attended_RC).tolist()
    assert pixels[0, 0, 3] > pixels[0, 2, 3], "more attention, more heat"
    assert drawn["attended"] == (2, 6)


def test_thumbnails_are_small_and_know_the_size_of_the_picture():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8))
    made = thumbnail_of(noise)
    assert (made.width, made.height) == (1600, 900)
    assert Image.open(io.BytesIO(base64.b64decode(made.image.partition(",")[2]))).size == (256, 144)
    assert len(made.image) < 60_000
