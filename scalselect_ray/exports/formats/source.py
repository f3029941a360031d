"""The chosen rows as the files of the corpus have them: a file for each of these, in the same format and with the same
bytes a row, and the sources of a config that read them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple

import yaml

from scalselect_ray.corpus.formats import RowRange, UnreadableFileError, format_of, is_corpus_file
from scalselect_ray.errors import CorpusError
from scalselect_ray.exports.base import Finish, Format, Images, PartReport, Shard, Usage, common_folder
from scalselect_ray.io import storage

FILE = "sources.yaml"


class ChosenRows(NamedTuple):
    """Rows of one file of the corpus."""

    file: storage.FileInfo
    ranges: Sequence[RowRange]  # in which they lie
    rows: frozenset[int]


class Source(Format):
    about = "the corpus itself, less what was not chosen: rows and files as they are"
    keeps = "any row"
    needs = "files"
    modes = (Images.REFERENCE,)

    def write(self, items: Iterator[ChosenRows], report: PartReport, stream: BinaryIO) -> int:
        count = 0
        for item in items:
            try:
                written = format_of(item.file).copy_rows(item.file, item.ranges, item.rows, stream)
            except UnreadableFileError as error:
                raise CorpusError(f"{item.file.uri}: {error}") from error
            if written != len(item.rows):
                raise CorpusError(
                    f"{item.file.uri} gave {written:,} of its {len(item.rows):,} chosen rows: bring back the file as "
                    "the run read it"
                )
            count += written
        return count

    def finish(self, finish: Finish) -> Usage:
        uri = storage.join(finish.target, FILE)
        columns = {shard.source: dict(shard.columns) for shard in finish.shards}
        entries = [
            {"name": name, "paths": _paths(finish.target, folder, written), "image_root": root}
            | ({"columns": columns[source]} if columns[source] else {})
            for name, source, folder, root, written in _written_groups(finish)
        ]
        links = sorted({link for shard in finish.shards for link in shard.image_links})
        corpus = {"sources": entries} | ({"image_links": links} if links else {})
        with storage.open_write(uri) as stream:
            stream.write(yaml.safe_dump({"corpus": corpus}, sort_keys=False, allow_unicode=True).encode())
        return Usage(
            [f"the sources of a config that reads it: {uri}"],
            ["rows stand in the order of the corpus: a part of them is no smaller budget"],
        )


def file_names(shards: Sequence[Shard]) -> list[str]:
    """Where the rows of each file go, below the export's folder."""
    names: list[str] = []
    taken: set[str] = set()
    folders = {key: folder for folder, key in _groups(shards)}
    parents: dict[tuple[str, str], list[str]] = {}
    for shard in shards:
        parents.setdefault((shard.source, shard.image_root), []).append(shard.uri.rpartition("/")[0] or "/")
    shared = {key: common_folder(listed) for key, listed in parents.items()}
    for shard in shards:
        key = shard.source, shard.image_root
        inside = [_safe(part) for part in PurePosixPath(shard.uri[len(shared[key]) :]).parts if part != "/"]
        name = "/".join([folders[key], *inside])
        stem, number = PurePosixPath(name), 1
        while name in taken:
            number += 1
            name = str(stem.with_name(f"{number}-{stem.name}"))
        taken.add(name)
        names.append(name)
    return names


def _groups(shards: Sequence[Shard]) -> list[tuple[str, tuple[str, str]]]:
    """(folder, (source, image root)): a source whose files have several image roots is several sources."""
    keys = list(dict.fromkeys((shard.source, shard.image_root) for shard in shards))
    found: list[tuple[str, tuple[str, str]]] = []
    for source, root in keys:
        folder = name = re.sub("[^A-Za-z0-9_-]+", "-", source)[:60].strip("-") or "source"
        number = 1
        while folder in {other for other, _ in found}:
            number += 1
            folder = f"{name}-{number}"
        found.append((folder, (source, root)))
    return found


def _written_groups(finish: Finish) -> Iterator[tuple[str, str, str, str, list[str]]]:
    """(name of a source, the source that it comes from, its folder, its image root, its files) of what was written."""
    names = file_names(finish.shards)
    known: set[str] = set()
    for folder, (source, root) in _groups(finish.shards):
        name = source if source not in known else folder
        known.add(name)
        yield name, source, folder, root, [each for each in names if each.startswith(f"{folder}/")]


def _paths(target: str, folder: str, written: Sequence[str]) -> list[str]:
    """Paths of a config for files: the folder, and those that are not found in a folder."""
    hidden = [name for name in written if not is_corpus_file(name) or any(part[0] in "._" for part in name.split("/"))]
    return [storage.join(target, name) for name in (folder, *hidden) if name != folder or len(hidden) < len(written)]


def _safe(part: str) -> str:
    """A part of a path that leads nowhere else."""
    return part if part not in ("", ".", "..") else "_"
