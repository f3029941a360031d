"""The corpus against what is committed of it: a task for each file that must be opened."""

from collections.abc import Sequence

import ray

from scalselect_ray.cluster.tasks import in_order
from scalselect_ray.console import counted
from scalselect_ray.corpus import Plan, list_corpus, lost_rows, make_plan, plan_open_file, rests_of
from scalselect_ray.corpus.planning import OpenFile, passed_over_text
from scalselect_ray.corpus.slices import Slice, SliceId, shard_name
from scalselect_ray.errors import CorpusChangedError, CorpusError, OutputError
from scalselect_ray.stages.context import Job
from scalselect_ray.stages.rejects import check_rejects
from scalselect_ray.store.files import read_files
from scalselect_ray.store.runs import Runs

_SHOWN = 10  # unreadable files that are named


def plan(job: Job) -> Plan:
    """What is to be done. A corpus that changes while it is planned is listed and planned anew, once.

    Raises CorpusError when there is nothing to select from.
    """
    try:
        found = _plan(job)
    except CorpusChangedError as error:
        job.console.warn(f"{error.uris[0]} changed while the corpus was planned: the corpus is listed anew")
        found = _plan(job)
    job.store.check_rows(found.kept)
    _check(found, job)
    job.console.note(_what_is_to_do(found, job))
    return found


def replan(plan: Plan, committed: set[SliceId]) -> Plan:
    """The same corpus as it is committed now. Raises CorpusChangedError where a file has slices left to do."""
    found = make_plan(
        plan.files, committed, lambda files: in_order(ray.remote(plan_open_file), files), plan.passed_over
    )
    if found.todo:
        raise CorpusChangedError(sorted({slice_.shard for slice_ in found.todo}))
    return found


def _plan(job: Job) -> Plan:
    corpus = list_corpus(job.config.corpus)
    with job.stages("plan", len(corpus.files), "files") as stage:

        def plan_files(some: Sequence[OpenFile]) -> list[list[Slice] | None]:
            return in_order(ray.remote(plan_open_file), some, stage.advance)

        found = make_plan(corpus.files, job.store.committed(), plan_files, corpus.passed_over)
        stage.advance(len(corpus.files) - stage.done)  # the others are known from their committed slices
    return found


def nothing_in_common(plan: Plan, runs: Runs) -> str:
    """What is said of a corpus that has no file in common with the latest run of its output; empty where it has."""
    latest = runs.latest()
    try:
        before = read_files(runs.folder(latest)) if latest else []
    except OutputError:  # of version 0.1, or damaged
        return ""
    ours = {shard_name(file.file.uri) for file in plan.files}
    if not before or any(file.shard in ours for file in before):
        return ""
    names = ", ".join(sorted({file.source for file in before})[:_SHOWN])
    return (
        f"the corpus has no file in common with the latest run of {runs.output.uri} ({latest}: {names}): is this the "
        "output that you mean? Nothing there is lost, but 'latest' will be this run"
    )


def _check(plan: Plan, job: Job) -> None:
    for source, passed_over in plan.passed_over.items():
        job.console.note(f"{source}: {passed_over_text(passed_over)}")
    if warning := nothing_in_common(plan, Runs(job.output)):
        job.console.warn(warning)
    if not plan.slice_ids:
        raise CorpusError(f"the corpus is empty: its {len(plan.files)} files hold no rows")
    problems = [slice_ for slice_ in plan.todo if slice_.problem]
    lost = lost_rows(plan.files, plan.slice_ids, rests_of(problems))
    for slice_, rest in zip(problems[:_SHOWN], lost, strict=False):  # both in the order of the files
        job.console.warn(f"{rest}: {slice_.problem}")
    if len(problems) > _SHOWN:
        job.console.warn(f"{len(problems) - _SHOWN:,} more files cannot be read to their end")
    if problems and len(problems) == len(plan.slice_ids):
        raise CorpusError(f"no file of the corpus can be read; the first: {problems[0].shard}: {problems[0].problem}")
    check_rejects(job, plan, len(lost), lost)


def _what_is_to_do(plan: Plan, job: Job) -> str:
    done = len(plan.slice_ids) - len(plan.todo)
    text = (
        f"{counted(plan.rows, 'sample')} in {counted(len(plan.slice_ids), 'slice')} of "
        f"{counted(len(plan.files), 'file')}"
        f"; extractor {job.store.extractor_id}"
    )
    if not plan.todo:
        return f"{text}; all extracted before"
    if len(plan.todo) == len(plan.slice_ids) and (others := job.store.differences()):
        text += f" is new here: its {others}; what others extracted cannot be used"
    return (
        f"{text}; {counted(done, 'slice')} extracted before, {len(plan.todo):,} to do "
        f"({counted(plan.todo_rows, 'sample')})"
    )
