"""The oracle of the random driver: what a run must make of the files that are there, from one process, without Ray and
without a store, by an SVD and the rules of the selection written down once more."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import sha256
from typing import Any

import numpy as np
from random_corpus import GOLDEN, SOURCES, Corpus

from scalselect_ray.config import CorpusConfig, ExtractorConfig, SourceConfig
from scalselect_ray.corpus import Reject, Sample, SampleRejectedError, list_files, plan_here, read_slices
from scalselect_ray.vlm.representer import Representer, description_of, id_of

Key = tuple[str, str, int, str | None]  # source, shard, row, id


@dataclass(frozen=True)
class Settings:
    """What one run is asked for."""

    budget: Any = 0.3
    energy: float = 0.9
    standardize: bool = False
    l2_normalize: bool = False
    quotas: dict[str, dict[str, float]] = field(default_factory=dict)
    text_only: str = "drop"
    text_only_share: float | None = None
    tokens: str = "reference"
    slice_rows: int = 3
    leaf_rows: int = 16384
    max_rejects: float = 0.9

    @classmethod
    def drawn(cls, dice: random.Random) -> "Settings":
        quotas = {
            name: dice.choice(({"cap": 0.4}, {"floor": 0.5}, {"share": 0.25}, {"floor": 2.0, "cap": 5.0}, {"cap": 0.0}))
            for name in SOURCES
            if dice.random() < 0.3
        }
        budgets = (0.0, 0.05, 0.16, 0.3, 0.5, 1.0, 2, 5, 10**6)
        return cls(
            budget=[0.1, dice.choice(budgets), 4] if not quotas and dice.random() < 0.3 else dice.choice(budgets),
            energy=dice.choice((0.5, 0.8, 0.9, 0.97)),
            standardize=dice.random() < 0.3,
            l2_normalize=dice.random() < 0.3,
            quotas=quotas,
            text_only=dice.choice(("drop", "keep")),
            text_only_share=dice.choice((None, 0.0, 0.5, 1.0)),
            tokens="strict" if dice.random() < 0.2 else "reference",
            slice_rows=dice.choice((2, 3, 5, 100)),
            leaf_rows=dice.choice((4, 10, 16384)),
            max_rejects=dice.choice((0.9, 0.9, 0.9, 0.15)),
        )

    def overrides(self) -> list[str]:
        values = {
            "selection.budget": self.budget,
            "selection.text_only": self.text_only,
            "selection.text_only_share": self.text_only_share,
            "subspace.energy": self.energy,
            "subspace.standardize": self.standardize,
            "subspace.l2_normalize": self.l2_normalize,
            "extractor.tokens": self.tokens,
            "corpus.slice_rows": self.slice_rows,
            "reduce.leaf_rows": self.leaf_rows,
            "reduce.fan_in": 2,
            "rejects.max_fraction": self.max_rejects,
            "selection.per_source": self.quotas,
        }
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@dataclass(frozen=True)
class Expected:
    """What a run from scratch would make of the files."""

    code: int
    scored: list[Key] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    rejects: list[tuple[Key, str]] = field(default_factory=list)


class Oracle:
    """The answer to a run, without Ray and without a store: one sample after the other, kept in memory by what it is
    made of."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._representers: dict[str, Representer] = {}
        self._ids: dict[str, str] = {}
        self._outcomes: dict[tuple[str, str], np.ndarray | str] = {}

    def extractor_id(self, tokens: str) -> str:
        if tokens not in self._ids:
            self._ids[tokens] = id_of(description_of(_extractor(tokens)))
        return self._ids[tokens]

    def keys(self) -> dict[str, str]:
        """The key of each file that is there."""
        return {file.file.uri: file.key for file in list_files(self._config(("",)))} if self.corpus.files else {}

    def expected(self, settings: Settings, missing: Callable[[str, int], frozenset[str]]) -> Expected:
        """What a run makes of the corpus; `missing` tells which images were away when a row, known by the key of its
        file and its number, was read."""
        if any(not self._names(source) for source in SOURCES):
            return Expected(2)
        found = Expected(0)
        for file in list_files(self._config(SOURCES)):
            (slices,) = plan_here([(file, [])])
            assert slices is not None, "nobody changes the corpus now"
            for _, rows in (answer for slice_ in slices for answer in read_slices([slice_])):
                for sample in rows:
                    key = (file.source, file.file.uri, sample.row, sample.id)
                    outcome = self._outcome(sample, settings.tokens, missing(file.key, sample.row))
                    if isinstance(outcome, str):
                        found.rejects.append((key, outcome))
                    else:
                        found.scored.append(key)
                        found.features.append(outcome)
        rejected = sum(reason != "text_only" for _, reason in found.rejects)
        if rejected > settings.max_rejects * (len(found.scored) + len(found.rejects)):
            return replace(found, code=3)
        if not found.scored or chosen_of(settings, found.scored, np.zeros(len(found.scored))) is None:
            return replace(found, code=2)
        return found

    def _names(self, source: str) -> list[str]:
        return [name for name in self.corpus.files if name.startswith(f"{source}/")]

    def _config(self, names: tuple[str, ...]) -> CorpusConfig:
        folder = self.corpus.folder
        sources = [source for source in SOURCES if self._names(source)]
        return CorpusConfig(
            sources=[SourceConfig(name=name, paths=[str(folder / name)], image_root=str(folder)) for name in sources]
        )

    def _outcome(self, sample: Sample | Reject, tokens: str, missing: frozenset[str]) -> np.ndarray | str:
        """Its feature, (D,) float64, or the reason why it has none."""
        if isinstance(sample, Reject):
            return str(sample.reason)
        if any(image.data is None and image.name in missing for image in sample.images):
            return "image_missing"
        images = [
            replace(image, data=image.data or self.corpus.images[image.name], uri=None) for image in sample.images
        ]
        content = repr((sample.turns, [sha256(image.data or b"").hexdigest() for image in images]))
        if (tokens, content) not in self._outcomes:
            if tokens not in self._representers:
                self._representers[tokens] = Representer(_extractor(tokens))
            (answer,) = self._representers[tokens]([replace(sample, images=tuple(images))])
            if isinstance(answer, SampleRejectedError):
                self._outcomes[tokens, content] = str(answer.reason)
            else:
                self._outcomes[tokens, content] = answer.feature.astype(np.float64)
        return self._outcomes[tokens, content]


def _extractor(tokens: Any) -> ExtractorConfig:
    return ExtractorConfig(model=str(GOLDEN / "model"), dtype="float32", tokens=tokens)


def leverage_of(features_ND: np.ndarray, settings: Settings) -> np.ndarray | None:
    """The scores by an SVD, (N,); None where rounding decides how many directions are kept, or which."""
    y_ND = features_ND - features_ND.mean(axis=0)
    if settings.standardize:
        std_D = np.sqrt(np.square(y_ND).mean(axis=0))
        y_ND /= np.where(std_D > 1e-12, std_D, 1)
    if settings.l2_normalize:
        norm_N1 = np.linalg.norm(y_ND, axis=1, keepdims=True)
        y_ND /= np.where(norm_N1 > 0, norm_N1, 1)
    u_NK, s_K, _ = np.linalg.svd(y_ND, full_matrices=False)
    if s_K[0] < 1e-5:  # all rows are one
        return None if s_K[0] > 0 else np.zeros(len(y_ND))
    shares_K = np.cumsum(np.square(s_K)) / np.square(s_K).sum()
    k = int((shares_K < settings.energy).sum()) + 1
    gap = s_K[k - 1] - (s_K[k] if k < len(s_K) else 0)
    if np.abs(shares_K - settings.energy).min() < 1e-6 or gap < 1e-3 * s_K[0]:
        return None
    return np.asarray(np.square(u_NK[:, :k]).sum(axis=1))


def chosen_of(settings: Settings, keys: list[Key], scores_N: np.ndarray) -> list[int] | None:
    """Positions of the chosen, best first; None where the floors ask for more than the budget."""
    budgets = settings.budget if isinstance(settings.budget, list) else [settings.budget]
    budget = max(_amount(value, len(keys), least=1) for value in budgets)
    order: list[int] = np.argsort(-scores_N, kind="stable").tolist()
    if not settings.quotas:
        return order[:budget]
    least, most = {}, {}
    for source, count in Counter(key[0] for key in keys).items():
        quota = settings.quotas.get(source, {})
        floor, cap = quota.get("floor", quota.get("share", 0)), quota.get("cap", quota.get("share"))
        least[source] = min(_amount(floor, budget), count)
        most[source] = max(least[source], count if cap is None else min(_amount(cap, budget), count))
    if sum(least.values()) > budget:
        return None
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    for bounds in (least, most):  # first what each source must send, then the best of what it may
        room = budget if bounds is most else sum(least.values())
        for index in order:
            source = keys[index][0]
            if index not in chosen and len(chosen) < room and taken[source] < bounds[source]:
                chosen.append(index)
                taken[source] += 1
    return sorted(chosen, key=order.index)


def _amount(value: float, whole: int, least: int = 0) -> int:
    if value > 1:
        return min(int(value), whole) if least else int(value)
    return max(int(Fraction(str(value)) * whole), least if value else 0)


def text_only_kept(settings: Settings, rejects: list[tuple[Key, str]], share: float) -> list[Key]:
    """The text-only samples at the manifest's end."""
    if settings.text_only == "drop":
        return []
    share = share if settings.text_only_share is None else settings.text_only_share
    return [key for key, reason in rejects if reason == "text_only" and _draw(key) < share]


def _draw(key: Key) -> Fraction:
    source, shard, row, _ = key
    return Fraction(int(sha256(f"{source}\0{shard}\0{row}".encode()).hexdigest()[:14], 16), 1 << 56)
