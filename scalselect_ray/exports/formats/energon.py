"""Megatron-Energon: a split file for the WebDataset shards that are there, which excludes what is not chosen. Nothing
is copied."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import yaml

from scalselect_ray.errors import CorpusError
from scalselect_ray.exports.base import Finish, Format, PartReport, Shard, Usage, common_folder
from scalselect_ray.io import storage


class Energon(Format):
    about = "Megatron-Energon: a split file for the shards that are there"
    needs = "shards"

    def write(self, items: Iterator[tuple[str, bool]], report: PartReport, stream: BinaryIO) -> int:
        """The keys that are not chosen, one JSON string a line."""
        count = 0
        for key, chosen in items:
            count += chosen
            stream.write(b"" if chosen else json.dumps(key).encode() + b"\n")
        return count

    def finish(self, finish: Finish) -> Usage:
        parts = dict(zip((shard.uri for shard in finish.shards if shard.chosen), finish.parts, strict=True))
        sources = sorted({shard.source for shard in finish.shards})
        lines = []
        for number, source in enumerate(sources):
            shards = [shard for shard in finish.shards if shard.source == source]
            root = _dataset_folder(shards)
            name = (
                "split.yaml"
                if len(sources) == 1
                else f"split-{number}-{re.sub('[^A-Za-z0-9_-]+', '-', source)[:60]}.yaml"
            )
            uri = storage.join(finish.target, name)
            with storage.open_write(uri) as stream:
                _write_split(stream, root, shards, parts)
            lines.append(
                f"copy {uri} to {storage.join(root, '.nv-meta', f'scalselect-{name}')}; in the metadataset: "
                f"split_config: scalselect-{name}"
            )
        return Usage(
            lines, ["the shards are read in their own order: Energon cannot take a prefix by rank of this export"]
        )


def _dataset_folder(shards: Sequence[Shard]) -> str:
    """The folder with `.nv-meta` that holds them, or where it would be made."""
    shared = common_folder([shard.uri.rpartition("/")[0] for shard in shards])
    folder = shared
    while not storage.exists(storage.join(folder, ".nv-meta")):
        folder = folder.rpartition("/")[0]
        if not folder or folder.endswith("/"):
            return shared
    return folder


def _write_split(stream: BinaryIO, root: str, shards: Sequence[Shard], parts: Mapping[str, str]) -> None:
    """`exclude` and `split_parts`: those of the dataset's own split file, or all its shards for training."""
    known = _own_split(storage.join(root, ".nv-meta", "split.yaml"))
    names = {shard.uri: shard.uri[len(root) + 1 :] for shard in shards}
    stream.write(b"exclude:\n")
    for excluded in known.get("exclude") or []:
        stream.write(_entry(excluded))
    for shard in shards:
        if not shard.chosen:
            stream.write(_entry(escaped(names[shard.uri])))
            continue
        with storage.open_read(parts[shard.uri]) as keys:
            for key in keys:
                stream.write(_entry(escaped(f"{names[shard.uri]}/{json.loads(key)}")))
    stream.write(b"split_parts:\n")
    for split, listed in known.get("split_parts", {"train": [escaped(name) for name in names.values()]}).items():
        stream.write(f"  {json.dumps(split)}:\n".encode())
        for name in listed:
            stream.write(b"  " + _entry(name))


def _own_split(uri: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(storage.read_bytes(uri))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise CorpusError(f"{uri} is no split file: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("split_parts"), dict):
        raise CorpusError(f"{uri} is no split file: it has no split_parts")
    return found


def _entry(text: str) -> bytes:
    return f"- {json.dumps(text, ensure_ascii=False)}\n".encode()  # a JSON string is one of YAML


def escaped(name: str) -> str:
    """Energon expands braces in every name."""
    return re.sub(r"([\\{},])", r"\\\1", name)
