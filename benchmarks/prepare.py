"""What one CPU core prepares: read, decode, the model's processor at 336 x 336 (576 vision tokens, as LLaVA-1.5), pack.

python benchmarks/prepare.py [--samples 512] [CORPUS ...]

Measured on JPEG pictures made for it, and on every corpus given. A rate is samples by second of CPU time of all
threads, so other work on the machine hardly shows. The last line of stdout is one JSON record."""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from record import print_record

from scalselect_ray.commands.demo import make_model
from scalselect_ray.config import CorpusConfig, ExtractorConfig, SourceConfig
from scalselect_ray.corpus import list_files, plan_file, reading_units
from scalselect_ray.stages.extract import prepare_unit
from scalselect_ray.vlm.representer import preparing_of

ANSWER = (
    "The picture shows a place with several things in it, some of them near and others far away. " * 8
)  # about 150 tokens for a real tokenizer


def make_pictures(path: Path, samples: int, width: int, height: int) -> None:
    """Conversations with pictures that compress like photographs: smooth shapes under fine noise, JPEG of quality
    90."""
    rows = []
    for number in range(samples):
        random = np.random.default_rng(number)
        smooth = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth, dtype=np.int16) + random.normal(0, 6, (height, width, 1))
        sink = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
        turns = [{"from": "human", "value": "<image>\nWhat is in this picture?"}, {"from": "gpt", "value": ANSWER}]
        rows.append(
            {"id": str(number), "image": {"bytes": sink.getvalue(), "path": f"{number}.jpg"}, "conversations": turns}
        )
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=256)


def model_at_336(folder: Path) -> str:
    """The demo's model with the processor of LLaVA-1.5's size."""
    make_model(folder)
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["patch_size"] = 14
    settings["image_processor"] |= {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}
    path.write_text(json.dumps(settings))
    return str(folder)


def measure(corpus: str, extractor: ExtractorConfig, samples: int) -> dict[str, Any]:
    """Rates over the first `samples` samples."""
    files = list_files(CorpusConfig(sources=[SourceConfig(name="bench", paths=[corpus])]))
    slices = [part for file in files for part in plan_file(file)]
    units = [pa.table({"unit": [json.dumps([part.to_dict() for part in unit])]}) for unit in reading_units(slices)]
    preparing = preparing_of(extractor)
    list(prepare_unit(units[0], extractor, preparing))  # loads the processor
    rows = payload = 0
    started, wall = time.process_time(), time.perf_counter()
    for unit in units:
        for prepared in prepare_unit(unit, extractor, preparing):
            part = json.loads(prepared["slice"][0].as_py())
            rows += part["stop_row"] - part["first_row"]
            payload += len(prepared["payload"][0].as_buffer())
        if rows >= samples:
            break
    busy, wall = time.process_time() - started, time.perf_counter() - wall
    return {
        "corpus": Path(corpus).name,
        "samples": rows,
        "samples_per_core_second": rows / busy,
        "cpu_ms_per_sample": 1e3 * busy / rows,
        "cores_busy": busy / wall,
        "payload_kib_per_sample": payload / rows / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("corpora", nargs="*")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        extractor = ExtractorConfig(model=model_at_336(Path(folder) / "model"))
        made = []
        for width, height in ((640, 480), (1280, 960)):
            made.append(Path(folder) / f"jpeg-{width}x{height}.parquet")
            make_pictures(made[-1], options.samples, width, height)
        for corpus in [*map(str, made), *options.corpora]:
            results.append(measure(corpus, extractor, options.samples))
            if corpus in map(str, made):
                results[-1]["image_kib"] = os.path.getsize(corpus) / options.samples / 1024
            print(
                {key: round(value, 2) if isinstance(value, float) else value for key, value in results[-1].items()},
                flush=True,
            )
    print_record("prepare", ("transformers", "pillow", "numpy", "pyarrow"), results=results)


if __name__ == "__main__":
    main()
