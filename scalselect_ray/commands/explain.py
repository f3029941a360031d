"""Why one sample has its score: from what a run has stored, a part at a time. The corpus and the model are not read."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from scalselect_ray.console import Console
from scalselect_ray.corpus import shard_name
from scalselect_ray.errors import CorpusError
from scalselect_ray.io import storage
from scalselect_ray.store.features import COUNTS, FeatureStore, features_of
from scalselect_ray.store.files import read_files
from scalselect_ray.store.layout import Output, RunFolder, Table
from scalselect_ray.store.record import RunRecord
from scalselect_ray.store.runs import Runs
from scalselect_ray.store.subspace import read_subspace
from scalselect_ray.store.tables import Key, read_batches
from scalselect_ray.subspace import Subspace

_MOST_MATCHES = 50  # that are listed
_MOST_DIRECTIONS = 10  # that are shown


@dataclass(frozen=True, slots=True)
class Match:
    """A sample of the run that is meant by what was asked for."""

    key: Key
    id: str | None
    score: float | None  # None: it was not scored, by `reason`
    reason: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction of the basis: what of the score it brings."""

    number: int  # from 1, in the order of their energy
    contribution: float  # ((y . v_j) / s_j)^2; these sum to the score
    share: float  # of the score
    energy: float  # share of the corpus's energy along this direction


@dataclass(frozen=True, slots=True)
class Explanation:
    """One scored sample against the corpus."""

    match: Match
    place: int  # among all scored samples, from 1, best first; equal scores share the best place
    scored: int
    below: int  # scored samples with a lower score
    rank: int | None  # in the manifest; None: not chosen
    cutoff: float | None  # lowest chosen score: of its source where sources have quotas; None: nothing of it is chosen
    mean: float  # score of the corpus
    tokens: Mapping[str, int] | None  # None: its feature file is gone
    directions: list[Direction]  # largest contribution first
    k: int


def explain(output: Output, wanted: str, run: str, console: Console) -> dict[str, Any]:
    """Prints and returns why the sample that `wanted` names has its score; when several have that id, which these
    are."""
    record = Runs(output).find(run)
    folder = output.run(record.run_id)
    matches = _matches(folder, wanted)
    if not matches:
        filtered = sum(record.filtered_out.values())
        left_out = f" (its filters left out {filtered:,} rows)" if filtered else ""
        raise CorpusError(
            f"run {record.run_id} has no sample '{wanted}'{left_out}; expected an id as in the manifest, or SHARD:ROW "
            "(the file's URI or the end of it, and the row's number from 0)"
        )
    if len(matches) > 1:
        shown = matches[:_MOST_MATCHES]
        console.note(f"{_some(matches)} samples are called {wanted}; name one by its place:")
        for match in shown:
            console.note(f"  {match.key}  {match.reason if match.score is None else f'score {match.score:.6g}'}")
        return {"run_id": record.run_id, "matches": [_match(match) for match in shown]}
    match = matches[0]
    if match.score is None:
        console.note(f"{match.key}  id {match.id}")
        console.note(f"  it has no score: {match.reason}{f': {match.message}' if match.message else ''}")
        return {"run_id": record.run_id, "matches": [_match(match)]}
    found = _explain(output, record, folder, match)
    _show(found, record, console)
    answer = asdict(found)
    del answer["match"]
    percentile = 100 * found.below / found.scored
    return {"run_id": record.run_id, "matches": [_match(match)], "percentile": percentile, **answer}


def _explain(output: Output, record: RunRecord, folder: RunFolder, match: Match) -> Explanation:
    config = yaml.safe_load(storage.read_bytes(folder.config))
    scored = above = below = 0
    total = 0.0
    for table in _tables(folder, "scores", ["score"]):
        score = table["score"].to_numpy()
        scored, above, below = (
            scored + len(score),
            above + int((score > match.score).sum()),
            below + int((score < match.score).sum()),
        )
        total += float(score.sum())
    rank, cutoff = None, None
    for table in _tables(folder, "manifest", [*Key._fields, "score", "rank"]):
        ours = table.filter(pc.equal(table["row"], match.key.row))
        rank = rank or next(
            (row["rank"] for row in ours.to_pylist() if Key(*(row[name] for name in Key._fields)) == match.key), None
        )
        if config["selection"].get("per_source"):
            table = table.filter(pc.equal(table["source"], match.key.source))
        lowest = pc.min(table["score"]).as_py()
        cutoff = lowest if cutoff is None else cutoff if lowest is None else min(cutoff, lowest)
    subspace = read_subspace(folder.subspace)
    row, contribution_K = _features_row(FeatureStore(output, record.extractor), folder, match, subspace)
    energy_D = np.square(subspace.spectrum_D)
    order = np.argsort(-contribution_K, kind="stable").tolist()
    return Explanation(
        match,
        above + 1,
        scored,
        below,
        rank,
        cutoff,
        total / scored,
        None if row is None else {name: row[name] for name in COUNTS},
        [
            Direction(
                place + 1,
                float(contribution_K[place]),
                _part(contribution_K[place], match.score),
                _part(energy_D[place], energy_D.sum()),
            )
            for place in order[:_MOST_DIRECTIONS]
        ],
        subspace.k,
    )


def _part(value: float, whole: float | None) -> float:
    return float(value / whole) if whole else 0.0


def _matches(folder: RunFolder, wanted: str) -> list[Match]:
    """The samples that have this id, or lie at this SHARD:ROW or SOURCE:SHARD:ROW: scored ones, rejects, text-only ones
    that were kept."""
    place, _, number = shard_name(wanted).rpartition(":")
    at = int(number) if place and number.isascii() and number.isdecimal() and len(number) < 19 else None

    def meant(table: pa.Table) -> Iterator[dict[str, Any]]:
        is_it = pc.fill_null(pc.equal(table["id"], wanted), False)
        if at is not None:
            is_it = pc.or_(is_it, pc.equal(table["row"], at))
        for row in table.filter(is_it).to_pylist():
            key = Key(row["source"], row["shard"], row["row"])
            if (
                row["id"] == wanted
                or str(key) == shard_name(wanted)
                or place in (key.shard, f"{key.source}:{key.shard}")
                or key.shard.endswith(f"/{place}")
            ):
                yield row

    found: list[Match] = []
    columns = [*Key._fields, "id"]
    for table in _tables(folder, "scores", [*columns, "score"]):
        found += [Match(Key(row["source"], row["shard"], row["row"]), row["id"], row["score"]) for row in meant(table)]
    for table in read_batches(folder.rejects, [*columns, "reason", "message"]):
        found += [
            Match(Key(row["source"], row["shard"], row["row"]), row["id"], None, row["reason"], row["message"])
            for row in meant(table)
        ]
    kept = folder.text_only
    for table in read_batches(kept, columns) if storage.exists(kept) else ():
        found += [
            Match(Key(row["source"], row["shard"], row["row"]), row["id"], None, "text_only", "kept")
            for row in meant(table)
        ]
    return found


def _features_row(
    store: FeatureStore, folder: RunFolder, match: Match, subspace: Subspace
) -> tuple[dict[str, Any] | None, np.ndarray]:
    """The sample's row of the feature store, and what each direction brings (K,); (None, empty) when it is gone."""
    file = next((file for file in read_files(folder) if (file.source, file.shard) == match.key[:2]), None)
    slice_id = file.slice_of(match.key.row) if file else None
    if slice_id is None or slice_id not in store.committed():
        return None, np.empty(0)
    table = store.read(slice_id, ["row", "reason", *COUNTS, "feature"])
    table = table.filter(pc.and_(pc.equal(table["row"], match.key.row), pc.is_null(table["reason"])))
    y_D = subspace.transform(features_of(table))[0]
    contribution_K = np.square(y_D @ (subspace.basis_DK / subspace.singular_values_K))
    return table.to_pylist()[0], contribution_K


def _tables(folder: RunFolder, name: Table, columns: list[str]) -> Iterator[pa.Table]:
    """The parts of a stored table, a bounded number of rows at a time."""
    for uri in folder.parts(name):
        yield from read_batches(uri, columns)


def _match(match: Match) -> dict[str, Any]:
    return {**match.key._asdict(), **{name: value for name, value in asdict(match).items() if name != "key"}}


def _some(matches: list[Match]) -> str:
    return f"{len(matches):,}" if len(matches) <= _MOST_MATCHES else f"{len(matches):,} ({_MOST_MATCHES} are shown)"


def _show(found: Explanation, record: RunRecord, console: Console) -> None:
    match = found.match
    assert match.score is not None
    if found.rank is not None:
        state = f"chosen, rank {found.rank:,} of {record.chosen:,}"
    elif found.cutoff is None:
        state = "not chosen; nothing of its source is" if record.chosen else "not chosen; nothing is"
    elif found.cutoff > match.score:
        state = f"not chosen: {100 * (1 - match.score / found.cutoff):.2g}% below the cutoff ({found.cutoff:.6g})"
    else:
        state = f"not chosen: its score is the cutoff ({found.cutoff:.6g}), and samples before it filled the budget"
    console.note(f"{match.key}  id {match.id}")
    facts: dict[str, object] = {
        "score": f"{match.score:.6g}, {match.score / found.mean:.3g} times the corpus's mean"
        if found.mean
        else f"{match.score:.6g}",
        "state": state,
        "place": f"{found.place:,} of {found.scored:,} scored: higher than {100 * found.below / found.scored:.4g}% of "
        "them",
    }
    if found.tokens is None:
        facts["tokens"] = "not known: its feature file is gone; the next run makes it anew"
    else:
        total, vision, query, attended = (found.tokens[name] for name in COUNTS)
        facts["tokens"] = (
            f"{total:,}: {vision:,} vision, {query:,} query; {attended:,} of the vision tokens are attended and make "
            "the feature"
        )
    console.facts(facts)
    if found.directions:
        console.note(
            f"  where the score comes from: {len(found.directions)} of {found.k:,} directions of the subspace, "
            "largest share first"
        )
        console.table(
            ("  direction", "of the score", "contribution", "of the corpus's energy"),
            [
                (
                    f"  {item.number}",
                    f"{100 * item.share:.1f}%",
                    f"{item.contribution:.4g}",
                    f"{100 * item.energy:.2g}%",
                )
                for item in found.directions
            ],
        )
