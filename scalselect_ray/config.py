"""The config of a run: typed, merged from YAML and `key=value` overrides by OmegaConf, checked before anything is
started."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from scalselect_ray.errors import ConfigError
from scalselect_ray.io import storage

Check = tuple[bool, str, object, str]  # whether it is fine, the key, its value, what is expected


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One named part of the corpus."""

    name: str = MISSING
    """Unique; part of a sample's identity."""
    paths: list[str] = MISSING
    """URIs, globs or folders."""
    image_root: str | None = None
    """Where relative image paths are joined; null: the folder of the file that names them."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What to read, and how it is cut into slices."""

    sources: list[SourceConfig] = MISSING
    slice_rows: int = 256
    """Maximum rows of a slice. Another value cuts what is not committed yet."""
    slice_bytes: int = 64 << 20
    """Maximum bytes of a slice, where the sizes of its rows are known; one row may be larger."""


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """The model, and everything that changes a feature. Another value here means features of their own."""

    model: str = MISSING
    """A folder, a folder in a bucket, or a hub id."""
    revision: str | None = None
    """Commit of a hub id."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    attention_threshold: float = 0.9
    """Share of the attention that the kept vision tokens must exceed, in (0, 1]."""
    tokens: Literal["reference", "strict"] = "reference"
    """Which tokens count: as the published implementation does, or by the paper's letter."""
    max_length: int | None = None
    """Longer samples (tokens) are rejected; null: the model's own limit."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Bounds of an image's size, for Qwen-VL models; null: as saved with the model."""
    batch_tokens: int = 8192
    """Tokens in one forward pass. Bounds memory; no part of a feature's identity."""


@dataclass(frozen=True, kw_only=True)
class SubspaceConfig:
    """The dominant subspace (paper section 3.3)."""

    energy: float = 0.9
    standardize: bool = False
    l2_normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class QuotaConfig:
    """Bounds on what one source sends: fractions of the budget in [0, 1], or counts above 1."""

    share: float | None = None
    """Exactly so much: floor and cap in one."""
    floor: float | None = None
    cap: float | None = None


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How much is chosen."""

    budget: Any = MISSING
    """A fraction of the scored samples in [0, 1], or a count when it is an integer above 1. A list of these makes the
    manifest of the largest, of which the others are the first ranks: `run.json` says how many."""
    per_source: dict[str, QuotaConfig] = field(default_factory=dict)
    """Quotas by the name of a source; sources that are not named have none."""
    text_only: Literal["drop", "keep"] = "drop"
    """What becomes of samples without an image: they cannot be scored."""
    text_only_share: float | None = None
    """With `keep`: the share of them that is kept; null: the share that the budget is of the scored samples."""


@dataclass(frozen=True, kw_only=True)
class RejectsConfig:
    """How many samples may be unusable."""

    max_fraction: float = 0.05
    """Above this share of rejected samples (text-only ones aside) the run stops with exit code 3."""


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """What a run asks of the cluster."""

    min_extractors: int = 1
    max_extractors: int | None = None
    """null: one for each GPU of the cluster as it is now, or without GPUs one for each CPU but one. An autoscaling
    cluster grows up to this number: give it there."""
    gpus_per_extractor: float | None = None
    """null: 1 where the cluster has GPUs now. Give it where GPU nodes come only when they are asked for."""
    cpus_per_extractor: int = 1
    extractor_labels: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have to run extractors, as Ray's label selectors: {ray.io/accelerator-type: A100}."""
    prepare_labels: dict[str, str] = field(default_factory=dict)
    """The same for the tasks that read and decode: {pool: cpu} keeps them off the GPU nodes."""


@dataclass(frozen=True, kw_only=True)
class ReduceConfig:
    """The tree of the merge."""

    fan_in: int = 8
    """Moments merged at a time."""
    leaf_rows: int = 16384
    """About so many rows a leaf task."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One selection."""

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    subspace: SubspaceConfig = field(default_factory=SubspaceConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    rejects: RejectsConfig = field(default_factory=RejectsConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    reduce: ReduceConfig = field(default_factory=ReduceConfig)
    output: str = MISSING


def load_config(path: str, overrides: Sequence[str] = ()) -> JobConfig:
    """The config in a YAML file, with `dotted.key=value` overrides. Raises ConfigError that names the key, the value
    and the cure."""
    try:
        text = storage.read_bytes(storage.absolute(path)).decode()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_config(text, overrides, where=path)


def parse_config(text: str, overrides: Sequence[str] = (), where: str = "config") -> JobConfig:
    """As `load_config`, from the text of a YAML file; `where` names it in errors."""
    try:
        loaded = OmegaConf.create(text)
    except (
        yaml.YAMLError,
        OmegaConfBaseException,
        ValueError,
        AssertionError,
    ) as error:  # OmegaConf asserts on a bare number
        raise ConfigError(f"{where}: not valid YAML, or no keys: {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{where}: expected keys such as corpus, extractor, selection and output")
    wrong = [override for override in overrides if not re.match(r"^[\w.\[\]]+=", override)]
    if wrong:
        raise ConfigError(f"'{wrong[0]}': an override is written dotted.key=value, such as selection.budget=0.1")
    try:
        for override in overrides:
            key, _, value = override.partition("=")
            OmegaConf.update(loaded, key, yaml.safe_load(value), force_add=True)
        merged = OmegaConf.merge(OmegaConf.structured(JobConfig), loaded)
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{where}: {_key(error)} is missing") from error
    except ConfigKeyError as error:
        raise ConfigError(f"{where}: {_unknown(error)}") from error
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {_key(error)}: {message}") from error
    assert isinstance(config, JobConfig)
    _check(config, where)
    return _absolute(config)


def check_extractor(extractor: ExtractorConfig) -> None:
    """Of one that was made in Python, where nothing has looked at its values yet. Raises ConfigError."""
    try:
        OmegaConf.to_object(OmegaConf.structured(extractor))
    except OmegaConfBaseException as error:
        raise ConfigError(f"extractor: {_key(error)}: {str(error).splitlines()[0]}") from error
    _insist(_extractor_checks(extractor), "extractor")


def to_yaml(config: JobConfig) -> str:
    """The resolved config, for the copy that is kept with a run. Secrets that a URI may carry are left out."""
    return storage.redact(OmegaConf.to_yaml(OmegaConf.structured(config)))


def _absolute(config: JobConfig) -> JobConfig:
    """Local paths made absolute, so that a kept copy means the same from any folder."""
    sources = [
        replace(
            source,
            paths=[storage.absolute(path) for path in source.paths],
            image_root=storage.absolute(source.image_root) if source.image_root else None,
        )
        for source in config.corpus.sources
    ]
    model = storage.absolute(config.extractor.model)
    return replace(
        config,
        corpus=replace(config.corpus, sources=sources),
        extractor=replace(config.extractor, model=model) if os.path.isdir(model) else config.extractor,
        output=storage.absolute(config.output),
    )


def budgets_of(selection: SelectionConfig) -> list[Any]:
    """The budgets of a selection, as given."""
    return list(selection.budget) if isinstance(selection.budget, (list, tuple)) else [selection.budget]


def quotas_of(selection: SelectionConfig) -> dict[str, tuple[float | None, float | None]]:
    """(floor, cap) by source."""
    return {
        name: (quota.floor, quota.cap) if quota.share is None else (quota.share, quota.share)
        for name, quota in selection.per_source.items()
    }


def feature_settings(extractor: ExtractorConfig) -> dict[str, Any]:
    """Everything in the config that changes a feature, but the model itself."""
    return {
        item.name: getattr(extractor, item.name)
        for item in fields(extractor)
        if item.name not in ("model", "revision", "batch_tokens")
    }


def _check(config: JobConfig, where: str) -> None:
    sources, selection = config.corpus.sources, config.selection
    names = [source.name for source in sources]
    budgets = budgets_of(selection)
    share = selection.text_only_share
    checks: list[Check] = [
        (bool(sources), "corpus.sources", [], "at least one source"),
        (all(names), "corpus.sources[].name", "", "a name"),
        (len(set(names)) == len(names), "corpus.sources[].name", names, "names that differ"),
        (all(source.paths for source in sources), "corpus.sources[].paths", [], "at least one path"),
        (config.corpus.slice_rows >= 1, "corpus.slice_rows", config.corpus.slice_rows, "1 or more"),
        (config.corpus.slice_bytes >= 1, "corpus.slice_bytes", config.corpus.slice_bytes, "1 or more"),
        (0 < config.subspace.energy <= 1, "subspace.energy", config.subspace.energy, "above 0, at most 1"),
        (
            bool(budgets) and all(map(_is_amount, budgets)),
            "selection.budget",
            selection.budget,
            "a fraction between 0 and 1, or an integer count above 1, or a list of these",
        ),
        (
            not (selection.per_source and len(budgets) > 1),
            "selection.budget",
            selection.budget,
            "one budget with selection.per_source (a smaller one is then no prefix of a larger; another run extracts "
            "nothing)",
        ),
        (share is None or 0 <= share <= 1, "selection.text_only_share", share, "between 0 and 1, or null"),
        (0 <= config.rejects.max_fraction <= 1, "rejects.max_fraction", config.rejects.max_fraction, "between 0 and 1"),
        (config.workers.min_extractors >= 1, "workers.min_extractors", config.workers.min_extractors, "1 or more"),
        (
            config.workers.max_extractors is None or config.workers.max_extractors >= config.workers.min_extractors,
            "workers.max_extractors",
            config.workers.max_extractors,
            "workers.min_extractors or more, or null",
        ),
        (
            config.workers.cpus_per_extractor >= 1,
            "workers.cpus_per_extractor",
            config.workers.cpus_per_extractor,
            "1 or more",
        ),
        (config.reduce.fan_in >= 2, "reduce.fan_in", config.reduce.fan_in, "2 or more"),
        (config.reduce.leaf_rows >= 1, "reduce.leaf_rows", config.reduce.leaf_rows, "1 or more"),
        (bool(config.output), "output", config.output, "a folder or a bucket prefix"),
    ]
    checks += _extractor_checks(config.extractor)
    for name, quota in selection.per_source.items():
        key = f"selection.per_source.{name}"
        checks.append((name in names, "selection.per_source", name, f"the name of a source ({', '.join(names)})"))
        checks.append(
            (
                quota.share is None or (quota.floor is None and quota.cap is None),
                key,
                "share with floor or cap",
                "one or the other",
            )
        )
        for bound in ("share", "floor", "cap"):
            value = getattr(quota, bound)
            checks.append(
                (
                    value is None or _is_amount(value),
                    f"{key}.{bound}",
                    value,
                    "a fraction between 0 and 1, or a count above 1",
                )
            )
        if quota.floor is not None and quota.cap is not None and (quota.floor > 1) == (quota.cap > 1):
            checks.append(
                (quota.floor <= quota.cap, f"{key}.floor", quota.floor, f"no more than the cap of {quota.cap}")
            )
    least = [quota.floor if quota.share is None else quota.share for quota in selection.per_source.values()]
    fractions = sum(value for value in least if value is not None and 0 <= value <= 1)
    checks.append(
        (
            fractions <= 1 + 1e-9,
            "selection.per_source",
            fractions,
            "shares and floors that are together at most 1, the budget",
        )
    )
    _insist(checks, where)


def _extractor_checks(extractor: ExtractorConfig) -> list[Check]:
    checks: list[Check] = [
        (bool(extractor.model), "extractor.model", extractor.model, "a folder or a hub id"),
        (
            0 < extractor.attention_threshold <= 1,
            "extractor.attention_threshold",
            extractor.attention_threshold,
            "above 0, at most 1",
        ),
        (extractor.batch_tokens >= 1, "extractor.batch_tokens", extractor.batch_tokens, "1 or more"),
    ]
    for name in ("max_length", "min_pixels", "max_pixels"):
        value = getattr(extractor, name)
        checks.append((value is None or value >= 1, f"extractor.{name}", value, "1 or more, or null"))
    return checks


def _insist(checks: Sequence[Check], where: str) -> None:
    for fine, key, value, expected in checks:
        if not fine:
            raise ConfigError(f"{where}: {key} is {value!r}; expected {expected}")


def _is_amount(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value >= 0
        and (value <= 1 or float(value).is_integer())
    )


def _key(error: BaseException) -> str:
    return str(getattr(error, "full_key", None) or "the config")


def _unknown(error: ConfigKeyError) -> str:
    full_key = _key(error)
    section, _, name = full_key.rpartition(".")
    near = difflib.get_close_matches(name, _names(JobConfig), n=1)
    return f"unknown key '{full_key}'" + (
        f"; did you mean '{section + '.' if section else ''}{near[0]}'?" if near else ""
    )


def _names(config: Any) -> set[str]:
    found: set[str] = set()
    for item in fields(config):
        found.add(item.name)
        if is_dataclass(item.type):
            found |= _names(item.type)
    return found | {item.name for item in fields(SourceConfig)}
