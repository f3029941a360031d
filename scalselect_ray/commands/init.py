"""A config from a look at a corpus: the first rows of its first files."""

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.config_files import parse_config
from scalselect_ray.console import Console, counted
from scalselect_ray.corpus import (
    Broken,
    CorpusFile,
    ImageRef,
    Reason,
    SampleRejectedError,
    list_corpus,
    normalise,
    resolver,
)
from scalselect_ray.corpus.formats import FORMATS, Cutting, Format, UnreadableFileError, format_of
from scalselect_ray.corpus.planning import passed_over_text
from scalselect_ray.errors import ConfigError, CorpusError, ModelError, NoAnswerError
from scalselect_ray.io import storage

_ROWS, _BYTES = 64, 1 << 24  # of one file that are looked at
_FILES = 3  # of one path
_IMAGES = 8  # paths that are tried below each image root
_PARENTS = 3  # folders above a file that may be its image root
_LAYOUTS = ("messages", "conversations", "texts", "conversation", "caption")


@dataclass
class Seen:
    """What a look at one path of the corpus shows."""

    name: str
    path: str
    files: int
    bytes: int
    rows: int | None  # a guess; None: nothing to guess by
    formats: list[str] = field(default_factory=list)
    layouts: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)  # images by how they are given
    rejects: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)  # what lies there and is not read
    usable: int = 0  # of the rows that were looked at
    example: str = ""  # what was wrong with the first reject
    fields: list[str] = field(default_factory=list)  # of the first row
    image_root: str | None = None  # where paths lead to images
    tried: list[str] = field(default_factory=list)  # image roots that were tried
    found: tuple[int, int] = (0, 0)  # images that are there below the root, of those that were looked for

    @property
    def looked_at(self) -> int:
        return self.usable + sum(self.rejects.values())


def init(paths: Sequence[str], model: str | None, out: str, console: Console) -> dict[str, Any]:
    """Writes a config for the corpus at `paths`, with what was seen of it in comments; returns what was seen."""
    uri = storage.absolute(out)
    if storage.exists(uri):
        raise ConfigError(f"{out} already exists and was left as it is; choose another name with --out")
    model = _known_model(model)
    seen: list[Seen] = []
    for path in paths:
        seen.append(_look(path, _name(path, {other.name for other in seen})))
    text = _yaml(seen, model, storage.join(uri.rpartition("/")[0], "selection"))
    parse_config(text, [] if model else ["extractor.model=owner/name"], where=out)  # what is written is sound
    storage.write(uri, text.encode())
    for item in seen:
        console.note(f"{item.name}: {_summary(item)}")
        for warning in _warnings(item):
            console.warn(f"{item.name}: {warning}")
    console.note(f"wrote {out}")
    console.note(
        f"next: {'' if model else 'put your model there, then '}'scalselect plan {out}' says what a run would read "
        "and do"
    )
    return {"config": uri, "sources": [_plain(item) for item in seen]}


def _plain(item: Seen) -> dict[str, Any]:
    found = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(item).items()}
    return {
        **found,
        "path": item.path,
        "image_root": item.image_root,
    }


def _known_model(model: str | None) -> str | None:
    """The model as a config names it. Raises ModelError when it can be no model."""
    if model is None or not storage.is_local(model):
        return model
    if not os.path.isdir(model):
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            return model
        raise ModelError(f"--model {model}: no such folder (nor is it a hub id of the form owner/name)")
    if not os.path.isfile(os.path.join(model, "config.json")):
        raise ModelError(
            f"--model {model}: no config.json in this folder; expected a folder written by save_pretrained"
        )
    return storage.absolute(model)


def _name(path: str, taken: set[str]) -> str:
    """A name for a source: the file's or the folder's."""
    parts = [part for part in re.sub(r"^\w+://", "", path).split("/") if part not in ("", ".", "..")]
    plain = [part for part in parts if not re.search(r"[*?\[{]", part)]
    stem = plain[-1] if plain else "corpus"
    for suffix in sorted({suffix for known in FORMATS for suffix in known.suffixes}, key=len, reverse=True):
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    stem = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "corpus"
    return next(
        name
        for number in range(1, len(taken) + 2)
        if (name := stem if number == 1 else f"{stem}-{number}") not in taken
    )


def _look(path: str, name: str) -> Seen:
    """Raises CorpusError when nothing of it can be read."""
    source = SourceConfig(name=name, paths=[path])
    corpus = list_corpus(CorpusConfig(sources=[source], slice_rows=_ROWS, slice_bytes=_BYTES))
    files = corpus.files
    seen = Seen(name, storage.absolute(path), len(files), sum(file.file.size for file in files), None)
    seen.passed_over = corpus.passed_over.get(name, Counter())
    rows_by_byte: list[tuple[int, int]] = []
    references: list[tuple[str, str]] = []  # (folder of the file, path of an image)
    for file in files[:_FILES]:
        try:
            form = format_of(file.file)
            records, counted = _first_rows(form, file)
        except NoAnswerError:
            raise
        except (UnreadableFileError, OSError) as error:
            raise CorpusError(f"{file.file.uri} cannot be read: {error}") from error
        seen.formats += [] if form.title in seen.formats else [form.title]
        rows_by_byte.append(counted)
        for record in records:
            references += [(file.image_root, reference) for reference in _look_at(record, seen)]
    if not seen.looked_at:
        raise CorpusError(f"{path}: its first files hold no rows")
    if not seen.usable and not seen.rejects[Reason.TEXT_ONLY]:
        fields = f"; fields of the first row: {', '.join(seen.fields)}" if seen.fields else ""
        raise CorpusError(
            f"{path}: none of the first {seen.looked_at} rows is a sample; the first: {seen.example}{fields}. "
            f"A row has one of {', '.join(_LAYOUTS)}, and image or images"
        )
    rows, size = (sum(numbers) for numbers in zip(*rows_by_byte, strict=True))
    seen.rows = round(rows * seen.bytes / size) if size else None
    if references:
        _find_root(seen, references)
    return seen


def _first_rows(form: Format, file: CorpusFile) -> tuple[list[object], tuple[int, int]]:
    """The first rows of a file, and (rows, the bytes of the file that they take): (0, 0) in a stream, where nobody
    knows."""
    ranges = form.scan(file.file, Cutting(_ROWS, _BYTES))
    first = next(ranges, None)
    if first is None:
        return [], (0, file.file.size)
    records = next(records for _, records in form.read(file.file, [first]))
    if form.indexed:  # all rows are known; the bytes of a range may be those before compression
        return records, (max((range_.stop_row for range_ in ranges), default=first.stop_row), file.file.size)
    return records, (first.stop_row, first.stop_byte - first.start_byte)


def _look_at(record: object, seen: Seen) -> Iterator[str]:
    """Counts what one row is; returns the paths of its images."""
    if isinstance(record, Broken):
        _reject(seen, record.reason, record.message)
        return
    if isinstance(record, Mapping):
        seen.fields = seen.fields or sorted(map(str, record))[:20]
    paths: list[str] = []
    kinds: Counter[str] = Counter()

    def resolve(value: object) -> ImageRef:
        kind = _image_kind(value)
        kinds[kind] += 1
        if kind == "paths":
            paths.append(str(value.get("path", value.get("url")) if isinstance(value, Mapping) else value))
        return ImageRef("image", data=b"")

    try:
        normalise(0, record, resolve)
    except SampleRejectedError as error:
        _reject(seen, error.reason, error.message)
        if error.reason != Reason.TEXT_ONLY:
            return
    else:
        seen.usable += 1
    layout = next(
        (name for name in _LAYOUTS if isinstance(record, Mapping) and record.get(name) is not None),
        "a bare list of turns",
    )
    seen.layouts[layout] += 1
    seen.images += kinds
    yield from paths


def _reject(seen: Seen, reason: Reason, message: str) -> None:
    seen.rejects[str(reason)] += 1
    seen.example = seen.example or f"{reason}: {message}"


def _image_kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "bytes" if value.get("bytes") is not None else "paths"
    if isinstance(value, str):
        return "data URIs" if value.startswith("data:") else "URLs" if re.match(r"https?://", value) else "paths"
    return "bytes"


def _find_root(seen: Seen, references: Sequence[tuple[str, str]]) -> None:
    """The folder below which most of the images are, of those where images of a corpus usually lie."""
    step = max(1, len(references) // _IMAGES)
    some = list(references[::step][:_IMAGES])
    best = -1
    for root in _roots(some):
        there = sum(_is_there(root, path) for _, path in some)
        seen.tried.append(root)
        if there > best:
            seen.image_root, best = root, there
        if there == len(some):
            break
    seen.found = (max(best, 0), len(some))
    if best <= 0:
        seen.image_root = None


def _is_there(root: str, path: str) -> bool:
    try:
        uri = resolver(root)(path).uri
    except SampleRejectedError:  # outside of it
        return False
    return uri is not None and storage.exists(uri)


def _roots(references: Sequence[tuple[str, str]]) -> list[str]:
    whole = [path for _, path in references if path.startswith("/") or "://" in path]
    if whole:  # nothing but a folder that holds them all can be their root
        if (
            len(whole) < len(references)
            or len({path.partition("://")[0] if "://" in path else "" for path in whole}) > 1
        ):
            return []
        scheme, separator, _ = whole[0].rpartition("://")
        folders = [posixpath.dirname(path.removeprefix(scheme + separator)) for path in whole]
        return [scheme + separator + posixpath.commonpath(folders)]
    roots: list[str] = []
    for folder in dict.fromkeys(folder for folder, _ in references):
        above = folder
        for _ in range(_PARENTS + 1):
            roots += [above, storage.join(above, "images"), storage.join(above, "image")]
            above = above.rpartition("/")[0]
            if not above or above.endswith(":/"):
                break
    return list(dict.fromkeys(roots))


def _summary(item: Seen) -> str:
    rows = f"about {item.rows:,} rows" if item.rows is not None else "rows not known before they are read"
    images = ", ".join(sorted(item.images)) or "none seen"
    layouts = ", ".join(item.layouts) or "no conversation seen"
    return (
        f"{counted(item.files, 'file')} ({', '.join(item.formats)}), {item.bytes:,} bytes, {rows}; layout "
        f"{layouts}; images: {images}{'; ' * bool(item.passed_over)}{passed_over_text(item.passed_over)}"
    )


def _warnings(item: Seen) -> list[str]:
    found = []
    if item.rejects:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(item.rejects.items()))
        found.append(
            f"of the first {item.looked_at} rows {sum(item.rejects.values())} cannot be scored: {reasons} "
            f"({item.example[:200]})"
        )
    there, some = item.found
    if there < some:
        found.append(
            f"{some - there} of {some} images are in none of the places that were tried; set image_root to the right "
            "folder"
        )
    if item.images["URLs"]:
        found.append("images are given as URLs, which are never fetched: download them and name them by path")
    return found


def _yaml(seen: Sequence[Seen], model: str | None, output: str) -> str:
    lines = [
        "# Written by 'scalselect init' after a look at the first rows of the corpus. Each key can be changed here, "
        "or for one run by",
        "# dotted.key=value behind the config. The keys that are not here have defaults: see 'scalselect config'.",
        "corpus:",
        "  # What to read. A source is a named part of the corpus; its name is part of a sample's identity: keep it "
        "once a run was made.",
        "  sources:",
    ]
    for item in seen:
        lines += [f"    # {text}" for text in [_summary(item), *_warnings(item)]]
        lines += [
            f"    - name: {json.dumps(item.name)}",
            "      # Files, folders (every corpus file below) or globs; any fsspec URI.",
            f"      paths: [{_quoted(item.path)}]",
            *_root_lines(item),
        ]
    lines += [
        "extractor:",
        "  # The VLM that you are going to train, or its base: a folder with safetensors, a folder in a bucket, or a "
        "hub id (owner/name).",
        f"  model: {json.dumps(model)}" if model else "  model: ???  # give it: there is no default",
        "  # Of weights and activations: bfloat16, float16 or float32. Another value means that everything is "
        "extracted anew.",
        "  dtype: bfloat16",
        "selection:",
        "  # How much is chosen: a fraction of the scored samples, or a count when it is an integer above 1. A later "
        "run with another one",
        "  # extracts nothing.",
        "  budget: 0.16",
        "rejects:",
        "  # Above this share of samples that cannot be used (those without an image aside) a run stops with exit "
        "code 3.",
        "  max_fraction: 0.05",
        "# Where features, runs and manifests go: a folder that every machine of the cluster can reach, or a bucket "
        "prefix.",
        f"output: {_quoted(output)}",
    ]
    return "\n".join(lines) + "\n"


def _root_lines(item: Seen) -> list[str]:
    explained = "      # Where relative image paths are joined; nothing outside it is ever read."
    if not item.images["paths"]:
        return []
    if item.image_root is None:
        tried = ", ".join(item.tried[:6]) or "no folder holds them all"
        return [
            explained,
            f"      # None of the images was found: {tried}. Without it: the folder of the file.",
            "      image_root: null",
        ]
    return [
        explained,
        f"      image_root: {_quoted(item.image_root)}  # {item.found[0]} of {item.found[1]} images were there",
    ]


def _quoted(uri: str) -> str:
    return json.dumps(uri, ensure_ascii=False)
