"""The exports of `make_exports.py` (its folder is in the variable EXPORTS), each loaded by the code of its trainer."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["EXPORTS"])
EXPORTS = FOLDER / "exports"
EXPECTED: list[dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text())
os.environ["HF_HUB_OFFLINE"] = "1"


def digests(paths: list[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def image_folder(name: str) -> str:
    return json.loads((EXPORTS / name / "export.json").read_text())["image_folder"]


def test_llama_factory(tmp_path):
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    data = DataArguments(
        dataset="scalselect", dataset_dir=str(EXPORTS / "llama-factory"), media_dir=image_folder("llama-factory")
    )
    training = Seq2SeqTrainingArguments(output_dir=str(tmp_path))
    model = ModelArguments(model_name_or_path="none", cache_dir=str(tmp_path))
    rows = _get_merged_dataset(["scalselect"], model, data, training, "sft")
    plugin = get_mm_plugin("llava", image_token="<image>")
    assert len(rows) == len(EXPECTED)
    for row, expected in zip(rows, EXPECTED, strict=True):
        said = [*row["_prompt"], *row["_response"]]
        turns = [[turn["role"], turn["content"]] for turn in said]
        assert [["system", row["_system"]]] * bool(row["_system"]) + turns == expected["turns"]
        images = row["_images"] or []
        assert digests(images) == expected["images"]
        plugin._validate_messages(said, images, [], [])
        assert len(plugin._regularize_images(images, image_max_pixels=1 << 20, image_min_pixels=1)["images"]) == len(
            images
        )
    data.max_samples = 5
    first = _get_merged_dataset(["scalselect"], model, data, training, "sft")
    assert [row["_response"] for row in first] == [row["_response"] for row in rows.select(range(5))]


def test_trl(tmp_path):
    from datasets import load_dataset
    from transformers import AutoProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    rows = load_dataset(str(EXPORTS / "hf"), split="train", cache_dir=str(tmp_path))
    assert [row["rank"] for row in rows] == [expected["rank"] for expected in EXPECTED]
    processor = AutoProcessor.from_pretrained(Path(__file__).parents[1] / "golden" / "llava" / "model")
    collator = DataCollatorForVisionLanguageModeling(processor)
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    shown = [row for row in rows if row["images"]]
    assert len(shown) == sum(bool(expected["images"]) for expected in EXPECTED)
    for row in shown:
        batch = collator([{"messages": row["messages"], "images": row["images"]}])
        assert len(batch["pixel_values"]) == len(row["images"])
        assert (batch["input_ids"] == image_token).sum() > 0
        text = processor.tokenizer.decode(batch["input_ids"][0])
        for turn in row["messages"]:
            for part in turn["content"]:
                assert (part["text"] or "").strip() in text


def test_webdataset():
    import webdataset

    rows = list(webdataset.WebDataset(str(EXPORTS / "webdataset" / "00000.tar"), shardshuffle=False).decode("pil"))
    assert [int(row["__key__"]) for row in rows] == [expected["rank"] for expected in EXPECTED]
    for row, expected in zip(rows, EXPECTED, strict=True):
        images = [value for name, value in row.items() if name.rpartition(".")[2] in ("png", "jpg")]
        assert len(images) == len(expected["images"])


def test_energon(tmp_path):
    from megatron.energon import (
        Cooker,
        CrudeSample,
        DefaultTaskEncoder,
        WorkerConfig,
        get_loader,
        get_train_dataset,
        stateless,
    )
    from megatron.energon.flavors.webdataset import BaseWebdatasetFactory

    shutil.copy(FOLDER / "shard.tar", tmp_path)
    BaseWebdatasetFactory.prepare_dataset(tmp_path, ["shard.tar"], split_parts_ratio=[("train", 1.0)], workers=1)
    (tmp_path / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
    shutil.copy(EXPORTS / "energon" / "split.yaml", tmp_path / ".nv-meta" / "scalselect-split.yaml")

    class Encoder(DefaultTaskEncoder):
        cookers = [Cooker(stateless(lambda sample: CrudeSample(sample)))]

        @stateless
        def encode_sample(self, sample: Any) -> Any:
            return sample

        def batch(self, samples: list[Any]) -> list[Any]:
            return samples

    def keys(split: str) -> set[str]:
        dataset = get_train_dataset(
            tmp_path,
            split_config=split,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=1,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            repeat=False,
            task_encoder=Encoder(),
        )
        return {sample["__key__"] for batch in get_loader(dataset) for sample in batch}

    assert len(keys("split.yaml")) == 24
    assert keys("scalselect-split.yaml") == {expected["id"] for expected in EXPECTED if expected["source"] == "tar"}
