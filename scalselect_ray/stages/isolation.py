"""Samples that take their worker with them, by a crash of a decoder or by all the memory there is: found by halving,
and rejected, so that they do not end a run of millions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.exceptions import RayError, RayTaskError

from scalselect_ray.config import ExtractorConfig
from scalselect_ray.corpus import Reason, Reject, Sample, Slice, SliceId, read_slices
from scalselect_ray.errors import ClusterError
from scalselect_ray.io.ahead import ahead
from scalselect_ray.stages.payload import PreparedRow, payloads, unpack
from scalselect_ray.vlm import Prepared
from scalselect_ray.vlm.representer import make_extractor, make_preparer, prepare_sample

Deadly = Mapping[SliceId, frozenset[int]]
"""Rows of slices that are not to be touched."""

_THREADS = 2  # that prepare, as in a run
MOST_SLICES = 32
"""With deadly samples in more slices than these it is the machines that are at fault, or the model."""


def read_without(slices: Sequence[Slice], deadly: Deadly) -> Iterator[tuple[Slice, list[Sample | Reject]]]:
    """As `read_slices`, with rejects in the place of the deadly samples. A slice of which nothing may be touched, since
    its file cannot even be read there, is not read."""
    rest = []
    for slice_ in slices:
        if len(deadly.get(slice_.id, ())) == slice_.rows:
            yield slice_, [_reject(row, None) for row in range(slice_.first_row, slice_.stop_row)]
        else:
            rest.append(slice_)
    for slice_, samples in read_slices(rest) if rest else ():
        rows = deadly.get(slice_.id, frozenset())
        yield slice_, [_reject(sample.row, sample.id) if sample.row in rows else sample for sample in samples]


def _reject(row: int, sample_id: str | None) -> Reject:
    message = "the process that reads or represents this sample ends each time: its decoder crashes, or memory runs out"
    return Reject(row, sample_id, Reason.TOO_COSTLY, message)


def find_deadly(slice_: Slice, extractor: ExtractorConfig, gpus: float) -> frozenset[int]:
    """The rows of a slice that end a worker, each by itself; all rows where reading it does. Raises ClusterError where
    the slice ends its worker and no row does so alone."""
    task = _work.options(num_gpus=gpus)

    def survives(rows: Sequence[int]) -> bool:
        try:
            ray.get(task.remote(slice_, list(rows), extractor))
        except RayTaskError:
            return True  # an error of ours or of a library: what it means is decided elsewhere
        except RayError:
            return False
        return True

    rows = range(slice_.first_row, slice_.stop_row)
    if not survives([]):
        return frozenset(rows)
    deadly = deadly_rows(rows, survives)
    if not deadly and not survives(rows):
        raise ClusterError(
            f"{slice_.shard} rows {slice_.first_row:,} to {slice_.stop_row - 1:,} end the process that works at them, "
            "and no row does so by itself: together they need more memory than there is. Next: a smaller "
            "corpus.slice_rows, or more memory for each machine; run again: what is committed stays"
        )
    return frozenset(deadly)


def deadly_rows(rows: Sequence[int], survives: Callable[[Sequence[int]], bool]) -> list[int]:
    """The rows that do not survive alone, in order, by halving: about 2 log2(N) calls for one of N rows."""
    if survives(rows):
        return []
    if len(rows) == 1:
        return list(rows)
    half = len(rows) // 2
    return deadly_rows(rows[:half], survives) + deadly_rows(rows[half:], survives)


@ray.remote(max_retries=0)
def _work(slice_: Slice, rows: list[int], extractor: ExtractorConfig) -> None:
    """Reads a slice; prepares and represents some of its rows, as many at a time as a run does."""
    samples = [sample for _, samples in read_slices([slice_]) for sample in samples if sample.row in rows]
    if not samples:
        return
    prepare, represent = make_preparer(extractor), make_extractor(extractor)

    def prepared(sample: Sample | Reject) -> PreparedRow:
        return {"row": sample.row}, prepare_sample(prepare, sample).outcome

    with ThreadPoolExecutor(_THREADS) as threads:
        for _, payload in payloads(slice_, ahead(threads, prepared, samples, _THREADS)):
            represent([outcome for _, outcome in unpack(payload) if isinstance(outcome, Prepared)])
