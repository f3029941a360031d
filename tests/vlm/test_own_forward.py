"""Families and layers that are read while the model's own forward runs, against the full model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from forward_checkpoints import FORWARD_MAKERS, gemma2_llava, lfm2_vl, paligemma, qwen3_5, qwen3_vl
from oracle import attention_and_output, oracle, samples, whole
from PIL import Image

from scalselect_ray.corpus import ImagePlaceholder, Sample, SampleRejectedError, Turn
from scalselect_ray.errors import ModelError
from scalselect_ray.testing.checkpoints import MAKERS
from scalselect_ray.vlm import Extractor, Preparer, open_checkpoint
from scalselect_ray.vlm.extractor import on_picture
from scalselect_ray.vlm.families import Picture
from scalselect_ray.vlm.layers import ImageInputs
from scalselect_ray.vlm.own_forward import OwnForward
from scalselect_ray.vlm.watched_attention import Watch, _watched

pytestmark = pytest.mark.heavy


def extractor(folder: Path, layer=0) -> Extractor:
    return Extractor(
        open_checkpoint(str(folder), layer=layer),
        dtype=torch.float32,
        device=torch.device("cpu"),
        attention_threshold=0.9,
        batch_tokens=10_000,
    )


def check(folder: Path, made: Extractor, number: int = 0) -> None:
    """Features and counts of an extractor, by both rules, against the oracle's of a layer."""
    assert isinstance(made._reader, OwnForward)
    for rule in ("reference", "strict"):
        preparer = Preparer(open_checkpoint(str(folder), layer=number), tokens=rule)
        answers = made([preparer(sample, images) for sample, images in samples()])
        for (sample, images), answer in zip(samples(), answers, strict=True):
            feature, vision, query, attended = oracle(folder, sample, images, rule, 0.9, number)
            counts = answer.num_vision_tokens, answer.num_query_tokens, answer.num_attended_tokens
            assert counts == (vision, query, attended)
            np.testing.assert_allclose(answer.feature, feature, atol=2e-5)


@pytest.fixture(scope="module", params=sorted(FORWARD_MAKERS))
def family(request, tmp_path_factory) -> tuple[Path, Extractor]:
    folder = tmp_path_factory.mktemp(request.param)
    FORWARD_MAKERS[request.param](folder)
    return folder, extractor(folder)


def test_family_agrees_with_the_full_model(family):
    check(*family)


def test_each_token_lies_where_its_pixels_are(family):
    """Of two pictures that differ in one corner, the tokens there come out of the tower the most different. Not so
    those of Ovis2, which are words of a table; LFM2-VL has no map."""
    folder, made = family
    prepare = Preparer(open_checkpoint(str(folder)))
    if folder.name.startswith(("lfm2_vl", "ovis2")):
        turns = Turn("user", (ImagePlaceholder(0), "What?")), Turn("assistant", ("It.",))
        prepared = prepare(Sample(0, None, turns, ()), [Image.new("RGB", (112, 112))])
        shapes = [seen.received_RC.shape for seen in made.attention_maps(prepared, [(112, 112)])]
        assert shapes == ([(4, 4)] if folder.name.startswith("ovis2") else [])
        return
    seen: list[torch.Tensor] = []
    hook = made._reader._layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    turns = Turn("user", (ImagePlaceholder(0), "What?")), Turn("assistant", ("It.",))
    width, height = size = (112, 56)
    plain = Image.new("RGB", size, (90, 90, 90))
    for left, top in ((0, 0), (width // 2, 0), (width // 2, height // 2)):
        changed = plain.copy()
        changed.paste((255, 255, 255), (left, top, left + width // 2, top + height // 2))
        seen.clear()
        for picture in (plain, changed):
            prepared = prepare(Sample(0, None, turns, ()), [picture])
            assert len(made.attention_maps(prepared, [size])) == 1
        on_image = prepared.input_ids == made._config.image_token_id
        moved = (seen[1] - seen[0])[0].norm(dim=-1).numpy()[on_image]
        parts = Picture(len(moved), size, 0, prepared.images, made._image_processor, made._config)
        light = on_picture(moved, moved > 0, made._family.grids(parts)).received_RC
        rows, columns = light.shape
        halves = light[: rows // 2 * 2, : columns // 2 * 2].reshape(2, rows // 2, 2, columns // 2).sum((1, 3))
        assert np.unravel_index(halves.argmax(), (2, 2)) == (int(top > 0), int(left > 0)), halves
    hook.remove()


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_5_vl", "gemma3", "qwen3_vl"])
def test_another_layer_agrees_with_the_full_model(name, tmp_path):
    """Qwen3-VL adds features of its tower after the layers before it: they are part of what this one reads."""
    (MAKERS | FORWARD_MAKERS | {"qwen3_vl": qwen3_vl})[name](tmp_path)
    check(tmp_path, extractor(tmp_path, 2), 2)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_both_ways_of_reading_layer_0_agree(name, tmp_path):
    MAKERS[name](tmp_path)
    lean = extractor(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    prepared = [Preparer(checkpoint)(sample, images) for sample, images in samples()]
    from scalselect_ray.vlm.checkpoint import load_front

    model = load_front(checkpoint, torch.float32, torch.device("cpu"))
    images = ImageInputs(checkpoint.family, lean._image_processor, torch.float32, torch.device("cpu"))
    with torch.inference_mode():
        readings = OwnForward(model, images, 0).read(prepared, 0.9)
    for one, other in zip(lean(prepared), readings, strict=True):
        np.testing.assert_allclose(one.feature, other.feature_E, atol=2e-6)
        assert one.num_attended_tokens == len(other.rows_A)


def test_a_language_model_with_other_layers_is_not_read_part_by_part(tmp_path):
    """LLaVA on Gemma 2: norms after each part, capped logits, a sliding window."""
    gemma2_llava(tmp_path)
    check(tmp_path, extractor(tmp_path))


def test_paligemma_agrees_with_its_own_processor_and_the_full_model(tmp_path):
    """Question and answer as prefix and suffix, of which the prefix looks both ways; other conversations are no
    samples."""
    paligemma(tmp_path)
    made, preparer = extractor(tmp_path), Preparer(open_checkpoint(str(tmp_path)))
    assert any("paligemma" in line for line in preparer.filled)
    processor, model = whole(tmp_path)
    for count, question, answer in ((1, "answer en What\nis it?", "a cat"), (2, "caption en", "two cats\nand a dog")):
        rng = np.random.default_rng(count)
        images = [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(count)]
        content = (*(ImagePlaceholder(number) for number in range(count)), question)
        prepared = preparer(Sample(0, None, (Turn("user", content), Turn("assistant", (answer,))), ()), images)
        inputs = processor(text=["<image>" * count + question], images=[images], suffix=[answer], return_tensors="pt")
        assert prepared.input_ids.tolist() == inputs["input_ids"][0].tolist()
        assert prepared.images["token_type_ids"].tolist() == inputs["token_type_ids"].tolist()
        inputs.pop("labels")
        attention, output = attention_and_output(model, inputs)
        said = len(processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
        query = torch.ones(len(prepared.input_ids), dtype=torch.bool)
        query[-1 - said : -1] = False  # the last one ends the text
        vision = inputs["input_ids"][0] == 3
        received = attention[query & ~vision][:, vision].mean(0)
        received = received / received.sum()
        order = received.argsort(descending=True)
        rows = torch.where(vision)[0][order[: int((received[order].cumsum(0) <= 0.9).sum()) + 1]]
        (found,) = made([prepared])
        assert (found.num_query_tokens, found.num_attended_tokens) == (int((query & ~vision).sum()), len(rows))
        np.testing.assert_allclose(found.feature, output[rows].mean(0).numpy(), atol=1e-5)
    with pytest.raises(SampleRejectedError, match="one question and one answer"):
        preparer(*samples()[1])


def test_the_first_layer_with_attention_is_found(tmp_path):
    qwen3_5(tmp_path)
    check(tmp_path, extractor(tmp_path, "first_attention"), 1)


def test_a_layer_without_softmax_attention_is_refused_with_the_way_out(tmp_path):
    lfm2_vl(tmp_path, ("conv", "full_attention", "conv"))
    with pytest.raises(ModelError, match=r"layer 0 .* no softmax attention but conv.*extractor.layer: first_attention"):
        open_checkpoint(str(tmp_path))
    assert open_checkpoint(str(tmp_path), layer="first_attention").layer == 1
    with pytest.raises(ModelError, match=r"layer 2 .* conv"):
        open_checkpoint(str(tmp_path), layer=2)
    with pytest.raises(ModelError, match=r"extractor.layer: 3, but .* has 3 decoder layers; expected 0 to 2"):
        open_checkpoint(str(tmp_path), layer=3)


def test_attention_that_is_bent_in_ways_that_are_not_known_is_refused_by_name():
    query = torch.randn(1, 2, 5, 8)
    for name in ("s_aux", "position_bias"):
        with pytest.raises(ModelError, match=f"has {name}, which is not known"):
            _watched(torch.nn.Identity(), query, query, query, None, **{name: torch.zeros(2)})


def test_without_a_mask_tokens_look_back_alone_or_everywhere_as_the_module_says():
    """The only query token stands before the images: what looks back alone gives them nothing, which is uniform."""
    query = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    received = {}
    for is_causal in (True, False):
        module = torch.nn.Identity()
        module.is_causal, module.watch = is_causal, Watch(torch.tensor([0]), torch.arange(2, 5))
        _watched(module, query, query, query, None)
        received[is_causal] = module.watch.received_V
    assert torch.allclose(received[True], torch.full((3,), 1 / 3))
    logits = query[0, :, 0] @ query[0].transpose(1, 2) * 8**-0.5
    expected = torch.stack([logits[head, head] for head in range(2)]).softmax(-1)[:, 2:].sum(0)
    assert torch.allclose(received[False], expected / expected.sum())
