"""Reports of no run, to look at their pages."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from scalselect_ray.report.data import (
    TOKEN_COLUMNS,
    Card,
    Cutoff,
    RejectExample,
    Report,
    SampleRow,
    Thumbnail,
    count_scores,
    score_histogram,
    spectrum_of,
    token_statistics,
)
from scalselect_ray.store.layout import format_name
from scalselect_ray.store.record import RunRecord
from scalselect_ray.store.tables import Key

HOSTILE = '<img src=x onerror="window.hit=1">\'"</script><script>window.hit=1</script>{{7*7}}'
# right to left, NUL, half a pair, emoji, Arabic
HOSTILE += "\u202e\0\ud800 \U0001f469\u200d\U0001f52c \u0645\u0631\u062d\u0628\u0627"


def record(samples: int, chosen: int, sources: int = 3, **more: Any) -> dict[str, Any]:
    each = {
        f"source-{index:02d}": {"scored": samples // sources, "chosen": chosen // sources} for index in range(sources)
    }
    return {
        "run_id": "20261124T101112131Z-0a1b2c3d",
        "finished": "2026-11-24T10:15:12+00:00",
        "extractor": "0123456789abcdef",
        "samples": samples,
        "scored": samples,
        "rejected": {},
        "budgets": {"0.16": chosen},
        "chosen": chosen,
        "text_only_kept": 0,
        "sources": each,
        "change": None,
        "k": 12,
        "dim": 64,
        "energy_captured": 0.9123,
        "score_sum": 12.0,
        "slices": {"total": 40, "extracted": 40, "moments_reused": 0},
        "samples_per_second": 71.25,
        "seconds": {"plan": 0.5, "extract": 1400.0, "reduce": 3.0, "score": 4.0, "select": 0.4, "total": 1410.0},
        "versions": {"ray": "2.60.0", "scalselect": "0.1.0"},
    } | more


def report(
    samples: int = 100_000,
    chosen: int = 16_000,
    text: str = "a sample",
    image: str = "data:,",
    cards: int = 24,
    **more: Any,
) -> Report:
    """A report of gamma-distributed scores; `text` stands wherever a corpus may put its own."""
    rng = np.random.default_rng(0)
    scores = np.sort(rng.gamma(2.0, 1e-5, samples))[::-1]
    made = record(samples, chosen) | more.pop("record", {})
    rows = [
        SampleRow(
            Key(text, f"s3://bucket/{text}", index),
            f"{index} {text}",
            float(scores[index]),
            "best",
            index + 1 if index < chosen else None,
            (100, 64, 50),
        )
        for index in range(min(400, samples))
    ]
    picture = Thumbnail(image, 640, 480, image, (0.1, 0.0, 0.9, 1.0), (50, 64))
    card = Card(rows[0], [("user", text), ("assistant", text)], [picture] * 3, 2, text) if rows else None
    tokens = pa.table({name: pa.array(rng.integers(20, 900, samples), pa.int32()) for name in TOKEN_COLUMNS})
    values = {
        "record": RunRecord.from_json({"format": format_name("run"), "moments": "0" * 32, **made}, "made up"),
        "config": f"output: {text}\n",
        "scores": score_histogram(count_scores(scores), count_scores(scores[:chosen])),
        "cutoffs": [
            Cutoff(name, count, float(scores[count - 1]) if count else None) for name, count in made["budgets"].items()
        ],
        "source_cutoffs": dict.fromkeys(made["sources"], float(scores[max(chosen, 1) - 1])) if samples else {},
        "quotas": {},
        "spectrum": spectrum_of(np.geomspace(1, 1e-3, 64), made["k"]),
        "tokens": token_statistics(tokens, np.arange(samples) < chosen),
        "tokens_of": samples,
        "rejects": [RejectExample(reason, f"/a/{text}", 7, text, text) for reason in made["rejected"]],
        "rows": rows,
        "galleries": {"best": [card] * cards} if card and cards else {},
    }
    return Report(**(values | more))


def empty_report() -> Report:
    """k = 0: all rows are equal."""
    zeros = Counter(count_scores(np.zeros(25)))
    return report(
        25,
        7,
        record={"k": 0, "energy_captured": 0.0, "samples_per_second": None},
        scores=score_histogram(zeros, zeros),
        cutoffs=[Cutoff("7", 7, 0.0)],
        spectrum=spectrum_of(np.zeros(64), 0),
        source_cutoffs=dict.fromkeys(("source-00", "source-01", "source-02"), 0.0),
    )
