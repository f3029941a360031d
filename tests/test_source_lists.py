"""Lists of data sets that trainers keep, taken as the sources of a corpus."""

import json
from pathlib import Path

import pytest

from scalselect_ray.cli import main
from scalselect_ray.config import JobConfig
from scalselect_ray.config_files import load_config, parse_config, to_yaml
from scalselect_ray.corpus import Sample, list_files, plan_file, read_slices
from scalselect_ray.errors import ConfigError
from scalselect_ray.source_lists import read_source_list

TURNS = [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A cat."}]
ALPACA = {"instruction": "What", "input": "is it?", "output": "A cat.", "images": ["a.png"]}
OWN = {
    "talk": [{"who": "Q", "says": "What is it?"}, {"who": "A", "says": "A cat."}],
    "pics": ["a.png"],
    "sys": "Brief.",
}
DATASET_INFO = {
    "plain": {
        "file_name": "plain.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    },
    "alpaca": {
        "file_name": "below/alpaca.jsonl",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    },
    "own": {
        "file_name": "own.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "images": "pics", "system": "sys", "tools": "tools"},
        "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A"},
    },
    "hub": {"hf_hub_url": "owner/name"},
    "ranked": {"file_name": "plain.json", "ranking": True, "columns": {"chosen": "a", "rejected": "b"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "below").mkdir(parents=True)
    (tmp_path / "data" / "a.png").write_bytes(b"picture")
    (tmp_path / "data" / "plain.json").write_text(json.dumps([{"conversations": TURNS, "images": ["a.png"]}]))
    (tmp_path / "data" / "below" / "alpaca.jsonl").write_text(json.dumps(ALPACA))
    (tmp_path / "data" / "own.json").write_text(json.dumps([OWN]))
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
    return tmp_path


def read(config: JobConfig) -> dict[str, list]:
    return {
        file.source: [row for _, rows in read_slices(plan_file(file)) for row in rows]
        for file in list_files(config.corpus)
    }


def test_a_dataset_info_is_read_as_llama_factory_reads_it(folder: Path):
    text = (
        f"corpus: {{sources: {folder}/data/dataset_info.json}}\nextractor: {{model: a/b}}\nselection: {{budget: "
        f"2}}\noutput: {folder}/out"
    )
    config = parse_config(text)
    found = read(config)
    assert set(found) == {"plain", "alpaca", "own"}
    for name, (sample,) in found.items():
        assert isinstance(sample, Sample), sample
        assert [image.uri for image in sample.images] == [f"{folder}/data/a.png"]
        turns = {turn.role: [piece for piece in turn.content if isinstance(piece, str)] for turn in sample.turns}
        asked = ["What\nis it?"] if name == "alpaca" else ["What is it?"]
        system = {"system": ["Brief."]} if name == "own" else {}
        assert turns == {**system, "user": asked, "assistant": ["A cat."]}
    assert parse_config(to_yaml(config)) == config  # the copy that is kept has the sources themselves
    assert "dataset_info.json" not in to_yaml(config)


def test_a_meta_file_of_internvl_is_a_source_list(folder: Path):
    (folder / "data" / "a.jsonl").write_text(json.dumps({"id": 1, "image": "a.png", "conversations": TURNS}))
    meta = {
        "made": {"root": "data/", "annotation": "data/a.jsonl", "repeat_time": 1, "length": 1, "data_augment": False}
    }
    (folder / "shell").mkdir()
    (folder / "shell" / "meta.json").write_text(json.dumps(meta))
    found = read_source_list(str(folder / "shell" / "meta.json"))
    assert found is not None
    config = parse_config(
        json.dumps({"extractor": {"model": "a/b"}, "selection": {"budget": 2}, "output": str(folder / "out")}),
        [f"corpus.sources={folder}/shell/meta.json"],
    )
    (sample,) = read(config)["made"]
    assert sample.images[0].uri == f"{folder}/data/a.png"


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": 1}', "no JSON", '{"a": {"b": 1}}', "{" * 100_000])
def test_what_is_no_list_of_data_sets_is_said(tmp_path: Path, text: str):
    (tmp_path / "a.json").write_text(text)
    assert read_source_list(str(tmp_path / "a.json")) is None
    for path in (tmp_path / "a.json", tmp_path / "nowhere.json", tmp_path, tmp_path / f"{'n' * 300}.json"):
        with pytest.raises(
            ConfigError,
            match=r"^config: corpus\.sources is .* expected a list of sources, or the "
            "path",
        ):
            parse_config(f"corpus: {{sources: {path}}}")


def test_a_list_of_which_nothing_is_here_says_why(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"hub": DATASET_INFO["hub"]}))
    with pytest.raises(ConfigError, match=r"hub: it is in no file here \(hf_hub_url: owner/name\)"):
        read_source_list(str(tmp_path / "a.json"))


def test_init_writes_the_sources_of_a_list_and_names_those_that_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    info = {**DATASET_INFO, "gone": {"file_name": "gone.json"}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    assert main(["init", str(folder / "data" / "dataset_info.json"), "--out", str(folder / "c.yaml")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    for name in ("hub", "ranked", "gone"):
        assert f"{name} is left out: " in said
    config = load_config(str(folder / "c.yaml"), ["extractor.model=a/b"])
    assert [source.name for source in config.corpus.sources] == ["plain", "alpaca", "own"]
    assert all(isinstance(row, Sample) for rows in read(config).values() for row in rows)
