"""What `run.json` says of a finished run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from scalselect_ray.corpus.lost import LostRows
from scalselect_ray.errors import OutputError
from scalselect_ray.redaction import to_json
from scalselect_ray.store.layout import check_format, format_name

_ADDED = ("filtered_out", "lost", "passed_over")  # fields that records of earlier versions do not have


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceCounts:
    """Samples of one source."""

    scored: int
    chosen: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceCounts:
    """Slices of a run."""

    total: int
    extracted: int  # in this run
    moments_reused: int  # whose moments were merged by an earlier run


@dataclass(frozen=True, kw_only=True, slots=True)
class Angles:
    """Between the subspaces of two runs, in degrees."""

    mean: float
    largest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How a selection differs from the one before it: counts of chosen samples by (source, shard, row)."""

    previous: str  # id of the run before
    kept: int
    entered: int
    left: int
    principal_angles_degrees: Angles | None  # None: the subspaces are of other dimensions, or empty


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A finished run. Made by the last stage, written once as `run.json`, read by every verb that looks at a run."""

    run_id: str
    finished: str  # ISO 8601, UTC
    extractor: str  # its id
    moments: str  # id of the set of slices whose moments the subspace is made of
    samples: int  # rows of the corpus
    scored: int
    rejected: dict[str, int]  # by reason; one for each file that could not be read to its end
    filtered_out: dict[str, int]  # rows that a filter left out, by source: neither scored nor rejects
    lost: list[LostRows]  # what that one stands for
    passed_over: dict[str, dict[str, int]]  # by source: what lies on its paths and was not read, by what it is
    budgets: dict[str, int]  # samples by the budget as the config gives it
    chosen: int  # scored samples in the manifest: the largest budget, or less where caps hold
    text_only_kept: int  # samples without an image at the manifest's end
    sources: dict[str, SourceCounts]  # by the name of the source
    change: Change | None  # None: no earlier run of this extractor to compare with
    k: int  # dimension of the subspace
    dim: int  # length of a feature
    energy_captured: float  # share of the corpus's energy in the subspace
    score_sum: float
    slices: SliceCounts
    samples_per_second: float | None  # of the extraction; None: nothing was extracted
    seconds: dict[str, float]  # by stage, and in total
    versions: dict[str, str]  # by package

    def to_json(self) -> dict[str, Any]:
        """What is stored, and what `--json` prints."""
        return {"format": format_name("run"), **asdict(self)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], uri: str) -> "RunRecord":
        """The record in the content of `run.json`; `uri` names it in errors. Raises OutputError for another version, or
        where fields are missing."""
        check_format("run", stored.get("format"), uri)
        try:
            values = {field.name: stored[field.name] for field in fields(cls) if field.name not in _ADDED}
            change = values["change"]
            return cls(
                **values
                | {
                    "sources": {name: SourceCounts(**counts) for name, counts in values["sources"].items()},
                    "filtered_out": stored.get("filtered_out", {}),
                    "passed_over": stored.get("passed_over", {}),
                    "lost": [LostRows(**item) for item in stored.get("lost", [])],
                    "slices": SliceCounts(**values["slices"]),
                    "change": None if change is None else _change(change),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{uri} is no record of a run: {error!r}; remove that run's folder, or run again"
            ) from error


def _change(stored: Mapping[str, Any]) -> Change:
    angles = stored["principal_angles_degrees"]
    return Change(**{**stored, "principal_angles_degrees": None if angles is None else Angles(**angles)})


def to_bytes(record: RunRecord) -> bytes:
    """The content of `run.json`."""
    return to_json(record.to_json(), indent=2).encode()
