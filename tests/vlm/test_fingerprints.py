"""What changes a feature changes the fingerprint of a checkpoint, and nothing else does."""

import copy
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file, save_file

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.errors import ModelError
from scalselect_ray.testing.checkpoints import MAKERS
from scalselect_ray.vlm import description_fingerprint, fingerprint, open_checkpoint
from scalselect_ray.vlm.checkpoint import StoredTensor
from scalselect_ray.vlm.representer import description_of, earlier_id, id_of, make_extractor, make_preparer

pytestmark = pytest.mark.heavy

INDEX = "model.safetensors.index.json"
LATER = "layers.1.", "layers.2.", "lm_head."  # of the language model, which has three layers


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    MAKERS[request.param](folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "model"
    MAKERS["llava"](folder)
    return folder


@pytest.fixture
def llava_folder(llava: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llava, tmp_path / "model"))


def prints(folder: Path) -> tuple[str, str]:
    """(of what preparing reads, of all)."""
    checkpoint = open_checkpoint(str(folder))
    return description_fingerprint(checkpoint), fingerprint(checkpoint)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def in_shards(folder: Path, tensors: dict[str, torch.Tensor], count: int, order: random.Random) -> None:
    """Writes tensors to `count` files, by chance, with an index."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    place = {name: f"part-{order.randrange(count)}.safetensors" for name in tensors}
    for file in set(place.values()):
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))


def is_later(name: str) -> bool:
    return "vision" not in name and "visual" not in name and any(part in name for part in LATER)


def in_reverse(document: Any) -> Any:
    """The same objects with their keys the other way round."""
    if isinstance(document, dict):
        return {key: in_reverse(document[key]) for key in reversed(document)}
    return [in_reverse(item) for item in document] if isinstance(document, list) else document


def laid_out_anew(folder: Path) -> None:
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(in_reverse(json.loads(path.read_text())), indent=7, ensure_ascii=False))


def with_files_of_a_trainer(folder: Path) -> None:
    for name in ("generation_config", "trainer_state", "all_results", "train_results", "modelcard"):
        (folder / f"{name}.json").write_text('{"temperature": 0.7, "step": 500}')
    for name in ("README.md", "README.txt", "LICENSE.txt", "requirements.txt", "log.txt", "old_template.jinja"):
        (folder / name).write_text("Of another kind.")
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"\x80")
    (folder / "step_500").mkdir()
    shutil.copy(folder / "config.json", folder / "step_500" / "config.json")


def saved_by_another_version(folder: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        for part in (document, document["text_config"], document["vision_config"]):
            part |= {"transformers_version": "4.99", "_name_or_path": "/elsewhere", "architectures": ["Another"]}
            part |= {"torch_dtype": "float16", "dtype": "float16", "_attn_implementation": "eager"}
            part |= {"use_cache": False, "temperature": 0.1, "max_length": 7, "top_k": 1, "num_beams": 9}

    edit(folder / "config.json", change)
    edit(folder / "processor_config.json", lambda document: document.update(transformers_version="4.99"))
    loaded = {"name_or_path": "/elsewhere", "is_local": False, "local_files_only": False}
    cutting = {"model_max_length": 3, "padding_side": "left", "truncation_side": "left"}
    edit(folder / "tokenizer_config.json", lambda document: document.update(loaded | cutting))


def with_other_films(folder: Path) -> None:
    (folder / "video_preprocessor_config.json").write_text('{"video_processor_type": "Qwen2VLVideoProcessor"}')
    film = {"size": {"height": 3, "width": 3}, "num_frames": 2}
    edit(folder / "processor_config.json", lambda document: document.get("video_processor", {}).update(film))


def in_three_shards(folder: Path) -> None:
    in_shards(folder, tensors_of(folder), 3, random.Random(3))


def with_a_tensor_twice(folder: Path) -> None:
    in_three_shards(folder)
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    save_file(load_file(second) | dict([next(iter(load_file(first).items()))]), second)


def with_other_metadata(folder: Path) -> None:
    tensors = tensors_of(folder)
    save_file(dict(reversed(tensors.items())), folder / "model.safetensors", {"format": "pt", "made": "anew"})


def without_later_layers(folder: Path) -> None:
    tensors = tensors_of(folder)
    assert any(map(is_later, tensors))
    save_file({name: tensors[name] for name in tensors if not is_later(name)}, folder / "model.safetensors")


HARMLESS = (
    laid_out_anew,
    with_files_of_a_trainer,
    saved_by_another_version,
    with_other_films,
    in_three_shards,
    with_a_tensor_twice,
    with_other_metadata,
    without_later_layers,
)


@pytest.mark.parametrize("change", HARMLESS, ids=lambda change: change.__name__)
def test_what_changes_no_feature_changes_no_fingerprint(change, folder):
    before = prints(folder)
    change(folder)
    assert prints(folder) == before


@pytest.mark.parametrize("made", ["llava", "qwen2_vl"], indirect=True)
def test_what_the_fingerprint_leaves_out_changes_no_feature(folder):
    """All of it at once, bit for bit."""

    def feature() -> torch.Tensor:
        extractor = ExtractorConfig(model=str(folder), dtype="float32")
        sample = make_preparer(extractor).made_up()
        assert sample is not None
        (answer,) = make_extractor(extractor)([sample])
        return torch.from_numpy(answer.feature)

    before = feature()
    for change in (with_files_of_a_trainer, saved_by_another_version, without_later_layers, in_three_shards):
        change(folder)
    laid_out_anew(folder)
    assert torch.equal(feature(), before)


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a document stand that hold no others."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        if isinstance(value, dict | list) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


UNREAD = {"transformers_version", "architectures", "dtype", "use_cache", "name_or_path", "model_max_length"}
UNREAD |= {"padding_side", "truncation_side", "video_processor"}


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_every_other_value_counts_and_so_does_one_that_is_new(name, folder):
    checkpoint = open_checkpoint(str(folder))
    before, document = description_fingerprint(checkpoint), json.loads((folder / name).read_text())
    places = list(leaves(document))
    assert places
    for *above, last in random.Random(0).sample(places, min(len(places), 60)):
        changed = copy.deepcopy(document)
        holder = changed
        for key in above:
            holder = holder[key]
        holder[last] = ["something else"]
        (folder / name).write_text(json.dumps(changed))
        unread = name != "tokenizer.json" and bool(UNREAD.intersection((*above, last)))
        assert (description_fingerprint(checkpoint) == before) == unread, (*above, last)
    (folder / name).write_text(json.dumps({**document, "something_new": 1}))
    assert description_fingerprint(checkpoint) != before


@pytest.mark.parametrize("word", ["temperature", "dtype", "top_k", "padding_side", "video_processor"])
def test_a_token_that_is_called_like_a_key_counts(word, llava_folder):
    checkpoint = open_checkpoint(str(llava_folder))
    found = set()
    for number in (1000, 1001):
        entry = {word: number}
        (llava_folder / "vocab.json").write_text(json.dumps(entry))
        found.add(description_fingerprint(checkpoint))
        edit(llava_folder / "tokenizer.json", lambda document, entry=entry: document["model"]["vocab"].update(entry))
        found.add(description_fingerprint(checkpoint))
    assert len(found) == 4


def of_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("upper", "lower"))


def of_template_blank(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(" " + path.read_text())


def of_size(folder: Path) -> None:
    edit(
        folder / "processor_config.json",
        lambda document: document["image_processor"]["size"].update(shortest_edge=57),
    )


def of_mean(folder: Path) -> None:
    edit(
        folder / "processor_config.json",
        lambda document: document["image_processor"]["image_mean"].reverse(),
    )


def of_merges(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda document: document["model"]["merges"].append(["t", "h"]))


def of_order_of_merges(folder: Path) -> None:
    of_merges(folder)
    edit(folder / "tokenizer.json", lambda document: document["model"]["merges"].insert(0, ["h", "e"]))


def of_special_token(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda document: document["added_tokens"][2].update(lstrip=True))


def of_feature_layer(folder: Path) -> None:
    edit(folder / "config.json", lambda document: document.update(vision_feature_layer=-1))


def of_epsilon(folder: Path) -> None:
    edit(folder / "config.json", lambda document: document["text_config"].update(rms_norm_eps=1e-3))


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "tokenizer.model", "tekken.json"])
def test_a_file_that_a_tokenizer_can_be_made_of_counts(name, llava_folder):
    checkpoint = open_checkpoint(str(llava_folder))
    found = {description_fingerprint(checkpoint)}
    for content in (b'{"a": 1}', b'{"a": 2}'):
        (llava_folder / name).write_bytes(content)
        found.add(description_fingerprint(checkpoint))
    assert len(found) == 3


@pytest.mark.parametrize(
    "change",
    [
        of_template,
        of_template_blank,
        of_size,
        of_mean,
        of_merges,
        of_order_of_merges,
        of_special_token,
        of_feature_layer,
        of_epsilon,
    ],
    ids=lambda change: change.__name__,
)
def test_what_changes_a_feature_changes_both_fingerprints(change, llava_folder):
    before = prints(llava_folder)
    change(llava_folder)
    after = prints(llava_folder)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("shards", [1, 3])
def test_one_bit_of_a_tensor_of_the_front_counts_and_no_other(shards, folder):
    in_shards(folder, tensors_of(folder), shards, random.Random(shards))
    checkpoint = open_checkpoint(str(folder))
    before, seen = fingerprint(checkpoint), set[bool]()
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        for name, said in header.items():
            if name == "__metadata__":
                continue
            with path.open("r+b") as file:
                last = begin + said["data_offsets"][1] - 1
                file.seek(last)
                file.write(bytes([content[last] ^ 1]))
            assert (fingerprint(checkpoint) == before) == is_later(name), name
            seen.add(is_later(name))
            path.write_bytes(content)
    assert seen == {True, False}
    assert fingerprint(checkpoint) == before


def renamed(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {(f"{key}_" if key == name else key): value for key, value in tensors.items()}


def swapped(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    other = name.replace("q_proj", "o_proj")
    return tensors | {name: tensors[other], other: tensors[name]}


def of_another_shape(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return tensors | {name: tensors[name].reshape(-1, tensors[name].shape[0] // 2).contiguous()}


def of_another_dtype(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return tensors | {name: tensors[name].view(torch.int32)}


def removed(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "change", [renamed, swapped, of_another_shape, of_another_dtype, removed], ids=lambda change: change.__name__
)
def test_a_tensor_counts_by_name_dtype_and_shape(change, llava_folder):
    checkpoint, tensors = open_checkpoint(str(llava_folder)), tensors_of(llava_folder)
    before = fingerprint(checkpoint)
    (name,) = (name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight") and not is_vision(name))
    save_file(change(tensors, name), llava_folder / "model.safetensors")
    assert fingerprint(checkpoint) != before


def is_vision(name: str) -> bool:
    return "vision" in name


def test_which_of_two_tensors_of_one_name_is_read_counts(llava_folder):
    """They differ, and transformers takes the one of the last file."""
    tensors = tensors_of(llava_folder)
    in_shards(llava_folder, tensors, 2, random.Random(1))
    checkpoint = open_checkpoint(str(llava_folder))
    first, second = sorted(llava_folder.glob("*.safetensors"))
    name = next(name for name in load_file(first) if "layers.0.mlp" in name and not is_vision(name))
    here, there = load_file(first), load_file(second)
    found = set()
    for one, other in ((0.0, 1.0), (1.0, 0.0)):
        save_file(here | {name: torch.full_like(tensors[name], one)}, first)
        save_file(there | {name: torch.full_like(tensors[name], other)}, second)
        found.add(fingerprint(checkpoint))
    assert len(found) == 2


def test_each_byte_is_read_once_and_never_a_whole_tensor_at_a_time(llava_folder, monkeypatch):
    read, blocks = list[tuple[str, int]](), StoredTensor.blocks

    def watched(tensor: StoredTensor) -> Iterator[bytes]:
        for block in blocks(tensor):
            read.append((tensor.name, len(block)))
            yield block

    monkeypatch.setattr(StoredTensor, "blocks", watched)
    monkeypatch.setattr("scalselect_ray.vlm.checkpoint._BLOCK", 1000)
    fingerprint(open_checkpoint(str(llava_folder)))
    total: Counter[str] = Counter()
    for name, size in read:
        total[name] += size
    assert total == {name: part.nbytes for name, part in tensors_of(llava_folder).items() if not is_later(name)}
    assert max(size for _, size in read) == 1000


def test_a_file_that_ends_while_it_is_read_is_refused(llava_folder, monkeypatch):
    checkpoint = open_checkpoint(str(llava_folder))
    path = llava_folder / "model.safetensors"
    monkeypatch.setattr("scalselect_ray.vlm.checkpoint.safe_open", lambda *_, **__: path.open("rb"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="it ends in"):
        fingerprint(checkpoint)


def test_ids_of_this_version_and_of_the_first_two():
    """Features that are there are paid for: with another id they would be extracted anew."""
    extractor = ExtractorConfig(model=str(GOLDEN / "llava" / "model"), dtype="float32")
    assert earlier_id(extractor) == "73c444a66844a0dd"
    assert id_of(description_of(extractor)) == "83a8bbebf510aa85"
