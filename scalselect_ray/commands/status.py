"""The state of an output folder, and what of it is of no more use."""

from typing import Any

from scalselect_ray.console import Console, counted
from scalselect_ray.corpus import Reason
from scalselect_ray.errors import ConfigError, OutputError, ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.garbage import find_garbage, find_rejected
from scalselect_ray.store.layout import Output
from scalselect_ray.store.runs import Runs, read_object


def status(given: str, console: Console) -> dict[str, Any]:
    """Prints and returns what lies below an output folder."""
    output = Output(storage.absolute(given))
    known = Runs(output)
    latest = known.latest()
    extractors = {name: _extractor(FeatureStore(output, name)) for name in output.extractors()}
    runs = [_run(known, name) for name in known.names()]
    if not extractors and not runs:
        console.note(f"{output.uri}: nothing there yet")
    for name, found in extractors.items():
        console.note(f"extractor {name}: {counted(found['slices'], 'slice')} committed, model {found['model']}")
    for item in runs:
        mark = "  latest" if item["run_id"] == latest else ""
        if "problem" in item:
            state = item["problem"]
        elif item["finished"]:
            state = f"{item['chosen']:,} of {item['scored']:,} chosen, k = {item['k']}"
        else:
            state = "not finished"
        console.note(f"run {item['run_id']}: {state}{mark}")
    try:
        garbage = find_garbage(output)
    except ScalSelectError as error:
        garbage = []
        console.warn(str(error))
    for heap in garbage:
        console.note(f"of no more use: {heap}")
    if garbage:
        console.note(f"next: 'scalselect clean {given}' shows what it would remove, with --delete it does")
    return {"latest": latest, "extractors": extractors, "runs": runs, "garbage": [_heap(heap) for heap in garbage]}


def _extractor(store: FeatureStore) -> dict[str, Any]:
    model = read_object(store.output.extractor(store.extractor_id)).get("model")
    return {"model": model, "slices": len(store.committed())}


def _run(runs: Runs, name: str) -> dict[str, Any]:
    try:
        record = runs.record(name)
    except OutputError as error:  # of another version
        return {"run_id": name, "finished": True, "problem": str(error)}
    shown = {key: getattr(record, key, None) for key in ("scored", "chosen", "k")}
    return {"run_id": name, "finished": record is not None, **shown}


def clean(given: str, rejected: str | None, keep: int | None, delete: bool, console: Console) -> dict[str, Any]:
    """Prints and returns what is of no more use, or what holds rejects of the reason `rejected`; with `keep` also all
    but so many of the newest finished runs. Removes it when `delete` says so."""
    output = Output(storage.absolute(given))
    if rejected is not None and rejected not in set(Reason):
        raise ConfigError(f"--rejected {rejected} is no reason; there are {', '.join(Reason)}")
    garbage = find_garbage(output, keep) if rejected is None else find_rejected(output, rejected)
    for heap in garbage:
        console.note(f"{'removing' if delete else 'would remove'} {heap}")
        for uri in heap.uris[:20]:
            console.note(f"  {uri}")
        if len(heap.uris) > 20:
            console.note(f"  and {len(heap.uris) - 20:,} more")
        if delete:
            storage.delete(heap.uris)
            for folder in heap.folders:
                storage.delete_empty(folder)
    if not garbage:
        console.note("nothing to remove")
    elif not delete:
        console.note("nothing was removed; add --delete to remove it")
    return {"deleted": delete, "garbage": [_heap(heap) for heap in garbage]}


def _heap(heap: Any) -> dict[str, Any]:
    return {"what": heap.what, "objects": len(heap.uris), "bytes": heap.size}
