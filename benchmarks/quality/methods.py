"""The ways to choose a subset, and what is said of one beside the accuracy it gives."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from corpus import Row
from PIL import Image
from sklearn.cluster import KMeans

import scalselect_ray
from scalselect_ray.subspace import Transform, dominant_subspace, of_rows
from scalselect_ray.vlm.representer import Representation

METHODS = ("ScalSelect", "all tokens", "random", "longest", "k-means")
_CLUSTERS = 40
_ENERGY = 0.9


def represent(
    model: Path, rows: Sequence[Row], pictures: Sequence[Image.Image], threshold: float
) -> tuple[np.ndarray, float]:
    """Features of rows (N, D) by the project's own extractor, and the mean share of vision tokens in them.

    With a threshold of 1 every vision token counts, whatever was asked: features that do not know the instruction.
    """
    settings = scalselect_ray.ExtractorConfig(model=str(model), dtype="float32", attention_threshold=threshold)
    samples = [
        {
            "image": picture,
            "conversations": [
                {"from": "human", "value": f"<image>\n{row.question}"},
                {"from": "gpt", "value": row.answer},
            ],
        }
        for row, picture in zip(rows, pictures, strict=True)
    ]
    outcomes = scalselect_ray.AddFeatures(settings).outcomes(samples)
    found = [outcome for outcome in outcomes if isinstance(outcome, Representation)]
    assert len(found) == len(rows), next(outcome for outcome in outcomes if not isinstance(outcome, Representation))
    share = float(np.mean([outcome.num_attended_tokens / outcome.num_vision_tokens for outcome in found]))
    return np.stack([outcome.feature for outcome in found]), share


def choose(
    method: str, count: int, seed: int, rows: Sequence[Row], features_ND: np.ndarray, agnostic_ND: np.ndarray
) -> np.ndarray:
    """Places of the `count` rows that a method chooses. `seed` matters to random and k-means alone."""
    if method == "random":
        return np.array(random.Random(seed).sample(range(len(rows)), count))
    if method == "k-means":
        return _by_clusters(features_ND, count, seed)
    if method == "longest":
        worth_N = np.array([len(row.question.split()) + len(row.answer.split()) for row in rows], dtype=np.float64)
    else:
        worth_N = scalselect_ray.leverage_scores(features_ND if method == "ScalSelect" else agnostic_ND, energy=_ENERGY)
    return np.argsort(-worth_N, kind="stable")[:count]


def _by_clusters(features_ND: np.ndarray, count: int, seed: int) -> np.ndarray:
    """An equal share of each cluster, the rows nearest to its centre first; what a small cluster lacks the others give
    in turn."""
    clusters = KMeans(min(_CLUSTERS, count), n_init=1, random_state=seed).fit(features_ND)
    distance_N = np.linalg.norm(features_ND - clusters.cluster_centers_[clusters.labels_], axis=1)
    turn_N = np.empty(len(features_ND))
    for cluster in range(clusters.n_clusters):
        members = np.flatnonzero(clusters.labels_ == cluster)
        turn_N[members[np.argsort(distance_N[members], kind="stable")]] = np.arange(len(members))
    return np.lexsort((distance_N, turn_N))[:count]


def captured(features_ND: np.ndarray, places: np.ndarray) -> float:
    """Share of the corpus' energy (squared norm about its mean) inside the k principal directions of the subset's rows
    alone.

    k is the corpus' own, the fewest directions that hold 90% of its energy; so about 0.9 is the most that a subset can
    reach."""
    whole = of_rows(features_ND)
    transform = Transform(whole.mean_D)
    k = dominant_subspace(whole, transform, None, _ENERGY).k
    chosen_ND = transform(features_ND[places])
    _, _, basis_KD = np.linalg.svd(chosen_ND, full_matrices=False)
    centred_ND = transform(features_ND)
    return float(np.square(centred_ND @ basis_KD[:k].T).sum() / np.square(centred_ND).sum())


def described(features_ND: np.ndarray, rows: Sequence[Row], places: np.ndarray) -> dict[str, float]:
    """Energy captured, near-duplicates kept, and what became of the big and of the rare sources."""
    chosen = [rows[place] for place in places]
    groups = Counter(row.group for row in chosen)
    sources = Counter(row.source for row in chosen)
    return {
        "energy": captured(features_ND, places),
        "near_duplicates": sum(groups[row.group] > 1 for row in chosen) / len(chosen),
        "groups": len(groups),
        **{f"share_{name}": sources[name] / len(chosen) for name in sorted({row.source for row in rows})},
    }
