"""Which rows of which files a run chose: the manifest, sorted by file and row instead of by rank."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import ray
from ray import ObjectRef

from scalselect_ray.cluster.tasks import completed
from scalselect_ray.corpus import CorpusFile, shard_name
from scalselect_ray.errors import CorpusError
from scalselect_ray.store.files import RunFile
from scalselect_ray.store.layout import RunFolder
from scalselect_ray.store.tables import read_part

FILE_ROWS = 1 << 40  # more rows than any file has: (number of a file, row) is written as one number


class RowIndex(NamedTuple):
    """The chosen rows in one part file of the manifest, sorted by file and row. (N,) each."""

    keys: np.ndarray  # int64: number of the file * FILE_ROWS + row
    ranks: np.ndarray  # int64
    scores: np.ndarray  # float64; NaN where there is none


class ChosenRows:
    """The manifest by files of the corpus: the index of each part file in Ray's object store, the counts here."""

    def __init__(self, run_folder: RunFolder, files: Sequence[CorpusFile]) -> None:
        self.files = files
        numbers = {(file.source, shard_name(file.file.uri)): number for number, file in enumerate(files)}
        self.uris = run_folder.parts("manifest")
        self.parts: list[ObjectRef[RowIndex]] = [None] * len(self.uris)
        self.by_file = np.zeros(len(files), dtype=np.int64)
        shared = ray.put(numbers)
        missing: set[tuple[str, str]] = set()
        for index, refs in completed(_index_part.options(num_returns=2), [(uri, shared) for uri in self.uris]):
            self.parts[index] = refs[0]
            counts, unknown = ray.get(refs[1])
            self.by_file += counts
            missing.update(unknown)
        if missing:
            source, shard = min(missing)
            raise CorpusError(
                f"{shard} (source '{source}') has chosen samples and is no longer in the corpus: "
                "bring it back, or run again"
            )

    @property
    def count(self) -> int:
        return int(self.by_file.sum())

    def check_unchanged(self, read: Sequence[RunFile]) -> None:
        """Every file with chosen samples must be the version that the run read: row numbers mean nothing in another."""
        keys = {file.file_key for file in read}
        for file, count in zip(self.files, self.by_file, strict=True):
            if count and file.key not in keys:
                raise CorpusError(
                    f"{file.file.uri} (source '{file.source}') has changed since the run: its rows "
                    "are not the chosen ones any more. Bring the old file back, or run again: only what changed is "
                    "extracted"
                )


@ray.remote
def _index_part(
    uri: str, numbers: dict[tuple[str, str], int]
) -> tuple[RowIndex | None, tuple[np.ndarray, set[tuple[str, str]]]]:
    """The index of one part file of the manifest, and (counts by file, the (source, shard) that are not in the
    corpus)."""
    table = read_part(uri, ["source", "shard", "row", "rank", "score"])
    shards = list(zip(table["source"].to_pylist(), table["shard"].to_pylist(), strict=True))
    unknown = {shard for shard in set(shards) if shard not in numbers}
    if unknown:
        return None, (np.zeros(len(numbers), dtype=np.int64), unknown)
    file = np.array([numbers[shard] for shard in shards], dtype=np.int64)
    keys = file * FILE_ROWS + table["row"].to_numpy()
    order = np.argsort(keys, kind="stable")
    scores = table["score"].to_numpy()  # NaN where null
    index = RowIndex(keys[order], table["rank"].to_numpy()[order], scores[order])
    return index, (np.bincount(file, minlength=len(numbers)), set())


def count_wanted(parts: Sequence[RowIndex], number: int, first: int, stop: int) -> int:
    """How many of the rows [first, stop) of a file are chosen."""
    edges = [number * FILE_ROWS + first, number * FILE_ROWS + stop]
    return sum(int(np.diff(np.searchsorted(keys, edges))[0]) for keys, _, _ in parts)


def wanted(parts: Sequence[RowIndex], number: int, first: int, stop: int) -> Iterator[tuple[int, int, float]]:
    """(row, rank, score) of the chosen rows [first, stop) of a file."""
    for keys, ranks, scores in parts:
        low, high = np.searchsorted(keys, [number * FILE_ROWS + first, number * FILE_ROWS + stop])
        yield from zip(
            (keys[low:high] - number * FILE_ROWS).tolist(),
            ranks[low:high].tolist(),
            scores[low:high].tolist(),
            strict=True,
        )
