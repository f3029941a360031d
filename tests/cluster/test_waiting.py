"""What a run says that it waits for."""

import io
import threading

import pytest

from scalselect_ray.cluster import waiting
from scalselect_ray.config import WorkersConfig
from scalselect_ray.console import Console

NODES = [
    {"Alive": True, "Resources": {"CPU": 4}, "Labels": {"pool": "cpu"}},
    {"Alive": True, "Resources": {"GPU": 1, "CPU": 8}, "Labels": {"ray.io/accelerator-type": "A100-80GB"}},
    {"Alive": False, "Resources": {"GPU": 8}, "Labels": {"pool": "gone"}},
]


@pytest.mark.parametrize(
    ("workers", "missing"),
    [
        ({}, []),
        ({"gpus_per_extractor": 0.5}, []),
        ({"gpus_per_extractor": 2}, ["a node with 2 GPU (workers.gpus_per_extractor)"]),
        ({"extractor_labels": {"ray.io/accelerator-type": "A100-80GB"}}, []),
        (
            {"extractor_labels": {"ray.io/accelerator-type": "H100-80GB"}},
            ["a node with the labels ray.io/accelerator-type=H100-80GB (workers.extractor_labels)"],
        ),
        ({"prepare_labels": {"pool": "gone"}}, ["a node with the labels pool=gone (workers.prepare_labels)"]),
        ({"prepare_labels": {"pool": "!in(gone)"}, "extractor_labels": {"pool": "in(a, b)"}}, []),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_no_node_has_is_named_by_its_key(workers, missing, monkeypatch):
    monkeypatch.setattr(waiting.ray, "nodes", lambda: NODES)
    assert waiting.missing_resources(WorkersConfig(**workers)) == missing


def test_lines_come_while_there_is_something_to_say_and_what_fails_is_no_trouble(monkeypatch):
    monkeypatch.setattr(waiting, "EVERY_S", 0.001)
    stream, asked = io.StringIO(), threading.Event()
    answers = iter(["waits for a", None, RuntimeError("the cluster is gone"), "waits for b"])

    def message() -> str | None:
        answer = next(answers, None)
        if answer is None:
            return None
        if isinstance(answer, Exception):
            raise answer
        if answer == "waits for b":
            asked.set()
        return answer

    with waiting.told_while(message, Console(stream)):
        assert asked.wait(30)
    assert stream.getvalue().splitlines() == ["waits for a", "waits for b"]
    assert next(answers, None) is None
