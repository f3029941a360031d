"""The command line.

Exit codes: 0 finished, 1 unforeseen, 2 unusable config, corpus, model or output, 3 too many rejects, 130 interrupted.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from scalselect_ray import __version__, storage
from scalselect_ray.config import JobConfig, load_config
from scalselect_ray.console import Console, duration
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.runs import Runs, read_object

_END_S = 8  # an interrupted process is gone by then


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and answers its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    console = Console()
    interruption = _Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        answer = options.verb(options, console)
    except BaseException as error:
        if interruption.seen or isinstance(error, KeyboardInterrupt):  # libraries turn an interruption into errors of their own
            console.note("interrupted: what is committed stays, and the next run goes on from there")
            return 130
        if not isinstance(error, ScalSelectError):
            raise
        console.error(storage.redact(str(error)))
        return error.exit_code
    finally:
        if not interruption.seen:
            for number, handler in before.items():
                signal.signal(number, handler)
    if options.json and answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
    return 0


class _Interruption:
    """Ctrl-C, and what is treated as one: SIGTERM, as preemption and `ray job stop` send it.

    From the first one on the process ends: further ones disturb nothing, and what does not end by itself is left behind.
    """

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.seen:
            return
        self.seen = True
        last_resort = threading.Timer(_END_S, os._exit, [130])
        last_resort.daemon = True
        last_resort.start()
        raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scalselect", description="Choose the part of a visual-instruction-tuning corpus worth training on."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result to stdout as JSON")
    for name, verb, text in (
        ("run", _run, "select: extract what is new, score everything, write the manifest"),
        ("plan", _plan, "say what a run would read and do, and do none of it"),
    ):
        added = verbs.add_parser(name, parents=[common], help=text, description=text)
        added.add_argument("config", help="YAML file; any fsspec URI")
        added.add_argument("overrides", nargs="*", metavar="key=value", help="such as selection.budget=0.08")
        added.set_defaults(verb=verb)
    added = verbs.add_parser("status", parents=[common], help="tell the state of an output folder")
    added.add_argument("output", help="the `output` of a config")
    added.set_defaults(verb=_status)
    added = verbs.add_parser("report", parents=[common], help="make the page of a run anew, or of two runs side by side")
    added.add_argument("output", help="the `output` of a config")
    which = added.add_mutually_exclusive_group()
    which.add_argument("--run", default="latest", metavar="RUN", help="id of a finished run (default: latest)")
    which.add_argument("--compare", nargs=2, metavar=("A", "B"), help="ids of two finished runs; latest is one as well")
    added.add_argument("--out", metavar="FILE", help="where to write it (default: in the folder of the run, or of run A)")
    added.set_defaults(verb=_report)
    added = verbs.add_parser("clean", parents=[common], help="show what of an output folder is of no more use, and remove it when told to")
    added.add_argument("output", help="the `output` of a config")
    added.add_argument("--delete", action="store_true", help="remove it; without this nothing is touched")
    added.set_defaults(verb=_clean)
    added = verbs.add_parser("export", parents=[common], help="write a run's selection in the files that a trainer reads")
    added.add_argument("output", help="the `output` of a config, or the config itself (.yaml)")
    added.add_argument("--to", required=True, metavar="FORMAT", help="such as llava, hf, webdataset; an unknown one lists them all")
    added.add_argument("--out", required=True, help="a new folder for it; any fsspec URI")
    added.add_argument("--run", default="latest", help="id of a finished run (default: latest)")
    added.add_argument("--images", choices=("reference", "copy"), help="name images where they lie, or copy them (default: as FORMAT can)")
    added.set_defaults(verb=_export)
    added = verbs.add_parser("demo", parents=[common], help="the whole job on a small corpus and model that it makes itself")
    added.add_argument("folder", nargs="?", default="demo", help="where to put it (default: ./demo)")
    added.set_defaults(verb=_demo)
    return parser


def _run(options: argparse.Namespace, console: Console) -> Any:
    config = load_config(options.config, options.overrides)
    from scalselect_ray.job import run  # not before the config is known to be good: it takes seconds

    return run(config, console)


def _plan(options: argparse.Namespace, console: Console) -> Any:
    config = load_config(options.config, options.overrides)
    from scalselect_ray.corpus import list_files, slice_range
    from scalselect_ray.job import open_store
    from scalselect_ray.plan import make_plan, plan_here

    store = open_store(config, config.output)
    files = list_files(config.corpus.sources, config.corpus.slice_rows, config.corpus.slice_bytes)
    plan = make_plan(files, store.committed(), plan_here)
    sources: dict[str, dict[str, int]] = {}
    source_of = {file.key: file.source for file in files}
    todo = {part.id for part in plan.todo}
    for file in files:
        counts = sources.setdefault(file.source, dict.fromkeys(("files", "bytes", "slices", "rows", "rows to do"), 0))
        counts["files"] += 1
        counts["bytes"] += file.file.size
    for slice_id in plan.slice_ids:
        key, first, stop, _ = slice_range(slice_id)
        counts = sources[source_of[key]]
        counts["slices"] += 1
        counts["rows"] += stop - first
        counts["rows to do"] += (stop - first) * (slice_id in todo)
    columns = ["files", "bytes", "slices", "rows", "rows to do"]
    console.table(("source", *columns), [(name, *(counts[column] for column in columns)) for name, counts in sources.items()])
    for part in plan.todo:
        if part.problem:
            console.warn(f"{part.shard}: {part.problem}")
    console.note(f"extractor {store.extractor_id}: {plan.todo_rows:,} of {plan.rows:,} samples are to be extracted")
    rate = _measured_rate(store.output, store.extractor_id)
    if plan.todo and rate:
        console.note(f"about {duration(plan.todo_rows / rate)} at the {rate:,.1f} samples/s of the last run with this extractor")
    elif plan.todo:
        console.note("no run with this extractor yet to tell the time by; try one file first: what it extracts is kept")
    return {
        "extractor": store.extractor_id,
        "rows": plan.rows,
        "todo_rows": plan.todo_rows,
        "seconds": plan.todo_rows / rate if rate else None,
        "sources": sources,
    }


def _status(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.garbage import find_garbage

    output = storage.absolute(options.output)
    known = Runs(output)
    latest = known.latest()
    extractors = {}
    for name in storage.list_folders(storage.join(output, "features")):
        slices = [item for item in storage.list_names(storage.join(output, "features", name)) if item.endswith(".parquet")]
        model = read_object(storage.join(output, "features", name, "extractor.json")).get("model")
        extractors[name] = {"model": model, "slices": len(slices)}
    runs = []
    for name in known.names():
        record = known.record(name)
        runs.append({"run_id": name, "finished": bool(record), **{key: record.get(key) for key in ("scored", "chosen", "k")}})
    if not extractors and not runs:
        console.note(f"{storage.redact(output)}: nothing there yet")
    for name, found in extractors.items():
        console.note(f"extractor {name}: {found['slices']:,} slices committed, model {found['model']}")
    for item in runs:
        mark = "  latest" if item["run_id"] == latest else ""
        state = f"{item['chosen']:,} of {item['scored']:,} chosen, k = {item['k']}" if item["finished"] else "not finished"
        console.note(f"run {item['run_id']}: {state}{mark}")
    try:
        garbage = find_garbage(output)
    except ScalSelectError as error:
        garbage = []
        console.warn(storage.redact(str(error)))
    for heap in garbage:
        console.note(f"of no more use: {heap}")
    if garbage:
        console.note(f"next: 'scalselect clean {options.output}' shows what it would remove, with --delete it does")
    return {"latest": latest, "extractors": extractors, "runs": runs, "garbage": [_heap(heap) for heap in garbage]}


def _report(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.cluster.session import own_errors, session
    from scalselect_ray.report.writing import find_run, make_comparison, make_report

    output = storage.absolute(options.output)
    records = [find_run(output, name) for name in options.compare or [options.run]]
    out = storage.absolute(options.out) if options.out else None
    with session(), own_errors():
        uri = make_comparison(output, records[0], records[1], out) if options.compare else make_report(output, records[0], out)
    console.note(storage.redact(uri))
    return {"report": storage.redact(uri)}


def _clean(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.garbage import find_garbage

    garbage = find_garbage(storage.absolute(options.output))
    for heap in garbage:
        console.note(f"{'removing' if options.delete else 'would remove'} {heap}")
        for uri in heap.uris[:20]:
            console.note(f"  {storage.redact(uri)}")
        if len(heap.uris) > 20:
            console.note(f"  and {len(heap.uris) - 20:,} more")
        if options.delete:
            storage.delete(heap.uris)
    if not garbage:
        console.note("nothing to remove")
    elif not options.delete:
        console.note("nothing was removed; with --delete it is")
    return {"deleted": options.delete, "garbage": [_heap(heap) for heap in garbage]}


def _heap(heap: Any) -> dict[str, Any]:
    return {"what": heap.what, "objects": len(heap.uris), "bytes": heap.size}


def _export(options: argparse.Namespace, console: Console) -> Any:
    is_config = options.output.endswith((".yaml", ".yml"))
    output = load_config(options.output).output if is_config else storage.absolute(options.output)
    from scalselect_ray.exports import export

    return export(output, None if options.run == "latest" else options.run, options.to, options.out, options.images, console)


def _demo(options: argparse.Namespace, console: Console) -> Any:
    from scalselect_ray.demo import make_demo
    from scalselect_ray.job import run

    config: JobConfig = load_config(make_demo(options.folder))
    console.note(f"made a corpus of 200 pictures, a small model with random weights, and {options.folder}/config.yaml")
    return run(config, console)


def _measured_rate(output: str, extractor_id: str) -> float | None:
    """Samples a second of the newest run that extracted with this extractor."""
    runs = Runs(output)
    for name in reversed(runs.names()):
        record = runs.record(name)
        if record.get("extractor") == extractor_id and record.get("samples_per_second"):
            return float(record["samples_per_second"])
    return None
