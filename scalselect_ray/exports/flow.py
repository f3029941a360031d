"""The flow of an export: manifest and corpus -> rows in the order of files -> sorted runs -> part files in the order
of ranks -> the export.

Tasks do the reading and the writing; the driver sees slices, counts and the URIs of sorted runs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from scalselect_ray.cluster.preflight import missing_by_node
from scalselect_ray.cluster.session import own_errors, session
from scalselect_ray.config import JobConfig
from scalselect_ray.config_files import parse_config
from scalselect_ray.console import Console
from scalselect_ray.corpus import list_files
from scalselect_ray.errors import ConfigError, OutputError
from scalselect_ray.exports import FORMATS
from scalselect_ray.exports.base import SPOOL, Finish, Format, Images, Usage, join_parts
from scalselect_ray.exports.chosen import ChosenRows
from scalselect_ray.exports.parts import Written, write_files, write_manifest, write_rows, write_shards
from scalselect_ray.exports.target import check_location, claim_of, claimed
from scalselect_ray.exports.work import Export
from scalselect_ray.io import storage
from scalselect_ray.redaction import to_json
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.files import read_files
from scalselect_ray.store.layout import Output, format_name
from scalselect_ray.store.runs import Runs


def export(
    output: Output, run_id: str, name: str, target: str, images: str | None, console: Console, raw: bool = False
) -> dict[str, Any]:
    """Writes the selection of a finished run (its id, or latest) for one trainer; returns what `export.json` holds.

    `raw`: of a table, the cells as they are. Raises ScalSelectError.
    """
    known, mode = _format_of(name, images, raw)
    runs = Runs(output)
    record = runs.find(run_id)
    store = FeatureStore(output, record.extractor)
    work = Export(record.run_id, runs.folder(record.run_id), name, known, mode, storage.absolute(target), raw, store)
    config = _config_of(work)
    read = read_files(work.folder)
    check_location(work.target, config.corpus, output.uri)
    with claimed(work.target, work.identity), session(console), own_errors():
        files = list_files(config.corpus)
        chosen = ChosenRows(work.folder, files)
        chosen.check_unchanged(read)
        _open_target(work)
        with console.stage("export", chosen.count, "samples") as stage:
            if known.needs == "manifest":
                written = write_manifest(work, chosen, stage.advance)
            elif known.needs == "shards":
                written = write_shards(work, chosen, console, stage.advance)
            elif known.needs == "files":
                written = write_files(work, chosen, stage.advance)
            else:
                written = write_rows(work, chosen, read, stage.advance)
            if not written.finish.count:
                reasons = "; ".join(sorted(written.reasons)) or "no chosen sample is in a file that it can use"
                raise OutputError(f"nothing can be exported to {name}: {reasons}")
            usage = ray.get(_finish.remote(work, written.finish, written.left_out))
            if usage.smaller and not config.selection.per_source:
                usage = replace(usage, lines=[*usage.lines, f"a smaller budget: {usage.smaller}"])
    return _commit(work, chosen.count, written, usage, console)


def _format_of(name: str, images: str | None, raw: bool) -> tuple[Format, Images | None]:
    """The format of this name, and what becomes of images. Raises ConfigError."""
    known = FORMATS.get(name)
    if known is None:
        listed = [
            f"  {known_name:<15}{each.about}{f'; {each.keeps} with all fields' if each.keeps else ''}"
            for known_name, each in FORMATS.items()
        ]
        raise ConfigError(f"'{name}' is no export format; these are:", *listed)
    if images is not None and images not in known.modes:
        can = f"only {' or '.join(known.modes)}" if known.modes else "it names no images"
        raise ConfigError(f"export to {name} does not support --images {images}: {can}")
    if raw and known.raw is None:
        raise ConfigError(f"export to {name} does not support --raw: it changes no texts")
    mode = Images(images) if images is not None else next(iter(known.modes), None)
    return known.raw if raw and known.raw else known, mode


def _config_of(work: Export) -> JobConfig:
    uri = work.folder.config
    return parse_config(storage.read_bytes(uri).decode(), where=uri)


def _open_target(work: Export) -> None:
    """The export is not finished from here on. Raises OutputError where a node does not see its folder."""
    storage.delete([storage.join(work.target, "export.json")])
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) > 1 and storage.is_local(work.target) and any(missing_by_node(nodes, [claim_of(work.target)])):
        raise OutputError(
            f"{work.target} is not there on every node of the cluster: write to a bucket, or to a folder that all "
            "nodes share"
        )


@ray.remote
def _finish(work: Export, finish: Finish, left_out: Sequence[str]) -> Usage:
    if left_out:
        with storage.open_write(storage.join(work.target, "left-out.jsonl")) as stream:
            join_parts(stream, left_out)
    return work.format.finish(finish)


def _commit(work: Export, chosen: int, written: Written, usage: Usage, console: Console) -> dict[str, Any]:
    """`export.json` is written last: an export without it is not finished."""
    record = {
        **work.identity,
        "format": format_name("export"),
        "target": work.target,
        "chosen": chosen,
        "written": written.finish.count,
        "left_out": dict(sorted(written.reasons.items())),
        "left_behind": dict(sorted((written.left_behind + Counter(usage.left_behind)).items())),
        "image_folder": written.finish.paths.folder if _names_images(work) else None,
        "use": list(usage.lines),
    }
    storage.write(storage.join(work.target, "export.json"), to_json(record, indent=2).encode())
    storage.delete_folder(storage.join(work.target, SPOOL))
    console.note(f"{written.finish.count:,} of {chosen:,} chosen samples of run {work.run_id} to {work.target}")
    for reason, count in written.reasons.most_common():
        console.warn(f"{count:,} left out (see left-out.jsonl): {reason}")
    if lost := written.left_behind:
        console.warn(
            f"fields left behind, for which {work.name} has no place (--to source keeps all): {_counted(lost)}"
        )
    if late := usage.left_behind:
        console.warn(
            "fields left behind, which do not fit into the columns of the first rows, by which the trainer's reader "
            f"settles names and types: {_counted(late)}"
        )
    for note, count in written.notes.most_common():
        console.warn(f"{count:,} {note}")
    if written.copied:
        console.note("  images that are bytes in the corpus, or were to be copied, are in images/")
    for line in usage.lines:
        console.note(f"  {line}")
    if not storage.is_local(work.target) and _names_images(work):
        console.note("  the trainer reads local files: copy or mount them first")
    for warning in usage.warnings:
        console.warn(warning)
    return record


def _names_images(work: Export) -> bool:
    """Whether rows have paths that lead from one folder to their images."""
    return bool(work.format.modes) and not work.format.embeds and work.format.needs == "rows"


def _counted(fields: Mapping[str, int]) -> str:
    """Fields and how many rows lost them, the most first."""
    listed = sorted(fields.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} ({count:,} rows)" if count > 1 else f"{name} (1 row)" for name, count in listed)
