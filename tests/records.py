"""A record of a run for tests that need one."""

from typing import Any

from scalselect_ray.store.record import RunRecord, SliceCounts, SourceCounts


def record_of(run_id: str = "20260301T120000000Z-00000000", **more: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": run_id,
        "finished": "2026-03-01T12:00:09+00:00",
        "extractor": "e" * 16,
        "moments": "d" * 32,
        "samples": 10,
        "scored": 9,
        "rejected": {"image_missing": 1},
        "filtered_out": {},
        "lost": [],
        "passed_over": {},
        "budgets": {"0.5": 4},
        "chosen": 4,
        "text_only_kept": 0,
        "sources": {"s": SourceCounts(scored=9, chosen=4)},
        "change": None,
        "k": 3,
        "dim": 64,
        "energy_captured": 0.91,
        "score_sum": 3.0,
        "slices": SliceCounts(total=2, extracted=2, moments_reused=0),
        "samples_per_second": 5.0,
        "seconds": {"extract": 2.0, "total": 3.0},
        "versions": {"scalselect": "0.2.0"},
    }
    return RunRecord(**values | more)
