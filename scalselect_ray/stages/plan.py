"""A corpus against what is committed of it: what a run has still to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from scalselect_ray.corpus import CorpusFile, Slice, is_complete, plan_file, slice_range, without_overlaps

PlanFiles = Callable[
    [Sequence[tuple[CorpusFile, list[str]]]], list[list[Slice]]
]  # of each file, the ids of slices that are there


@dataclass(frozen=True)
class Plan:
    """What a corpus is made of, and what of it is still to do."""

    files: list[CorpusFile]
    slice_ids: list[str]  # of the whole corpus, in the order of (shard, row)
    todo: list[Slice]

    @cached_property
    def rows(self) -> int:
        return sum(rows_of(slice_id) for slice_id in self.slice_ids)

    @cached_property
    def todo_rows(self) -> int:
        return sum(part.rows for part in self.todo)


def make_plan(files: Sequence[CorpusFile], committed: set[str], plan_files: PlanFiles) -> Plan:
    """Slices of the corpus against what is committed. A file whose slices are all committed is not even opened; of
    another, what is committed stays as it was cut."""
    found: dict[str, list[str]] = {}
    for slice_id in committed:
        found.setdefault(slice_id.partition("-")[0], []).append(slice_id)
    done = {file.key: without_overlaps(found.get(file.key, [])) for file in files}
    open_files = [(file, done[file.key]) for file in files if not is_complete(done[file.key])]
    planned = dict(zip((file.key for file, _ in open_files), plan_files(open_files), strict=True))
    slice_ids: list[str] = []
    todo: list[Slice] = []
    for file in files:
        if file.key in planned:
            slice_ids += [part.id for part in planned[file.key]]
            todo += [part for part in planned[file.key] if part.id not in committed]
        else:
            slice_ids += done[file.key]
    return Plan(list(files), slice_ids, todo)


def plan_here(files: Sequence[tuple[CorpusFile, list[str]]]) -> list[list[Slice]]:
    """Plans files one by one in this process."""
    return [plan_file(*file) for file in files]


def rows_of(slice_id: str) -> int:
    """How many rows a slice holds, by its id."""
    _, first, stop, _ = slice_range(slice_id)
    return stop - first
