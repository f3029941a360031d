"""The whole job, and what people read at its end."""

from scalselect_ray.commands.summary import summarise
from scalselect_ray.config import JobConfig
from scalselect_ray.console import Console
from scalselect_ray.job import run as run_job
from scalselect_ray.store.layout import Output
from scalselect_ray.store.record import RunRecord


def run(config: JobConfig, console: Console) -> RunRecord:
    """One selection, with its summary printed. Raises ScalSelectError."""
    record = run_job(config, console)
    summarise(console, record, Output(config.output))
    return record
