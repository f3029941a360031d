"""The last stage: what a run was made of, its record, its report, and the commit."""

import time
from datetime import UTC, datetime
from importlib.metadata import version

from scalselect_ray import __version__
from scalselect_ray.config_files import to_yaml
from scalselect_ray.corpus import Reason
from scalselect_ray.io import storage
from scalselect_ray.report.write import write_report
from scalselect_ray.stages.context import Job, Run
from scalselect_ray.stages.reduce import Reduced
from scalselect_ray.stages.score import Scores
from scalselect_ray.stages.select import Selection
from scalselect_ray.store.files import files_of, write_files
from scalselect_ray.store.record import RunRecord, SliceCounts, SourceCounts
from scalselect_ray.store.runs import Runs

_PACKAGES = ("ray", "torch", "transformers", "numpy", "pyarrow")


def finish(job: Job, run: Run, reduced: Reduced, scores: Scores, selection: Selection) -> RunRecord:
    """Commits the run: from here on it is finished, and the newest. Raises StorageError."""
    storage.write(run.folder.config, to_yaml(job.config).encode())
    write_files(files_of(run.plan), run.folder)
    record = _record(job, run, reduced, scores, selection)
    with job.stages("report", 1, "page") as stage:
        write_report(job.output, record, job.console)
        stage.advance(1)
    Runs(job.output).finish(record)
    return record


def _record(job: Job, run: Run, reduced: Reduced, scores: Scores, selection: Selection) -> RunRecord:
    seconds = job.stages.seconds
    rejected = scores.reasons
    rejected[Reason.TEXT_ONLY] -= selection.text_only_kept
    return RunRecord(
        run_id=run.run_id,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        extractor=job.store.extractor_id,
        moments=reduced.set_id,
        samples=run.plan.rows,
        scored=scores.count,
        rejected={reason: count for reason, count in sorted(rejected.items()) if count},
        filtered_out=scores.filtered_out(run.plan),
        lost=scores.lost,
        budgets=selection.budgets,
        chosen=selection.chosen,
        text_only_kept=selection.text_only_kept,
        sources={
            name: SourceCounts(scored=scored, chosen=selection.by_source.get(name, 0))
            for name, scored in sorted(scores.sources.items())
        },
        change=selection.change,
        k=reduced.k,
        dim=reduced.dim,
        energy_captured=reduced.captured,
        score_sum=scores.total,
        slices=SliceCounts(
            total=len(run.plan.slice_ids), extracted=run.extracted, moments_reused=reduced.slices_reused
        ),
        samples_per_second=round(run.extracted_rows / seconds["extract"], 3) if run.extracted else None,
        seconds={name: round(value, 3) for name, value in seconds.items()}
        | {"total": round(time.monotonic() - job.started, 3)},
        passed_over={source: dict(passed_over) for source, passed_over in run.plan.passed_over.items()},
        versions={name: version(name) for name in _PACKAGES} | {"scalselect": __version__},
    )
