"""Extraction at the shapes of LLaVA-1.5-7B against the straightforward way, and against the floor of the work it takes.

python benchmarks/extraction.py [--layers 24] [--samples 24] [--plain-samples 8] [--threads 1] [--ways ours own-forward]

`own-forward` is this project's way for families whose layer 0 is not computed part by part, here on one where it is.
The straightforward way is the whole model with eager attention that returns the attention of all its layers: one sample
at a time, which is held against this project a sample at a time, and eight in a padded batch, against batches of a few
thousand tokens. Each way runs in a process of its own, on the same checkpoint (random weights, bfloat16) and the same
prepared samples; what is timed is the model's work, not reading or preparing, in CPU seconds: other work on the machine
hardly shows in them. Memory is the peak of what is resident, weights among it, less what was when the libraries were
imported and the samples made; beside it the peak of what the process allocates, in which files that it maps (weights,
on both sides) do not count. The floor (see floor.py) are the FLOPs that the method cannot do without, at the speed that
linear layers of the same shapes reach alone in the same process. The last line of stdout is one JSON record."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import floor
import numpy as np
import torch
from memory import SELF, memory_of, peak_of
from PIL import Image
from prepare import model_at_336
from record import print_record
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from scalselect_ray.corpus import ImagePlaceholder, Sample, Turn
from scalselect_ray.vlm import Extractor, Prepared, Preparer, open_checkpoint, share_images
from scalselect_ray.vlm.attended_rows import is_proven

_PROVEN = "scalselect_ray.vlm.extractor.is_proven"

SHAPES = {
    "7b": {
        "text": dict(
            hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32, vocab_size=32064
        ),
        "vision": dict(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, projection_dim=768
        ),
    },
    "small": {
        "text": dict(
            hidden_size=128, intermediate_size=344, num_attention_heads=4, num_key_value_heads=4, vocab_size=512
        ),
        "vision": dict(
            hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, projection_dim=64
        ),
    },
}
BATCH_TOKENS = {"ours": 4096, "ours-1": 1, "own-forward": 1}
BESIDE = {"plain-1": "ours-1", "plain-8": "ours", "own-forward": "ours"}


def make_checkpoint(folder: Path, shapes: str, layers: int) -> None:
    """Random weights, one file a decoder layer as large checkpoints have it; all decoder layers hold the same
    numbers."""
    described = LlavaConfig.from_pretrained(model_at_336(folder))
    (folder / "model.safetensors").unlink()
    config = LlavaConfig(
        text_config=LlamaConfig(**SHAPES[shapes]["text"], num_hidden_layers=layers, max_position_embeddings=4096),
        vision_config=CLIPVisionConfig(**SHAPES[shapes]["vision"], image_size=336, patch_size=14),
        image_token_index=described.image_token_id,
        image_seq_length=576,
    )
    config.architectures, config.dtype = ["LlavaForConditionalGeneration"], torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        wanted = AutoModelForImageTextToText.from_config(config).state_dict()
    torch.manual_seed(0)
    layer = {
        name: random_weight(name, tensor)
        for name, tensor in wanted.items()
        if ".layers.0." in name and "language_model" in name
    }
    groups: dict[str, dict[str, torch.Tensor]] = {"front.safetensors": {}}
    for name, tensor in wanted.items():
        found = [
            part
            for part in layer
            if name.split(".layers.")[-1].partition(".")[2] == part.split(".layers.")[-1].partition(".")[2]
        ]
        if "language_model" in name and ".layers." in name:
            number = name.split(".layers.")[1].partition(".")[0]
            groups.setdefault(f"layer-{number}.safetensors", {})[name] = layer[found[0]]
        else:
            groups["front.safetensors"][name] = random_weight(name, tensor)
    for file, tensors in groups.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in groups.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def random_weight(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim < 2:
        return torch.ones(tensor.shape, dtype=torch.bfloat16) * ("bias" not in name)
    sharpened = 2.0 if "q_proj" in name or "k_proj" in name else 1.0  # plain random weights attend to everything alike
    return (torch.randn(tensor.shape) * sharpened * tensor.shape[-1] ** -0.5).to(torch.bfloat16)


def make_samples(folder: Path, count: int) -> list[Prepared]:
    """Questions and answers of the lengths that instruction corpora have: most are short, some are long."""
    preparer, random = Preparer(open_checkpoint(str(folder))), np.random.default_rng(0)
    prepared = []
    for number in range(count):
        asked, said = (int(length) for length in random.lognormal(3.6, 0.6, 2).clip(5, 300))
        image = Image.fromarray(random.integers(0, 256, (336, 336, 3), dtype=np.uint8))
        turns = Turn("user", (ImagePlaceholder(0), "w" * asked)), Turn("assistant", ("a" * said,))
        prepared.append(preparer(Sample(number, str(number), turns, ()), [image]))
    return share_images(prepared)


def straightforward(folder: Path, threshold: float, batch: int) -> Callable[[list[Prepared]], list[np.ndarray]]:
    """The method by the words of the paper, on the whole model: attention and hidden states of all layers are asked
    for."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    processor = Preparer(open_checkpoint(str(folder)))._processor.image_processor

    def represent(samples: list[Prepared]) -> list[np.ndarray]:
        features = []
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            longest = max(len(sample.input_ids) for sample in part)
            pads = [longest - len(sample.input_ids) for sample in part]
            input_ids = torch.tensor(
                np.stack([np.pad(sample.input_ids, (pad, 0)) for sample, pad in zip(part, pads, strict=True)])
            )
            mask = torch.tensor(np.stack([np.arange(longest) >= pad for pad in pads])).long()
            pixels = torch.from_numpy(np.concatenate([sample.images["pixel_values"] for sample in part]))
            pixels = processor.rescale_and_normalize(
                pixels, True, 1 / 255, True, processor.image_mean, processor.image_std
            )
            with torch.no_grad():
                output = model(
                    input_ids=input_ids,
                    attention_mask=mask,
                    pixel_values=pixels.to(model.dtype),
                    output_attentions=True,
                    output_hidden_states=True,
                    use_cache=False,
                )
            for place, (sample, pad) in enumerate(zip(part, pads, strict=True)):
                attention = output.attentions[0][place].float().mean(dim=0)[pad:, pad:]
                vision, query = (torch.from_numpy(np.flatnonzero(rows)) for rows in (sample.vision, sample.query))
                received = attention[query][:, vision].mean(dim=0)
                weights, order = (received / received.sum()).double().sort(descending=True, stable=True)
                kept = vision[order[: int((weights.cumsum(0) <= threshold).sum()) + 1]]
                features.append(output.hidden_states[1][place, pad:][kept].float().mean(dim=0).numpy())
        return features

    return represent


def ours(folder: Path, threshold: float, batch_tokens: int) -> Extractor:
    return Extractor(
        open_checkpoint(str(folder)),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        attention_threshold=threshold,
        batch_tokens=batch_tokens,
    )


def one_way(way: str, folder: Path, samples: int) -> dict[str, Any]:
    """In a process of its own."""
    prepared, threshold = make_samples(folder, samples), 0.9
    before = memory_of(SELF, "VmRSS")
    with peak_of(lambda: memory_of(SELF, "RssAnon"), seconds=0.02) as peak:
        started = time.perf_counter()
        represent: Callable[[list[Prepared]], list[Any]]
        if way in BATCH_TOKENS:
            with mock.patch(_PROVEN, (lambda layer: False) if way == "own-forward" else is_proven):
                represent = ours(folder, threshold, BATCH_TOKENS[way])
        else:
            represent = straightforward(folder, threshold, int(way.removeprefix("plain-")))
        loaded = time.perf_counter()
        represent(prepared[: max(1, samples // 4)])
        times = []
        for _ in range(3 if way in BATCH_TOKENS else 1):
            begun = time.process_time()
            answers = represent(prepared)
            times.append(time.process_time() - begun)
    result = {
        "way": way,
        "samples": samples,
        "load_s": loaded - started,
        "cpu_seconds_per_sample": min(times) / samples,
        "peak_mib": (memory_of(SELF, "VmHWM") - before) >> 20,
        "peak_allocated_mib": peak["bytes"] >> 20,
        "peak_resident_mib": memory_of(SELF, "VmHWM") >> 20,
    }
    features = answers
    if isinstance(represent, Extractor):
        features = [answer.feature for answer in answers]
        result |= against_the_floor(folder, prepared, answers, min(times), represent)
    np.save(folder / f"{way}.npy", np.stack(features))
    return result


def against_the_floor(
    folder: Path, prepared: list[Prepared], answers: list[Any], seconds: float, extractor: Extractor
) -> dict[str, Any]:
    config = LlavaConfig.from_pretrained(folder)
    needed: dict[str, float] = {"tower": 0.0, "projector": 0.0}
    whole = 0.0
    layers = floor.used_tower_layers(config)
    for sample, answer in zip(prepared, answers, strict=True):
        vision = np.flatnonzero(sample.vision)
        tokens = floor.Tokens(
            len(sample.input_ids), len(vision), int(sample.query.sum()), answer.num_attended_tokens, int(vision[-1])
        )
        needed["tower"] += floor.tower_flops(config, layers)
        needed["projector"] += floor.projector_flops(config, len(vision))
        for part, flops in floor.needed_of_layer_0(config, tokens).items():
            needed[part] = needed.get(part, 0.0) + flops
        whole += floor.tower_flops(config, config.vision_config.num_hidden_layers) + floor.projector_flops(
            config, len(vision)
        )
        whole += config.text_config.num_hidden_layers * floor.whole_layer_flops(config, tokens.all)
    with FlopCounterMode(display=False) as counter:
        extractor(prepared)
    vision, text = config.vision_config, config.text_config
    images = max(1, BATCH_TOKENS["ours"] // len(prepared[0].input_ids))
    rows, attended = images * 577, images * int(np.mean([answer.num_attended_tokens for answer in answers]))
    shapes = (
        [(rows, vision.hidden_size, vision.hidden_size)] * 4 * layers
    )  # in the order that the tower has them: weights out of cache
    shapes += [
        (rows, vision.hidden_size, vision.intermediate_size),
        (rows, vision.intermediate_size, vision.hidden_size),
    ] * layers
    shapes += [(BATCH_TOKENS["ours"], text.hidden_size, text.hidden_size)] * 3
    shapes += [(attended, text.hidden_size, text.intermediate_size)] * 2 + [
        (attended, text.intermediate_size, text.hidden_size)
    ]
    ceiling = floor.matmul_ceiling(shapes, torch.bfloat16)
    weights = sum(
        parameter.numel()
        for parameter in AutoModel.from_config(open_checkpoint(str(folder)).config).to("meta").parameters()
    )
    total = sum(needed.values())
    return {
        "gflop_needed": {part: round(flops / len(prepared) / 1e9, 1) for part, flops in needed.items()},
        "gflop_needed_per_sample": total / len(prepared) / 1e9,
        "gflop_done_in_linear_layers": counter.get_total_flops()
        / len(prepared)
        / 1e9,  # the counter does not see attention on a CPU
        "gflop_whole_model_per_sample": whole / len(prepared) / 1e9,
        "ceiling_gflops": ceiling / 1e9,
        "share_of_floor": total / ceiling / seconds,
        "weights_mib": weights * 2 >> 20,
        "tokens": {
            "all": float(np.mean([len(sample.input_ids) for sample in prepared])),
            "vision": float(np.mean([sample.vision.sum() for sample in prepared])),
            "query": float(np.mean([sample.query.sum() for sample in prepared])),
            "attended": float(np.mean([answer.num_attended_tokens for answer in answers])),
        },
    }


def worst_cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    return float(((a_ND * b_ND).sum(axis=1) / np.linalg.norm(a_ND, axis=1) / np.linalg.norm(b_ND, axis=1)).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--layers", type=int, default=24, help="decoder layers")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--plain-samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=["ours", "ours-1", "plain-1", "plain-8"])
    parser.add_argument("--one-way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one_way:
        print(json.dumps(one_way(options.one_way, options.folder, options.samples)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder, options.shapes, options.layers)
        for way in options.ways:
            samples = options.samples if way in BATCH_TOKENS else options.plain_samples
            options_of_it = ["--folder", name, "--samples", str(samples), "--threads", str(options.threads)]
            command = [sys.executable, __file__, "--one-way", way, *options_of_it]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                print(f"{way}: ended with code {done.returncode}, killed for memory if it is -9", flush=True)
                continue
            results[way] = json.loads(done.stdout.splitlines()[-1])
            print(
                {key: round(value, 3) if isinstance(value, float) else value for key, value in results[way].items()},
                flush=True,
            )
        features = {way: np.load(folder / f"{way}.npy") for way in results}
    ratios = {}
    for way in BESIDE.keys() & results.keys():
        ours_way = BESIDE[way]
        same = features[ours_way][: len(features[way])]
        ratios[way] = {
            "times_faster": results[way]["cpu_seconds_per_sample"] / results[ours_way]["cpu_seconds_per_sample"],
            "times_less_memory": results[way]["peak_mib"] / results[ours_way]["peak_mib"],
            "worst_cosine": worst_cosine(same, features[way]),
        }
        print(way, {key: round(value, 5) for key, value in ratios[way].items()}, flush=True)
    print_record(
        "extraction",
        ("torch", "transformers", "numpy"),
        shapes=options.shapes,
        layers=options.layers,
        threads=options.threads,
        batch_tokens=BATCH_TOKENS,
        results=results,
        ratios=ratios,
    )


if __name__ == "__main__":
    main()
