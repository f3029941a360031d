"""The method from Python, for notebooks and pipelines of one's own.

`leverage_scores` needs features in memory, `represent` and `AddFeatures` a model, `run` a config. What they are made of
is imported when they are called: torch and Ray only where they are needed."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from scalselect_ray.config import ExtractorConfig, JobConfig
from scalselect_ray.config_files import check_extractor, load_config, parse_config, source_of
from scalselect_ray.io import storage

if TYPE_CHECKING:
    from scalselect_ray.corpus import Reject, Sample
    from scalselect_ray.vlm.representer import Outcome

_BLOCK_ROWS = 4096  # of a copy in float64

Record = Mapping[str, Any] | Sequence[Any]
Batch: TypeAlias = "dict[str, Any] | pa.Table"


def leverage_scores(
    features_ND: np.ndarray, *, energy: float = 0.9, standardize: bool = False, l2_normalize: bool = False
) -> np.ndarray:
    """The leverage score of each row of `features_ND` (N, D): (N,) float64, the higher the better. They sum to k, the
    dimension kept.

    The budget is left to the caller, for it needs no more than an order: the best rows are the first of `argsort`. O(N
    D^2 + D^3); beside the features only a few D x D matrices and a block of rows are in memory.

    >>> import numpy as np, scalselect_ray
    >>> features = np.random.default_rng(0).normal(size=(1000, 32)) * np.linspace(3, 0.1, 32)
    >>> scores = scalselect_ray.leverage_scores(features)
    >>> scores.shape, scores.dtype.name, float(scores.sum().round(6))
    ((1000,), 'float64', 18.0)
    >>> best = np.argsort(-scores, kind="stable")[:160]  # 16% of the rows, best first; ties as they stand
    >>> bool(scores[best].min() >= np.delete(scores, best).max())
    True

    Raises ValueError when there is no row, a row is not finite, or `energy` is not in (0, 1].
    """
    from scalselect_ray.subspace import accumulate, dominant_subspace, fit_transform
    from scalselect_ray.subspace.leverage import leverage

    features_ND = np.asarray(features_ND)
    if features_ND.ndim != 2 or not features_ND.size or not np.issubdtype(features_ND.dtype, np.number):
        raise ValueError(
            f"features must be numbers of shape (N, D), at least one row: found {features_ND.dtype} {features_ND.shape}"
        )
    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy!r}; expected above 0, at most 1")
    blocks = [features_ND[start : start + _BLOCK_ROWS] for start in range(0, len(features_ND), _BLOCK_ROWS)]
    for index, block in enumerate(blocks):
        wrong = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"features: row {index * _BLOCK_ROWS + wrong[0]} holds a NaN or an infinity; leave such rows out"
            )
    dim = features_ND.shape[1]
    moments = accumulate(blocks, dim)
    transform = fit_transform(moments, standardize=standardize, l2_normalize=l2_normalize)
    gram_DD = accumulate(map(transform, blocks), dim).gram_DD if l2_normalize else None
    subspace = dominant_subspace(moments, transform, gram_DD, energy)
    return np.concatenate([leverage(block, subspace) for block in blocks])


def represent(
    model: str | os.PathLike[str] | ExtractorConfig,
    samples: Iterable[Record],
    *,
    image_root: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """The representations of samples: (N, D) float32, D the model's hidden size, in the order of `samples`.

    `model` is what `extractor.model` of a config is (a checkpoint folder, a folder in a bucket, a hub id), or an
    `ExtractorConfig` where more than the model is to be said. It is no model in memory: only the front of the
    checkpoint is read and built, about 1 GB of the 15 GB of a 7B model. `samples` are rows of any layout that a corpus
    may have; their images are PIL images, bytes, data URIs, or paths below `image_root`.

    >>> from PIL import Image
    >>> import scalselect_ray
    >>> from scalselect_ray.commands.demo import make_demo
    >>> config = make_demo("demo")  # a corpus, and a small model with random weights
    >>> turns = [{"from": "human", "value": "<image> What is it?"}, {"from": "gpt", "value": "A circle."}]
    >>> samples = [
    ...     {"image": Image.new("RGB", (80, 60), "red"), "conversations": turns},
    ...     {"image": "images/0000.png", "conversations": turns},
    ... ]
    >>> features = scalselect_ray.represent("demo/model", samples, image_root="demo/corpus")
    >>> features.shape, features.dtype.name
    ((2, 64), 'float32')

    Raises ValueError with the index of the first sample that cannot be used, and why: an array has no room for reasons.
    `AddFeatures` has."""
    records = list(samples)
    worker = AddFeatures(model, image_root)
    features_ND = np.empty((len(records), worker.dim), dtype=np.float32)
    for index, outcome in enumerate(worker.outcomes(records)):
        if isinstance(outcome, Exception):
            raise ValueError(f"samples[{index}] cannot be used: {outcome.reason}: {outcome.message}") from outcome
        features_ND[index] = outcome.feature
    return features_ND


class AddFeatures:
    """For `map_batches` of Ray Data: adds the columns `feature` and `reject` to rows of any layout that a corpus may
    have.

    `feature` is the representation (D,) float32, `reject` null, or the reason why a row has none (the codes of
    `rejects.parquet`). Such a row's feature is NaN in a batch of NumPy arrays (Ray Data's default), and null in a batch
    of `batch_format="pyarrow"`. `model` and `image_root` are those of `represent`; on a machine of several, they must
    lead to the same place from each. The model is loaded once an actor, onto the GPU that it is given (`num_gpus=1`).

    >>> from pathlib import Path
    >>> import ray, scalselect_ray
    >>> from scalselect_ray.commands.demo import make_demo
    >>> demo = Path("demo").resolve()  # tasks have another working directory
    >>> config = make_demo(str(demo))
    >>> dataset = ray.data.read_json(str(demo / "corpus" / "shapes.json")).limit(20)
    >>> paths = (str(demo / "model"), str(demo / "corpus"))
    >>> added = dataset.map_batches(scalselect_ray.AddFeatures, fn_constructor_args=paths, batch_size=10, concurrency=1)
    >>> rows = added.take_all()
    >>> len(rows), rows[0]["feature"].shape, {row["reject"] for row in rows}
    (20, (64,), {None})
    """

    def __init__(
        self, model: str | os.PathLike[str] | ExtractorConfig, image_root: str | os.PathLike[str] | None = None
    ) -> None:
        from scalselect_ray.corpus import resolver
        from scalselect_ray.vlm.representer import Representer

        extractor = model if isinstance(model, ExtractorConfig) else ExtractorConfig(model=os.fspath(model))
        check_extractor(extractor)
        self._represent = Representer(extractor)
        self._resolve = resolver(None if image_root is None else storage.absolute(os.fspath(image_root)))

    @property
    def dim(self) -> int:
        """D, the length of a feature."""
        return self._represent.dim

    def outcomes(self, records: Sequence[Record]) -> "list[Outcome]":
        """One answer a record, in order: its representation, or why it has none."""
        return self._represent([self._sample(index, record) for index, record in enumerate(records)])

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its two more columns."""
        if isinstance(batch, pa.Table):
            rows = batch.to_pylist()
        else:
            columns = {name: _plain(column) for name, column in batch.items()}
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        outcomes = self.outcomes(rows)
        rejects = [str(outcome.reason) if isinstance(outcome, Exception) else None for outcome in outcomes]
        features_ND = np.full((len(rows), self.dim), np.nan, dtype=np.float32)
        for index, outcome in enumerate(outcomes):
            if not isinstance(outcome, Exception):
                features_ND[index] = outcome.feature
        if not isinstance(batch, pa.Table):
            return {**batch, "feature": features_ND, "reject": np.array(rejects, dtype=object)}
        missing = pa.array([reject is not None for reject in rejects], pa.bool_())
        feature = pa.FixedSizeListArray.from_arrays(pa.array(features_ND.reshape(-1)), self.dim, mask=missing)
        return batch.append_column("feature", feature).append_column("reject", pa.array(rejects, pa.string()))

    def _sample(self, index: int, record: Record) -> "Sample | Reject":
        from scalselect_ray.corpus import Reject, SampleRejectedError, normalise

        try:
            return normalise(index, record, self._resolve)
        except SampleRejectedError as error:
            return Reject(index, None, error.reason, error.message)


def run(
    config: str | os.PathLike[str] | Mapping[str, Any] | JobConfig, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The whole job, as `scalselect run`; returns what `run.json` holds. Progress goes to stderr.

    `config` is a YAML file (a path, or any fsspec URI), its content as a dict, or a `JobConfig`; `overrides` are
    written `dotted.key=value`. A Ray that is up is used (a cluster by RAY_ADDRESS, too); else one is started here and
    ended again.

    >>> import scalselect_ray
    >>> from scalselect_ray.commands.demo import make_demo
    >>> config = make_demo("demo")
    >>> record = scalselect_ray.run(config, ["selection.budget=20"])
    >>> record["scored"], record["chosen"], record["rejected"]
    (200, 20, {})

    Raises ScalSelectError (see `scalselect_ray.errors`), with a message for people.
    """
    if isinstance(config, JobConfig):
        checked = parse_config(source_of(config), overrides)
    elif isinstance(config, Mapping):
        checked = parse_config(json.dumps(config, default=os.fspath), overrides)  # JSON is YAML
    else:
        checked = load_config(os.fspath(config), overrides)
    from scalselect_ray.commands.run import run as run_job
    from scalselect_ray.console import Console

    return run_job(checked, Console()).to_json()


def _plain(value: Any) -> Any:
    """What stands in NumPy containers, in Python's own."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
