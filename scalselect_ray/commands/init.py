"""A config from a look at a corpus: the first rows of its first files."""

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scalselect_ray.commands.own_names import own_names
from scalselect_ray.config import CorpusConfig, SourceConfig, is_hub_id
from scalselect_ray.config_files import parse_config
from scalselect_ray.console import Console, counted, one_line
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
from scalselect_ray.corpus.conversation import layout_of
from scalselect_ray.corpus.fields import LAYOUTS, every_field, image_in, renamed
from scalselect_ray.corpus.formats import FORMATS, Cutting, Format, RowRange, UnreadableFileError, format_of, scan
from scalselect_ray.corpus.images import from_base64, link_on
from scalselect_ray.corpus.planning import passed_over_text
from scalselect_ray.errors import ConfigError, CorpusError, ModelError, NoAnswerError
from scalselect_ray.io import storage
from scalselect_ray.source_lists import read_source_list

_ROWS, _BYTES = 64, 1 << 24  # of one range of a file
_RANGES, _MORE_ROWS = 12, 8  # ranges of a file that are looked at, and rows of those after the first
_SCANNED = 1 << 26  # bytes of a file that are gone through for them
_FILES = 6  # of one path
_IMAGES = 8  # paths that are tried below each image root
_PARENTS = 3  # folders above a file that may be its image root
T = TypeVar("T")


@dataclass
class Seen:
    """What a look at one path of the corpus shows."""

    name: str
    paths: list[str]
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
    columns: dict[str, str] = field(default_factory=dict)  # its own names, where it has others
    image_links: list[str] = field(default_factory=list)  # folders where links in the image root lead
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
        listed = read_source_list(path)
        if listed is None:
            seen.append(_look(SourceConfig(name=_name(path, {other.name for other in seen}), paths=[path])))
            continue
        left_out = dict(listed.left_out)
        for source in listed.sources:
            try:
                seen.append(_look(SourceConfig(**source)))
            except CorpusError as error:
                left_out[source["name"]] = str(error)
        if len(left_out) == len(listed.left_out) + len(listed.sources):
            raise CorpusError(f"{path}: none of its data sets can be read; {next(iter(left_out.values()))}")
        for name, why in left_out.items():
            console.warn(f"{path}: {name} is left out: {why}")
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
        "path": item.paths[0],
    }


def _known_model(model: str | None) -> str | None:
    """The model as a config names it. Raises ModelError when it can be no model."""
    if model is None or not storage.is_local(model):
        return model
    folder = storage.absolute(model)
    if not os.path.isdir(folder):
        if is_hub_id(model):
            return model
        raise ModelError(f"--model {model}: no such folder (nor is it a hub id of the form owner/name)")
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ModelError(
            f"--model {model}: no config.json in this folder; expected a folder written by save_pretrained"
        )
    return folder


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


def _look(source: SourceConfig) -> Seen:
    """Raises CorpusError when nothing of it can be read."""
    name, path = source.name, ", ".join(source.paths)
    corpus = list_corpus(CorpusConfig(sources=[source], slice_rows=_ROWS, slice_bytes=_BYTES))
    files = corpus.files
    seen = Seen(
        name, list(map(storage.absolute, source.paths)), len(files), sum(file.file.size for file in files), None
    )
    seen.passed_over = corpus.passed_over.get(name, Counter())
    rows_by_byte: list[tuple[int, int]] = []
    rows: list[tuple[str, object]] = []  # (folder of the file, a row of it)
    unreadable: list[str] = []
    for file in _spread(files, _FILES):
        try:
            form = format_of(file.file)
            records, counted = _some_rows(form, file)
        except NoAnswerError:
            raise
        except (UnreadableFileError, OSError) as error:
            unreadable.append(f"{file.file.uri} cannot be read: {error}")
            continue
        seen.formats += [] if form.title in seen.formats else [form.title]
        rows_by_byte.append(counted)
        rows += [(file.image_root, record) for record in records]
    if not rows:
        raise CorpusError(unreadable[0] if unreadable else f"{path}: its first files hold no rows")
    records = [record for _, record in rows]
    best = _reading(records, source.columns)
    if best.usable < len(rows) and not source.columns:  # perhaps under names of its own
        own = _reading(records, own_names(records))
        best = own if own.usable > best.usable else best
    seen.columns, seen.usable, seen.rejects, seen.example = best.columns, best.usable, best.rejects, best.example
    seen.layouts, seen.images = best.layouts, best.images
    seen.fields = sorted(str(name) for name in records[0])[:20] if isinstance(records[0], Mapping) else []
    seen.rejects.update({str(Reason.UNREADABLE_FILE): len(unreadable)} if unreadable else {})
    seen.example = next(iter(unreadable), seen.example)
    if not seen.usable and not seen.rejects[Reason.TEXT_ONLY]:
        fields = f"; fields of the first row: {', '.join(seen.fields)}" if seen.fields else ""
        raise CorpusError(
            f"{path}: none of the {seen.looked_at} rows that were looked at is a sample; the first: "
            f"{seen.example}{fields}. A row has one of {', '.join(LAYOUTS)}, and image or images: "
            "corpus.sources[].columns maps other names to these"
        )
    counts, size = (sum(numbers) for numbers in zip(*rows_by_byte, strict=True))
    seen.rows = round(counts * seen.bytes / size) if size else None
    references = [(rows[number][0], reference) for number, reference in best.references]
    if references:
        _find_root(seen, references, source.image_root)
    return seen


def _spread(some: Sequence[T], most: int) -> list[T]:
    """At most so many of them, from the first to the last, with equal steps."""
    if len(some) <= most:
        return list(some)
    return [some[round(number * (len(some) - 1) / (most - 1))] for number in range(most)]


def _some_rows(form: Format, file: CorpusFile) -> tuple[list[object], tuple[int, int]]:
    """Rows of a file, its first and some further on: text-only ones often stand together. And (rows, the bytes of the
    file that they take), by which all are guessed: (0, 0) in a stream, where nobody knows."""
    looked_at: list[RowRange] = []
    last = RowRange(0, 0, 0, file.file.size)
    counted = None
    try:
        for number, range_ in enumerate(scan(file.file, Cutting(_ROWS, _BYTES))):
            counted = counted or (range_.stop_row, range_.stop_byte - range_.start_byte)
            last = range_
            if number & (number - 1) == 0:  # 0, 1, 2, 4, 8, ...
                looked_at.append(range_)
            if not form.indexed and (form.sequential or range_.stop_byte > _SCANNED):
                break
    except UnreadableFileError:
        if counted is None:
            raise
    if counted is None:
        return [], (0, file.file.size)
    wanted = every_field({})
    records = [
        record
        for range_ in looked_at[:_RANGES]
        for _, some in form.read(file.file, [range_], wanted)
        for record in _spread(some, _ROWS if range_ is looked_at[0] else _MORE_ROWS)
    ]
    if form.indexed:  # all rows are known; the bytes of a range may be those before compression
        counted = last.stop_row, file.file.size
    return records, counted


@dataclass
class _Reading:
    """Rows as they are read under some names."""

    columns: dict[str, str]
    layouts: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    usable: int = 0
    example: str = ""
    references: list[tuple[int, str]] = field(default_factory=list)  # (number of the row, path of an image)


def _reading(records: Sequence[object], columns: dict[str, str]) -> _Reading:
    reading = _Reading(columns)
    for number, record in enumerate(records):
        reading.references += [(number, path) for path in _look_at(record, reading)]
    return reading


def _look_at(record: object, reading: _Reading) -> list[str]:
    """Counts what one row is; returns the paths of its images."""
    if isinstance(record, Broken):
        _reject(reading, record.reason, record.message)
        return []
    paths: list[str] = []
    kinds: Counter[str] = Counter()

    def resolve(value: object) -> ImageRef:
        kind = _image_kind(value)
        kinds[kind] += 1
        if kind == "paths":
            paths.append(str(image_in(value) if isinstance(value, Mapping) else value))
        return ImageRef("image", data=b"")

    try:
        normalise(0, record, resolve, columns=reading.columns)
    except SampleRejectedError as error:
        _reject(reading, error.reason, error.message)
        if error.reason != Reason.TEXT_ONLY:
            return []
    else:
        reading.usable += 1
    reading.layouts[layout_of(renamed(record, reading.columns))] += 1
    reading.images += kinds
    return paths


def _reject(reading: _Reading, reason: Reason, message: str) -> None:
    reading.rejects[str(reason)] += 1
    reading.example = reading.example or f"{reason}: {message}"


def _image_kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "bytes" if value.get("bytes") is not None else _image_kind(image_in(value))
    if not isinstance(value, str):
        return "bytes"
    if value.startswith("data:"):
        return "data URIs"
    if re.match(r"https?://", value):
        return "URLs"
    return "base64" if from_base64(value) is not None else "paths"


def _find_root(seen: Seen, references: Sequence[tuple[str, str]], given: str | None) -> None:
    """The folder below which most of the images are, the one that is given or of those where images of a corpus usually
    lie; and the folders where its links lead."""
    some = _spread(references, _IMAGES)
    best = -1
    for root in _roots(some) if given is None else [storage.absolute(given)]:
        found = [_lies_in(root, path) for _, path in some]
        there = len(found) - found.count(None)
        seen.tried.append(root)
        if there > best:
            seen.image_root, best = root, there
            seen.image_links = sorted({folder for folder in found if folder})
        if there == len(some):
            break
    seen.found = (max(best, 0), len(some))
    if best <= 0 and given is None:
        seen.image_root = None


def _lies_in(root: str, path: str) -> str | None:
    """The folder to which a link leads on the way to an image that is there; empty where there is none on it. None
    where the image is not there, or the path leads out of the root by itself."""
    try:
        uri = resolver(root)(path).uri
        return "" if uri is not None and storage.exists(uri) else None
    except SampleRejectedError:
        uri = os.path.normpath(os.path.join(root, path))
        if not storage.is_local(root) or not uri.startswith(root.rstrip("/") + "/") or not os.path.isfile(uri):
            return None
        link = link_on(root, uri)
        folder = os.path.realpath(link if os.path.isdir(link) else os.path.dirname(os.path.realpath(link)))
        try:
            resolver(root, [folder])(path)
        except SampleRejectedError:  # a link behind the link
            return os.path.dirname(os.path.realpath(uri))
        return folder


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
            f"of {item.looked_at} rows that were looked at {sum(item.rejects.values())} cannot be scored: {reasons} "
            f"({item.example[:200]})"
        )
    if item.columns:
        mapped = ", ".join(f"{ours} is {own}" for ours, own in item.columns.items())
        found.append(f"its rows have names of their own ({mapped}): look whether corpus.sources[].columns is right")
    if item.image_links:
        found.append(
            f"links in the image root lead to {', '.join(item.image_links)}: corpus.image_links lets them be followed"
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
            f"      paths: [{', '.join(map(_quoted, item.paths))}]",
            *_root_lines(item),
            *_column_lines(item),
        ]
    if links := sorted({folder for item in seen for folder in item.image_links}):
        lines += [
            "  # Links inside the image roots lead to these folders; what a link leads to elsewhere is not read.",
            f"  image_links: {json.dumps(links, ensure_ascii=False)}",
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
    return "".join(f"{one_line(line)}\n" for line in lines)  # comments quote rows and names of others


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


def _column_lines(item: Seen) -> list[str]:
    if not item.columns:
        return []
    return [
        "      # The corpus's own names, as they were guessed from its rows: look whether they are right.",
        f"      columns: {json.dumps(item.columns, ensure_ascii=False)}",
    ]


def _quoted(uri: str) -> str:
    return json.dumps(uri, ensure_ascii=False)
