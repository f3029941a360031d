"""The state of an output folder, and what of it is of no more use."""

from typing import Any

from scalselect_ray.console import Console, counted
from scalselect_ray.corpus import Reason
from scalselect_ray.errors import ConfigError, ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.store.garbage import find_garbage, find_rejected
from scalselect_ray.store.runs import Runs, read_object


def status(given: str, console: Console) -> dict[str, Any]:
    """Prints and returns what lies below an output folder."""
    output = storage.absolute(given)
    known = Runs(output)
    latest = known.latest()
    extractors: dict[str, dict[str, Any]] = {}
    for name in storage.list_folders(storage.join(output, "features")):
        slices = [
            item for item in storage.list_names(storage.join(output, "features", name)) if item.endswith(".parquet")
        ]
        model = read_object(storage.join(output, "features", name, "extractor.json")).get("model")
        extractors[name] = {"model": model, "slices": len(slices)}
    runs = []
    for name in known.names():
        record = known.record(name)
        runs.append(
            {"run_id": name, "finished": bool(record), **{key: record.get(key) for key in ("scored", "chosen", "k")}}
        )
    if not extractors and not runs:
        console.note(f"{storage.redact(output)}: nothing there yet")
    for name, found in extractors.items():
        console.note(f"extractor {name}: {counted(found['slices'], 'slice')} committed, model {found['model']}")
    for item in runs:
        mark = "  latest" if item["run_id"] == latest else ""
        state = (
            f"{item['chosen']:,} of {item['scored']:,} chosen, k = {item['k']}" if item["finished"] else "not finished"
        )
        console.note(f"run {item['run_id']}: {state}{mark}")
    try:
        garbage = find_garbage(output)
    except ScalSelectError as error:
        garbage = []
        console.warn(storage.redact(str(error)))
    for heap in garbage:
        console.note(f"of no more use: {heap}")
    if garbage:
        console.note(f"next: 'scalselect clean {given}' shows what it would remove, with --delete it does")
    return {"latest": latest, "extractors": extractors, "runs": runs, "garbage": [_heap(heap) for heap in garbage]}


def clean(given: str, rejected: str | None, delete: bool, console: Console) -> dict[str, Any]:
    """Prints and returns what is of no more use, or what holds rejects of the reason `rejected`; removes it when
    `delete` says so."""
    output = storage.absolute(given)
    if rejected is not None and rejected not in set(Reason):
        raise ConfigError(f"--rejected {rejected} is no reason; there are {', '.join(Reason)}")
    garbage = find_garbage(output) if rejected is None else find_rejected(output, rejected)
    for heap in garbage:
        console.note(f"{'removing' if delete else 'would remove'} {heap}")
        for uri in heap.uris[:20]:
            console.note(f"  {storage.redact(uri)}")
        if len(heap.uris) > 20:
            console.note(f"  and {len(heap.uris) - 20:,} more")
        if delete:
            storage.delete(heap.uris)
    if not garbage:
        console.note("nothing to remove")
    elif not delete:
        console.note("nothing was removed; add --delete to remove it")
    return {"deleted": delete, "garbage": [_heap(heap) for heap in garbage]}


def _heap(heap: Any) -> dict[str, Any]:
    return {"what": heap.what, "objects": len(heap.uris), "bytes": heap.size}
