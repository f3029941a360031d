"""What a run shows to Prometheus: the totals on the node's own endpoint are those of the run."""

import json
import time
import urllib.request
from collections.abc import Callable

import pytest
import ray
from conftest import GOLDEN, write_config
from prometheus_client.parser import text_string_to_metric_families

from scalselect_ray.cli import main

CORPUS = GOLDEN / "llava"


def scraped() -> Callable[..., float]:
    """The sum of a metric's samples that have the given labels, as Prometheus would read it now."""
    node = ray.nodes()[0]
    with urllib.request.urlopen(
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30
    ) as answer:
        samples = [
            sample for family in text_string_to_metric_families(answer.read().decode()) for sample in family.samples
        ]

    def total(name: str, **labels: str) -> float:
        return sum(
            s.value for s in samples if s.name == f"ray_scalselect_{name}" and labels.items() <= s.labels.items()
        )

    return total


@pytest.mark.usefixtures("cluster")
def test_prometheus_reads_the_totals_of_a_run_from_the_node(tmp_path):
    rows = json.loads((CORPUS / "samples.json").read_text())
    text = {
        "id": "t",
        "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}],
        "images": [],
    }
    gone = {**rows[0], "images": ["nowhere.png"]}
    (tmp_path / "rows.json").write_text(json.dumps([*rows, text, gone]))
    source = {"name": "metered", "paths": [str(tmp_path / "rows.json")], "image_root": str(CORPUS)}
    assert main(["run", str(write_config(tmp_path, [source], CORPUS / "model")), "rejects.max_fraction=0.5"]) == 0
    output = tmp_path / "output"
    record = json.loads(
        (output / "runs" / json.loads((output / "latest.json").read_text())["run_id"] / "run.json").read_text()
    )
    expected = {
        ("samples_total", ()): len(rows),
        ("rejects_total", ("text_only",)): 1,
        ("rejects_total", ("image_missing",)): 1,
        ("slices_total", ()): record["slices"]["total"],
        ("image_read_bytes_total", ()): sum((CORPUS / image).stat().st_size for row in rows for image in row["images"]),
        ("feature_written_bytes_total", ()): sum(path.stat().st_size for path in output.glob("features/*/*.parquet")),
    }
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    deadline = time.monotonic() + 120  # each process sends its own now and then
    while True:
        total = scraped()
        found = {
            (name, reason): total(name, source="metered", **({"reason": reason[0]} if reason else {}))
            for name, reason in expected
        }
        steps = [total("step_seconds_total", source="metered", step=step) for step in ("prepare", "extract", "commit")]
        stages = [total("stage_seconds_total", stage=stage) for stage in record["seconds"] if stage != "total"]
        if (found == expected and all(steps) and all(stages)) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert found == expected
    assert all(steps)
    assert len(stages) == 5
    assert all(stages)
    for step in ("prepare", "extract", "commit"):
        assert total("slice_seconds_bucket", step=step, le="+Inf") >= record["slices"]["total"]
