"""The keys of a config. `config_files` reads one and writes it.

Each key stands in one place with its text, default, range and unit: `scalselect config`, the JSON schema, the checks
and their messages are made from there. Rules between keys are the `rules` of the class that has the keys."""

import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal

from omegaconf import MISSING

from scalselect_ray.filters import EXAMPLE, FilterError, parse_filter

_MOST = 10**12  # of anything that is counted

Rule = tuple[bool, str, object, str]  # whether it is kept, the key, its value, what is expected


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a key may have: in words, as a test, and as keywords of JSON schema."""

    text: str
    holds: Callable[[Any], object]  # something true
    schema: Mapping[str, Any]


def _integer(low: int) -> Range:
    return Range(
        text=f"an integer from {low} to 10^12",
        holds=lambda value: low <= value <= _MOST,
        schema={"type": "integer", "minimum": low, "maximum": _MOST},
    )


def _number(low: float, high: float, above: bool = False) -> Range:
    """From `low` to `high`; with `above` not `low` itself."""
    return Range(
        text=f"a number above {low:g}, at most {high:g}" if above else f"a number from {low:g} to {high:g}",
        holds=lambda value: (low < value if above else low <= value) and value <= high,
        schema={"type": "number", "exclusiveMinimum" if above else "minimum": low, "maximum": high},
    )


def _filled(thing: str) -> Range:
    return Range(text=thing, holds=bool, schema={"minLength": 1})


def _at_least_one(thing: str) -> Range:
    """In a list, of which none is empty."""
    return Range(text=thing, holds=lambda value: bool(value) and all(value), schema={"minItems": 1})


def _is_amount(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (0 <= value <= 1 or (1 < value <= _MOST and value == math.floor(value)))
    )


_AMOUNT = Range(
    text="a fraction from 0 to 1, or a count from 2 to 10^12",
    holds=_is_amount,
    schema={
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "integer", "minimum": 2, "maximum": _MOST},
        ]
    },
)
_AMOUNTS = Range(
    text=f"{_AMOUNT.text}, or a list of these",
    holds=lambda value: (bool(value) and all(map(_is_amount, value))) if isinstance(value, list) else _is_amount(value),
    schema={"anyOf": [*_AMOUNT.schema["anyOf"], {"type": "array", "items": _AMOUNT.schema, "minItems": 1}]},
)
_GPUS = Range(  # what Ray can give to an actor
    text="0, a share from 0.0001 to 1, or a whole number up to 1000",
    holds=lambda value: value == 0 or 0.0001 <= value <= 1 or (1 < value <= 1000 and value == math.floor(value)),
    schema={
        "anyOf": [
            {"const": 0},
            {"type": "number", "minimum": 0.0001, "maximum": 1},
            {"type": "integer", "minimum": 2, "maximum": 1000},
        ]
    },
)


_LAYER = Range(
    text="an integer from 0 to 10^12, or first_attention",
    holds=lambda value: (
        value == "first_attention" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST)
    ),
    schema={"anyOf": [{"type": "integer", "minimum": 0, "maximum": _MOST}, {"const": "first_attention"}]},
)

COLUMNS = (
    "id",
    "messages",
    "prompt",
    "query",
    "response",
    "history",
    "caption",
    "system",
    "images",
    "role_tag",
    "content_tag",
    "user_tag",
    "assistant_tag",
    "system_tag",
)
"""What `corpus.sources[].columns` may map."""
_MAPPED = Range(
    text=f"names of the corpus for any of {', '.join(COLUMNS)}",
    holds=lambda value: all(name in COLUMNS and own for name, own in value.items()),
    schema={"propertyNames": {"enum": list(COLUMNS)}, "additionalProperties": {"type": "string", "minLength": 1}},
)


def setting(text: str, default: Any = MISSING, range: Range | None = None, unit: str = "") -> Any:
    """A key of the config: what it means, its default (it must be given where there is none), its range and unit."""
    metadata = {"text": text, "range": range, "unit": unit}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One named part of the corpus."""

    name: str = setting("Part of a sample's identity, and differs from all others.", range=_filled("a name"))
    paths: list[str] = setting(
        "Files, folders and patterns (*, **, [ab], {a,b}, {000..099}); any fsspec URI.",
        range=_at_least_one("a list with at least one path"),
    )
    image_root: str | None = setting(
        "Where relative image paths are joined; null: the folder of the file that names them.", None
    )
    columns: dict[str, str] = setting(
        "The corpus's own names, where its rows have others, in the words of LLaMA-Factory's dataset_info.json: "
        "{messages: dialog, role_tag: speaker, content_tag: text, images: pictures}. Another mapping means features of "
        "their own.",
        {},
        _MAPPED,
    )
    limit: int | None = setting(
        "At most so many rows, for trials: the first, in the order of the files' URIs. What is extracted of them "
        "serves "
        "runs with another limit, or none. Null: all.",
        None,
        _integer(1),
        "rows",
    )
    filter: str | None = setting(
        "Only rows of which it is true, such as \"score > 0.5 and lang in ('en', 'de')\": columns of the rows as "
        "they "
        "stand in their files, compared with constants (==, !=, <, <=, >, >=, in, is null, and, or, not). The others "
        "are neither scored nor rejects; a limit counts them. Another filter means features of their own. Null: all.",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What to read, and how it is cut into slices."""

    sources: list[SourceConfig] = setting(
        "The named parts of the corpus; or the path of a list of them: LLaMA-Factory's dataset_info.json, InternVL's "
        "meta JSON.",
        range=_at_least_one("a list with at least one source"),
    )
    slice_rows: int = setting(
        "Maximum rows of a slice. Another value cuts what is not committed yet.", 256, _integer(1), "rows"
    )
    slice_bytes: int = setting(
        "Maximum bytes of a slice, where the sizes of its rows are known; one row may be larger.",
        64 << 20,
        _integer(1),
        "bytes",
    )

    image_links: list[str] = setting(
        "Folders of this machine where links inside an image root may lead; a link that leads elsewhere is not "
        "followed. A row's own path never leaves the image root.",
        [],
    )

    def rules(self) -> Iterator[Rule]:
        names = [source.name for source in self.sources]
        yield len(set(names)) == len(names), "corpus.sources[].name", names, "names that differ"
        for index, source in enumerate(self.sources):
            if source.filter is not None:
                yield _is_filter(source.filter, f"corpus.sources.{index}.filter")


def _is_filter(text: str, key: str) -> Rule:
    try:
        parse_filter(text)
    except FilterError as error:
        return False, key, text, f"a filter such as {EXAMPLE} ({error})"
    return True, key, text, ""


def is_hub_id(model: str) -> bool:
    """Whether a model that is no folder is named as the hub names it, owner/name: `./x`, `../x` and `~/x` are paths."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is not None


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """The model, and everything that changes a feature. Another value here means features of their own."""

    model: str = setting("A folder, a folder in a bucket, or a hub id.", range=_filled("a folder or a hub id"))
    revision: str | None = setting("Commit, branch or tag of a hub id; null: its main branch.", None)
    dtype: Literal["bfloat16", "float16", "float32"] = setting("What the model computes in.", "bfloat16")
    attention_threshold: float = setting(
        "Share of the attention that the kept vision tokens must exceed.", 0.9, _number(0, 1, above=True)
    )
    tokens: Literal["reference", "strict"] = setting(
        "Which tokens count: as the published implementation does, or by the paper's letter.", "reference"
    )
    images: Literal["in_place", "first"] = setting(
        "Where images stand in the conversation: where the row has them, or all before the first user text.", "in_place"
    )
    preset: Literal["published"] | None = setting(
        "published: as the code published with the paper prepares a sample, where that runs right: images first, "
        "samples cut at 4,096 tokens (max_length) rather than rejected, images of Qwen-VL models from 262,144 to "
        "589,824 pixels. What is set beside it holds.",
        None,
    )
    layer: Any = setting(
        "The decoder layer that is read, from 0: the paper reads 0, another one is an extension whose cost grows with "
        "it. first_attention: the first layer that is softmax attention, for models whose layer 0 is none.",
        0,
        _LAYER,
    )
    max_length: int | None = setting(
        "Longer samples are rejected; null: the model's own limit.", None, _integer(1), "tokens"
    )
    min_pixels: int | None = setting(
        "Smaller images are scaled up to this size by Qwen-VL models; null: as saved with the model.",
        None,
        _integer(1),
        "pixels",
    )
    max_pixels: int | None = setting(
        "Larger images are scaled down to this size by Qwen-VL models; null: as saved with the model.",
        None,
        _integer(1),
        "pixels",
    )
    batch_tokens: int = setting(
        "Tokens in one forward pass. Bounds memory; no part of a feature's identity.", 8192, _integer(1), "tokens"
    )

    def feature_settings(self) -> dict[str, Any]:
        """Everything here that changes a feature, but the model itself and its layer."""
        later = {  # newer than features that people have: not named where they have their default
            item.name
            for item in fields(self)
            if item.name in ("images", "preset") and getattr(self, item.name) == item.default
        }
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in {"model", "revision", "batch_tokens", "layer"} | later
        }

    def rules(self) -> Iterator[Rule]:
        if self.min_pixels is not None and self.max_pixels is not None:
            fine = self.min_pixels <= self.max_pixels
            yield fine, "extractor.min_pixels", self.min_pixels, f"no more than max_pixels, {self.max_pixels}"


@dataclass(frozen=True, kw_only=True)
class SubspaceConfig:
    """The dominant subspace (paper section 3.3)."""

    energy: float = setting("Share of the energy that the kept directions must reach.", 0.9, _number(0, 1, above=True))
    standardize: bool = setting("Bring each coordinate of the features to mean 0 and deviation 1 first.", False)
    l2_normalize: bool = setting("Bring each feature to length 1 first.", False)


@dataclass(frozen=True, kw_only=True)
class QuotaConfig:
    """Bounds on what one source sends: fractions of the budget, or counts."""

    share: float | None = setting("Exactly so much: floor and cap in one.", None, _AMOUNT)
    floor: float | None = setting("At least so much, as far as the source has it.", None, _AMOUNT)
    cap: float | None = setting("At most so much.", None, _AMOUNT)

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """(floor, cap)."""
        return (self.floor, self.cap) if self.share is None else (self.share, self.share)

    def rules(self, key: str) -> Iterator[Rule]:
        both = self.share is not None and (self.floor is not None or self.cap is not None)
        yield not both, key, "share with floor or cap", "one or the other"
        if self.floor is not None and self.cap is not None and (self.floor > 1) == (self.cap > 1):
            yield self.floor <= self.cap, f"{key}.floor", self.floor, f"no more than the cap of {self.cap}"


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How much is chosen."""

    budget: float | int | list[float | int] = setting(
        "A fraction of the scored samples, or a count. A list of these makes the manifest of the largest, of which the "
        "others are the first ranks: `run.json` says how many.",
        range=_AMOUNTS,
    )
    per_source: dict[str, QuotaConfig] = setting(
        "Quotas by the name of a source; sources that are not named have none.", {}
    )
    text_only: Literal["drop", "keep"] = setting(
        "What becomes of samples without an image: they cannot be scored.", "drop"
    )
    text_only_share: float | None = setting(
        "With `keep`: the share of them that is kept; null: the share that the budget is of the scored samples.",
        None,
        _number(0, 1),
    )

    @property
    def budgets(self) -> list[float | int]:
        """The budgets, as given."""
        return list(self.budget) if isinstance(self.budget, list) else [self.budget]

    @property
    def quotas(self) -> dict[str, tuple[float | None, float | None]]:
        """(floor, cap) by source."""
        return {name: quota.bounds for name, quota in self.per_source.items()}

    def rules(self) -> Iterator[Rule]:
        yield (
            not (self.per_source and len(self.budgets) > 1),
            "selection.budget",
            self.budget,
            "one budget with selection.per_source (a smaller one is then no prefix of a larger; another run extracts "
            "nothing)",
        )
        for name, quota in self.per_source.items():
            yield from quota.rules(f"selection.per_source.{name}")
        floors = sum(floor for floor, _ in self.quotas.values() if floor is not None and floor <= 1)
        expected = "shares and floors that are together at most 1, the budget"
        yield floors <= 1 + 1e-9, "selection.per_source", floors, expected


@dataclass(frozen=True, kw_only=True)
class RejectsConfig:
    """How many samples may be unusable."""

    max_fraction: float = setting(
        "Above this share of rejected samples (text-only ones aside; of a file that cannot be read all its rows, by "
        "its "
        "size) the run stops with exit code 3.",
        0.05,
        _number(0, 1),
    )


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """What a run asks of the cluster."""

    min_extractors: int = setting("So many extractors at least.", 1, _integer(1))
    max_extractors: int | None = setting(
        "So many extractors at most; null: one for each GPU of the cluster as it is now, or without GPUs one for each "
        "CPU but one. An autoscaling cluster grows up to this number: give it there.",
        None,
        _integer(1),
    )
    gpus_per_extractor: float | None = setting(
        "GPUs, or the share of one, that each extractor takes; null: 1 where the cluster has GPUs now. Give it where "
        "GPU nodes come only when they are asked for.",
        None,
        _GPUS,
    )
    cpus_per_extractor: int = setting("CPUs that each extractor takes.", 1, _integer(1))
    extractor_labels: dict[str, str] = setting(
        "Labels that a node must have to run extractors, as Ray's label selectors: {ray.io/accelerator-type: A100}.", {}
    )
    prepare_labels: dict[str, str] = setting(
        "The same for the tasks that read and decode: {pool: cpu} keeps them off the GPU nodes.", {}
    )

    def rules(self) -> Iterator[Rule]:
        if self.max_extractors is not None:
            fine = self.max_extractors >= self.min_extractors
            expected = f"min_extractors, {self.min_extractors}, or more, or null"
            yield fine, "workers.max_extractors", self.max_extractors, expected


@dataclass(frozen=True, kw_only=True)
class ReduceConfig:
    """The tree of the merge."""

    fan_in: int = setting("Moments merged at a time.", 8, _integer(2))
    leaf_rows: int = setting("About so many rows a leaf task.", 16384, _integer(1), "rows")


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
    output: str = setting("Where everything is written.", range=_filled("a folder, or a prefix in a bucket"))
    written: str = field(default="", compare=False, repr=False, metadata={"omegaconf_ignore": True})
    """The YAML that it was made of, all keys in it and interpolations as they were written; no key of its own."""

    def rules(self) -> Iterator[Rule]:
        names = [source.name for source in self.corpus.sources]
        for name in self.selection.per_source:
            yield name in names, "selection.per_source", name, f"the name of a source ({', '.join(names)})"
        for section in (self.corpus, self.extractor, self.selection, self.workers):
            yield from section.rules()


@dataclass(frozen=True)
class Key:
    """One key as it is documented; `name` has `[]` for any item of a list and `NAME` for any name."""

    name: str
    item: "Field[Any]"

    @property
    def text(self) -> str:
        return str(self.item.metadata["text"])

    @property
    def expected(self) -> str:
        """Its range in words, with the unit and null."""
        unit = self.item.metadata["unit"]
        known: Range | None = self.item.metadata["range"]
        words = known.text if known else _type_text(self.item.type)
        return words + (f" ({unit})" if unit else "") + (", or null" if _is_optional(self.item.type) else "")

    @property
    def required(self) -> bool:
        return bool(self.item.default == MISSING)

    @property
    def default(self) -> Any:
        if self.item.default_factory is not NO_DEFAULT:
            return self.item.default_factory()
        return self.item.default


def keys(section: Any = JobConfig, name: str = "") -> Iterator[Key]:
    """All keys of a section, in order, with those inside of it after each."""
    for item in fields(section):
        full = f"{name}.{item.name}" if name else item.name
        if "text" in item.metadata:
            yield Key(full, item)
        inner, suffix = _inside(item.type)
        if is_dataclass(inner):
            yield from keys(inner, full + suffix)


def _inside(kind: Any) -> tuple[Any, str]:
    """(what a list or dict holds, how a key names one of its items); a type that is neither, and nothing."""
    origin = typing.get_origin(kind)
    return (typing.get_args(kind)[-1], "[]" if origin is list else ".NAME") if origin in (list, dict) else (kind, "")


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (UnionType, typing.Union) and NoneType in typing.get_args(kind)


def _type_text(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    if typing.get_origin(kind) is dict:
        values = (
            "keys: " + ", ".join(item.name for item in fields(inner))
            if is_dataclass(inner := _inside(kind)[0])
            else "text"
        )
        return f"names with {values}"
    return "true or false" if kind is bool else "text"


def in_range(section: Any, name: str = "") -> Iterator[Rule]:
    """A rule for each value of a section that has a range, and for those inside of it."""
    for item in fields(section):
        key, value = f"{name}.{item.name}" if name else item.name, getattr(section, item.name)
        known: Range | None = item.metadata.get("range")
        if known and not (value is None and _is_optional(item.type)):
            yield bool(known.holds(value)), key, value, Key(key, item).expected
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for suffix, inner in [("", value), *((f".{index}", inner) for index, inner in inside)]:
            if is_dataclass(inner):
                yield from in_range(inner, key + suffix)
