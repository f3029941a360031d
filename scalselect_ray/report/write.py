"""Makes pages of finished runs."""

import os

from scalselect_ray.console import Console
from scalselect_ray.errors import OutputError
from scalselect_ray.io import storage
from scalselect_ray.store.layout import Output
from scalselect_ray.store.record import RunRecord


def page_uri(out: str) -> str:
    """Where `--out` of a page leads. Raises OutputError when no page can be written there, or something else would be
    lost: a page replaces a file, but no folder, device, pipe or socket."""
    uri = storage.absolute(out)
    if not storage.is_local(uri):
        if out.endswith("/") or storage.list_names(uri) or storage.list_folders(uri):
            raise OutputError(f"{uri} is a folder: name a file for the page")
        return uri
    if os.path.isdir(uri) or out.endswith("/"):
        raise OutputError(f"{uri} is a folder: name a file for the page")
    if os.path.exists(uri) and not os.path.isfile(uri):
        raise OutputError(f"{uri} is no plain file (a device, a pipe or a socket): name a file for the page")
    folder = os.path.dirname(uri)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise OutputError(f"{uri} cannot be made: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{uri} cannot be made: no permission to write in {folder}")
    return uri


def write_report(output: Output, record: RunRecord, console: Console) -> None:
    """Writes `report.html` of the run that `record` tells of. That it cannot be made is a warning: a run stands
    without."""
    try:
        make_report(output, record)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        console.warn(f"the report is not made: {type(error).__name__}: {lines[-1]}; 'scalselect report' tries again")


def make_report(output: Output, record: RunRecord, uri: str | None = None) -> str:
    """Writes the page of a run, by default its `report.html`; returns its URI. Ray must be up."""
    from scalselect_ray.report.gather import gather
    from scalselect_ray.report.page import render

    uri = uri or output.run(record.run_id).report
    storage.write(uri, render(gather(output, record)), "text/html; charset=utf-8")
    return uri


def make_comparison(output: Output, a: RunRecord, b: RunRecord, uri: str | None) -> str:
    """Writes the page of run A beside run B, by default next to A; returns its URI. Ray must be up."""
    from scalselect_ray.report.compare import compare
    from scalselect_ray.report.gather import gather
    from scalselect_ray.report.page import render_comparison

    folders = [output.run(record.run_id) for record in (a, b)]
    change = compare(folders[1], folders[0], max(a.chosen, b.chosen))
    if change is None:
        raise OutputError(f"{folders[0].uri}: its manifest or its subspace is damaged; it cannot be compared")
    uri = uri or folders[0].comparison(b.run_id)
    storage.write(uri, render_comparison(gather(output, a), gather(output, b), change), "text/html; charset=utf-8")
    return uri
