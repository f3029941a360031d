"""The flow of one selection, from top to bottom.

corpus -> plan -> slices without features -> read, prepare, extract, commit -> features -> tree reduce -> subspace ->
scores -> manifest"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from scalselect_ray import __version__
from scalselect_ray.commands.summary import summarise
from scalselect_ray.config import JobConfig, budgets_of, quotas_of, to_yaml
from scalselect_ray.console import Console, counted
from scalselect_ray.corpus import CorpusFile, Slice, list_files, plan_file
from scalselect_ray.errors import CorpusError, DamagedObjectError, OutputError, TooManyRejectsError
from scalselect_ray.io import storage
from scalselect_ray.report.write import write_report
from scalselect_ray.selection import resolve_budget
from scalselect_ray.stages.plan import Plan, make_plan, rows_of
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.runs import Runs
from scalselect_ray.store.tables import rejects_uri, text_only_uri

_SHOWN = 10  # unreadable files that are named


def run(config: JobConfig, console: Console | None = None) -> dict[str, Any]:
    """One selection; returns what `run.json` holds. Raises ScalSelectError with the exit code of its kind."""
    from scalselect_ray.cluster.preflight import check_shared
    from scalselect_ray.cluster.session import own_errors, session

    console = console or Console()
    files = list_files(config.corpus.sources, config.corpus.slice_rows, config.corpus.slice_bytes)
    store = open_store(config)
    mended: set[str] = set()
    with session():
        check_shared(config, files, store)
        while True:
            try:
                with own_errors():
                    return _select(config, files, store, console)
            except DamagedObjectError as error:
                if error.uri in mended:
                    raise
                mended.add(error.uri)
                console.warn(
                    f"{storage.redact(error.uri)} is damaged ({storage.redact(error.problem)}): it is removed and "
                    f"made anew"
                )
                storage.delete([error.uri])


def _select(config: JobConfig, files: Sequence[CorpusFile], store: FeatureStore, console: Console) -> dict[str, Any]:
    from scalselect_ray.cluster.metrics import Stages
    from scalselect_ray.stages import reduce, rejects, score, select
    from scalselect_ray.stages.extract import extract

    started = time.time()
    runs = Runs(store.output)
    stages = Stages(console)

    with stages("plan", len(files), "files") as stage:
        plan = make_plan(files, store.committed(), lambda some: _plan_on_cluster(some, stage.advance))
        stage.advance(len(files) - stage.done)  # the others are known from their committed slices
    _check_plan(plan, console)
    console.note(_what_is_to_do(plan, store))

    if plan.todo:
        with stages("extract", plan.todo_rows, "samples") as stage:
            for committed in extract(plan.todo, store, config.extractor, config.workers):
                stage.advance(committed.rows, committed.rejected)
                if stage.rejects > config.rejects.max_fraction * plan.rows:
                    break  # it cannot come back below the line: no more is paid for
            _check_rejects(config, plan, stage.rejects, store)

    run_id = _run_id(config, store, plan)
    folder = runs.folder(run_id)
    groups = _groups(plan.slice_ids, config)
    stored = reduce.find_stored(store, plan.slice_ids)
    reused = set(stored.slice_ids) if stored else set()
    new = [slice_id for slice_id in plan.slice_ids if slice_id not in reused]
    with stages("reduce", len(new), "slices") as stage:
        moments, moments_id = reduce.moments_of(
            store, _groups(new, config), config.reduce.fan_in, stored, stage.advance
        )
        subspace, facts = reduce.solve(
            config.subspace,
            moments,
            lambda transform: reduce.reduce_moments(store, groups, config.reduce.fan_in, transform),
            storage.join(folder, "subspace.safetensors"),
        )

    with stages("score", len(plan.slice_ids), "slices") as stage:
        scored = score.score(store, groups, subspace, storage.join(folder, "scores"), stage.advance)
    _check_rejects(config, plan, sum(count for reason, count in scored.reasons.items() if reason != "text_only"), store)
    if not scored.count:
        raise CorpusError(f"none of the {plan.rows:,} samples could be scored; see the reasons below {store.folder}")

    with stages("select", 1, "manifest") as stage:
        budgets = {str(budget): resolve_budget(budget, scored.count) for budget in budgets_of(config.selection)}
        by_source = select.select(
            scored, max(budgets.values()), quotas_of(config.selection), storage.join(folder, "manifest")
        )
        chosen = sum(by_source.values())
        text_only_share = _text_only_share(config, chosen, scored.count)
        kept = rejects.keep_text_only(scored.rejects, text_only_share, text_only_uri(folder), chosen + 1)
        rejects.write_rejects(scored.rejects, text_only_share, rejects_uri(folder))
        change = _change(runs, store, folder, chosen, console)
        stage.advance(1)

    storage.write(storage.join(folder, "config.yaml"), to_yaml(config).encode())
    record = {
        "format": "scalselect.run/1",
        "run_id": run_id,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "extractor": store.extractor_id,
        "moments": moments_id,
        "samples": plan.rows,
        "scored": scored.count,
        "rejected": dict(sorted((scored.reasons - Counter(text_only=kept)).items())),
        "budgets": budgets,
        "chosen": chosen,
        "text_only_kept": kept,
        "sources": {
            name: {"scored": scored.counts[name], "chosen": by_source.get(name, 0)} for name in sorted(scored.counts)
        },
        "change": change,
        "k": facts["k"],
        "dim": facts["dim"],
        "energy_captured": facts["captured"],
        "score_sum": scored.total,
        "slices": {"total": len(plan.slice_ids), "extracted": len(plan.todo), "moments_reused": len(reused)},
        "samples_per_second": round(plan.todo_rows / stages.seconds["extract"], 3) if plan.todo else None,
        "seconds": {name: round(value, 3) for name, value in stages.seconds.items()}
        | {"total": round(time.time() - started, 3)},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "numpy", "pyarrow")}
        | {"scalselect": __version__},
    }
    write_report(store.output, record, console)
    runs.finish(run_id, record)
    summarise(console, record, folder)
    return record


def open_store(config: JobConfig) -> FeatureStore:
    """The feature store of the config's extractor, described there. Raises ModelError, OutputError."""
    from scalselect_ray.vlm.representer import description_of, id_of, make_preparer

    make_preparer(config.extractor)  # fails now or in every worker
    description = description_of(config.extractor)
    store = FeatureStore(config.output, id_of(description))
    try:
        store.describe({"model": storage.redact(config.extractor.model), **description})
    except OSError as error:
        raise OutputError(f"output {storage.redact(config.output)} cannot be written: {error}") from error
    return store


def _plan_on_cluster(
    files: Sequence[tuple[CorpusFile, list[str]]], advance: Callable[[int], None]
) -> list[list[Slice]]:
    import ray

    from scalselect_ray.cluster.tasks import in_order

    return in_order(ray.remote(plan_file), files, advance)


def _check_plan(plan: Plan, console: Console) -> None:
    if not plan.slice_ids:
        raise CorpusError(f"the corpus is empty: its {len(plan.files)} files hold no rows")
    problems = [part for part in plan.todo if part.problem]
    for part in problems[:_SHOWN]:
        console.warn(f"{storage.redact(part.shard)} from row {part.first_row:,} on: {part.problem}")
    if len(problems) > _SHOWN:
        console.warn(f"and {len(problems) - _SHOWN:,} more files that cannot be read to their end")
    if problems and len(problems) == len(plan.slice_ids):
        raise CorpusError(
            f"no file of the corpus can be read; the first: {storage.redact(problems[0].shard)}: {problems[0].problem}"
        )


def _check_rejects(config: JobConfig, plan: Plan, rejected: int, store: FeatureStore) -> None:
    if rejected > config.rejects.max_fraction * plan.rows:
        raise TooManyRejectsError(
            f"{rejected:,} of {plan.rows:,} samples are rejected, above "
            f"rejects.max_fraction={config.rejects.max_fraction:g}"
            f"{_examples(plan, store)}\n"
            "Fix the corpus, or raise rejects.max_fraction; extracted features are kept. A rejected row is tried "
            "again once the file that\n"
            "holds it has changed, or 'scalselect clean OUTPUT --rejected REASON' has removed what is committed with "
            "rejects of a reason."
        )


def _examples(plan: Plan, store: FeatureStore) -> str:
    """The first few rejects, to see what is wrong."""
    lines: list[str] = []
    for slice_id in sorted(store.committed().intersection(plan.slice_ids))[:200]:
        for row in store.read(slice_id, ["shard", "row", "reason", "message"]).to_pylist():
            if row["reason"] not in (None, "text_only"):
                lines.append(f"\n  {row['reason']}: {row['shard']} row {row['row']}: {row['message']}")
            if len(lines) == 5:
                return "".join(lines)
    return "".join(lines)


def _what_is_to_do(plan: Plan, store: FeatureStore) -> str:
    done = len(plan.slice_ids) - len(plan.todo)
    corpus = (
        f"{counted(plan.rows, 'sample')} in {counted(len(plan.slice_ids), 'slice')} of "
        f"{counted(len(plan.files), 'file')}"
    )
    text = f"{corpus}; extractor {store.extractor_id}"
    if not plan.todo:
        return f"{text}; all extracted before"
    if len(plan.todo) == len(plan.slice_ids) and (others := store.differences()):
        text += f" is new here: its {others}; what others extracted cannot be used"
    return (
        f"{text}; {counted(done, 'slice')} extracted before, {len(plan.todo):,} to do "
        f"({counted(plan.todo_rows, 'sample')})"
    )


def _groups(slice_ids: Sequence[str], config: JobConfig) -> list[list[str]]:
    from scalselect_ray.subspace import consecutive_groups

    runs = consecutive_groups([rows_of(slice_id) for slice_id in slice_ids], config.reduce.leaf_rows)
    return [list(slice_ids[run.start : run.stop]) for run in runs]


def _change(runs: Runs, store: FeatureStore, folder: str, chosen: int, console: Console) -> dict[str, Any] | None:
    """What is other than in the newest run with this extractor; None where there is none, or its results are
    damaged."""
    from scalselect_ray.report.compare import compare

    previous = runs.latest_with(store.extractor_id)
    if previous is None:
        return None
    found = compare(folder, runs.folder(previous), max(chosen, runs.record(previous).get("chosen", 0)))
    if found is None:
        console.warn(f"the results of run {previous} are damaged: what has changed since then cannot be told")
        return None
    return {"previous": previous, **found}


def _text_only_share(config: JobConfig, budget: int, scored: int) -> float:
    """Of the text-only samples, how large a share is kept."""
    if config.selection.text_only == "drop":
        return 0.0
    return config.selection.text_only_share if config.selection.text_only_share is not None else budget / max(scored, 1)


def _run_id(config: JobConfig, store: FeatureStore, plan: Plan) -> str:
    what = json.dumps([asdict(config), store.extractor_id, plan.slice_ids], sort_keys=True)
    return Runs(store.output).new_id(datetime.now(UTC), hashlib.sha256(what.encode()).hexdigest()[:8])
