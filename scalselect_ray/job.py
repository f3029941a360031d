"""The flow of one selection, from top to bottom.

corpus -> plan -> slices without features -> read, prepare, extract, commit -> features -> tree reduce -> subspace -> scores -> manifest
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from scalselect_ray import __version__, storage
from scalselect_ray.config import JobConfig, feature_settings, to_yaml
from scalselect_ray.console import Console
from scalselect_ray.corpus import CorpusFile, Slice, is_complete, list_files, plan_file, slice_range
from scalselect_ray.errors import CorpusError, OutputError, TooManyRejectsError
from scalselect_ray.features import FeatureStore
from scalselect_ray.selection import resolve_budget

PlanFiles = Callable[[Sequence[CorpusFile]], list[list[Slice]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a corpus is made of, and what of it is still to do."""

    files: list[CorpusFile]
    slice_ids: list[str]  # of the whole corpus, in the order of (shard, row)
    todo: list[Slice]

    @property
    def rows(self) -> int:
        return sum(_rows(slice_id) for slice_id in self.slice_ids)

    @property
    def todo_rows(self) -> int:
        return sum(part.rows for part in self.todo)


def run(config: JobConfig, console: Console | None = None) -> dict[str, Any]:
    """One selection; answers what `run.json` holds. Raises ScalSelectError with the exit code of its kind."""
    from scalselect_ray.cluster import reduction, selecting
    from scalselect_ray.cluster.extraction import extract
    from scalselect_ray.cluster.session import session

    console = console or Console()
    started = time.time()
    output = storage.absolute(config.output)
    files = list_files(config.corpus.sources, config.corpus.slice_rows, config.corpus.slice_bytes)
    store = open_store(config, output)
    seconds: dict[str, float] = {}

    with session():
        with console.stage("plan", len(files), "files") as stage:
            plan = make_plan(files, store.committed(), lambda some: _plan_on_cluster(some, stage.advance))
            stage.advance(len(files) - stage.done)  # the others are known from their committed slices
            seconds["plan"] = stage.seconds
        _check_plan(plan)
        console.note(_what_is_to_do(plan, store))

        if plan.todo:
            with console.stage("extract", plan.todo_rows, "samples") as stage:
                for committed in extract(plan.todo, store, config.extractor, config.workers):
                    stage.advance(committed.rows, committed.rejected)
                    if stage.rejects > config.rejects.max_fraction * plan.rows:
                        break  # it cannot come back below the line: no more is paid for
                seconds["extract"] = stage.seconds
                _check_rejects(config, plan, stage.rejects, store)

        groups = _groups(plan.slice_ids, config.reduce.leaf_rows)
        run_id = _run_id(config, store, plan)
        folder = storage.join(output, "runs", run_id)
        stored = reduction.find_stored(store, plan.slice_ids)
        reused = set(stored[1]) if stored else set()
        new_groups = _groups([slice_id for slice_id in plan.slice_ids if slice_id not in reused], config.reduce.leaf_rows)
        with console.stage("reduce", len(plan.slice_ids) - len(reused), "slices") as stage:
            merged = reduction.reduce_moments(store, new_groups, config.reduce.fan_in, done=stage.advance) if new_groups else None
            if stored:
                merged = reduction.merge_with_stored(stored[0], merged)
            reduction.keep(store, plan.slice_ids, merged)
            subspace, facts = reduction.solve(
                config.subspace,
                merged,
                lambda transform: reduction.reduce_moments(store, groups, config.reduce.fan_in, transform),
                storage.join(folder, "subspace.safetensors"),
            )
            seconds["reduce"] = stage.seconds
        if not facts["count"]:
            raise CorpusError(f"none of the {plan.rows:,} samples could be scored; see the reasons below {store.folder}")

        with console.stage("score", len(plan.slice_ids), "slices") as stage:
            scored = selecting.score(store, groups, subspace, storage.join(folder, "scores"), stage.advance)
            seconds["score"] = stage.seconds
        _check_rejects(config, plan, sum(count for reason, count in scored.reasons.items() if reason != "text_only"), store)

        with console.stage("select", 1, "budget") as stage:
            budget = resolve_budget(config.selection.budget, scored.count)
            chosen = selecting.select(scored, budget, storage.join(folder, "manifest"))
            kept = selecting.write_rejects(
                scored, storage.join(folder, "rejects.parquet"), _text_only_share(config, budget, scored.count),
                storage.join(folder, "manifest", "text-only.parquet"), budget + 1,
            )  # fmt: skip
            stage.advance(1)
            seconds["select"] = stage.seconds

    storage.write(storage.join(folder, "config.yaml"), to_yaml(config).encode())
    record = {
        "format": "scalselect.run/1",
        "run_id": run_id,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "extractor": store.extractor_id,
        "samples": plan.rows,
        "scored": scored.count,
        "rejected": dict(sorted(scored.reasons.items())),
        "chosen": budget,
        "text_only_kept": kept,
        "sources": {name: {"scored": scored.counts[name], "chosen": chosen.get(name, 0)} for name in sorted(scored.counts)},
        "k": facts["k"],
        "dim": facts["dim"],
        "energy_captured": facts["captured"],
        "score_sum": scored.total,
        "slices": {"total": len(plan.slice_ids), "extracted": len(plan.todo), "moments_reused": len(reused)},
        "samples_per_second": round(plan.todo_rows / seconds["extract"], 3) if plan.todo else None,
        "seconds": {name: round(value, 3) for name, value in seconds.items()} | {"total": round(time.time() - started, 3)},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "numpy", "pyarrow")} | {"scalselect": __version__},
    }
    storage.write(storage.join(folder, "run.json"), json.dumps(record, indent=2).encode())
    _move_latest(output, run_id)
    _summarise(console, record, folder)
    return record


def open_store(config: JobConfig, output: str) -> FeatureStore:
    """The feature store of the config's extractor. Reads the model's needed tensors once, to know them."""
    from scalselect_ray.vlm import Preparer, fingerprint, open_checkpoint

    extractor = config.extractor
    checkpoint = open_checkpoint(extractor.model, extractor.revision)
    Preparer(checkpoint, min_pixels=extractor.min_pixels, max_pixels=extractor.max_pixels)  # fails now or in every worker
    description = {"weights": fingerprint(checkpoint), "settings": feature_settings(extractor), "format": 1}
    extractor_id = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    store = FeatureStore(output, extractor_id)
    try:
        store.describe({"model": storage.redact(extractor.model), **description})
    except OSError as error:
        raise OutputError(f"output {storage.redact(output)} cannot be written: {error}") from error
    return store


def make_plan(files: Sequence[CorpusFile], committed: set[str], plan_files: PlanFiles) -> Plan:
    """Slices of the corpus against what is committed. A file whose slices are all committed is not even opened."""
    done: dict[str, list[str]] = {}
    for slice_id in committed:
        done.setdefault(slice_id.partition("-")[0], []).append(slice_id)
    open_files = [file for file in files if file.key not in done or not is_complete(done[file.key])]
    planned = dict(zip((file.key for file in open_files), plan_files(open_files), strict=True))
    slice_ids: list[str] = []
    todo: list[Slice] = []
    for file in files:
        if file.key in planned:
            slice_ids += [part.id for part in planned[file.key]]
            todo += [part for part in planned[file.key] if part.id not in committed]
        else:
            slice_ids += sorted(done[file.key])
    return Plan(list(files), slice_ids, todo)


def plan_here(files: Sequence[CorpusFile]) -> list[list[Slice]]:
    """Plans files one by one in this process."""
    return [plan_file(file) for file in files]


def _plan_on_cluster(files: Sequence[CorpusFile], advance: Callable[[int], None]) -> list[list[Slice]]:
    import ray

    from scalselect_ray.cluster.session import bounded_map

    planned: list[list[Slice]] = [[] for _ in files]

    def arrived(place: int, ref: Any) -> None:
        planned[place] = ray.get(ref)
        advance(1)

    bounded_map(ray.remote(plan_file), [(file,) for file in files], arrived)
    return planned


def _check_plan(plan: Plan) -> None:
    if not plan.slice_ids:
        raise CorpusError(f"the corpus is empty: its {len(plan.files)} files hold no rows")
    problems = [part for part in plan.todo if part.problem]
    if problems and len(problems) == len(plan.slice_ids):
        raise CorpusError(f"no file of the corpus can be read; the first: {storage.redact(problems[0].shard)}: {problems[0].problem}")


def _check_rejects(config: JobConfig, plan: Plan, rejected: int, store: FeatureStore) -> None:
    if rejected > config.rejects.max_fraction * plan.rows:
        raise TooManyRejectsError(
            f"{rejected:,} of {plan.rows:,} samples are rejected, above rejects.max_fraction={config.rejects.max_fraction:g}"
            f"{_examples(plan, store)}\n"
            "Mend the corpus, or raise rejects.max_fraction; what is extracted stays and is not paid for again."
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
    text = f"{plan.rows:,} samples in {len(plan.slice_ids):,} slices of {len(plan.files):,} files; extractor {store.extractor_id}"
    if not plan.todo:
        return f"{text}; all extracted before"
    return f"{text}; {done:,} slices extracted before, {len(plan.todo):,} to do ({plan.todo_rows:,} samples)"


def _groups(slice_ids: Sequence[str], leaf_rows: int) -> list[list[str]]:
    from scalselect_ray.subspace import consecutive_groups

    runs = consecutive_groups([_rows(slice_id) for slice_id in slice_ids], leaf_rows)
    return [list(slice_ids[run.start : run.stop]) for run in runs]


def _rows(slice_id: str) -> int:
    _, first, stop, _ = slice_range(slice_id)
    return stop - first


def _text_only_share(config: JobConfig, budget: int, scored: int) -> float | None:
    if config.selection.text_only == "drop":
        return None
    return config.selection.text_only_share if config.selection.text_only_share is not None else budget / max(scored, 1)


def _run_id(config: JobConfig, store: FeatureStore, plan: Plan) -> str:
    """Sorts by time, in milliseconds; the tail tells apart runs of the same moment."""
    now = datetime.now(UTC)
    what = json.dumps([asdict(config), store.extractor_id, plan.slice_ids], sort_keys=True)
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def _move_latest(output: str, run_id: str) -> None:
    """Points `latest.json` to this run, unless it points to a newer one."""
    uri = storage.join(output, "latest.json")
    try:
        newest = json.loads(storage.read_bytes(uri))["run_id"] if storage.exists(uri) else ""
    except (ValueError, KeyError, TypeError):
        newest = ""
    if run_id > newest:
        storage.write(uri, json.dumps({"run_id": run_id}).encode())


def _summarise(console: Console, record: dict[str, Any], folder: str) -> None:
    rejected = sum(record["rejected"].values()) - record["text_only_kept"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in record["rejected"].items())
    console.note("")
    console.facts(
        {
            "chosen": f"{record['chosen']:,} of {record['scored']:,} scored samples"
            + (f", and {record['text_only_kept']:,} text-only" if record["text_only_kept"] else ""),
            "subspace": f"k = {record['k']} of {record['dim']} directions hold {100 * record['energy_captured']:.1f}% of the energy",
            "rejected": f"{rejected:,}" + (f" ({reasons})" if reasons else ""),
            "work": f"{record['slices']['extracted']:,} of {record['slices']['total']:,} slices extracted in this run",
        }
    )
    rows = [
        (name, item["scored"], item["chosen"], f"{100 * item['chosen'] / max(item['scored'], 1):.1f}%")
        for name, item in record["sources"].items()
    ]
    console.table(("source", "scored", "chosen", "share"), rows)
    if record["k"] == 0:
        console.warn("all features are equal: there is no subspace, every score is 0, and the first samples were taken")
    console.facts({"manifest": f"{storage.redact(folder)}/manifest", "rejects": f"{storage.redact(folder)}/rejects.parquet"})
    console.note("  next: read the manifest with any Parquet reader; run the same command again when the corpus has grown")
