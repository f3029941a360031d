"""The corpus less what was not chosen: the same files with the same bytes a row."""

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.corpus import CorpusFile, list_files, plan_file, read_slices
from scalselect_ray.corpus.formats import FORMATS, RowRange, UnreadableFileError, format_of
from scalselect_ray.errors import CorpusError
from scalselect_ray.exports.base import Finish, ImagePaths, PartReport, Shard
from scalselect_ray.exports.formats.source import ChosenRows, Source, file_names
from scalselect_ray.io import storage

COUNT = 12
ROWS = [
    b'{"id": 1e2, "id": %d, "image": "b.png",  "stray": [1.0, null], "conversations": [' % number
    + b'{"from":"human","value":"<image>"},{"from":"gpt","value":"\\u00e9 \xc3\xa9"}]}'
    for number in range(COUNT)
]


def lines(path: Path) -> list[bytes]:
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\n  ".join(ROWS))
    return ROWS


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def packed_lines(path: Path) -> list[bytes]:
    path.write_bytes(PACK[path.suffix](b"\n".join(ROWS)))
    return ROWS


def json_object(path: Path) -> list[object]:
    path.write_bytes(b'{"v": [1], "data": [' + b", ".join(ROWS) + b'], "z": {"ends": "]}"}}')
    return [json.loads(row) for row in ROWS]


def object_rows(data: bytes) -> list[object]:
    made = json.loads(data)
    assert (made["v"], made["z"]) == ([1], {"ends": "]}"})
    return made["data"]


def json_list(path: Path) -> list[bytes]:
    path.write_bytes(b"[ " + b" ,\n\t".join(ROWS) + b"\n]")
    return ROWS


def packed_list(path: Path) -> list[bytes]:
    path.write_bytes(PACK[path.suffix](b"[ " + b" ,\n".join(ROWS) + b"\n]"))
    return ROWS


def joined(path: Path) -> list[bytes]:
    rows = [row.replace(b'{"id"', b'{\n "id"', 1) for row in ROWS]
    content = b" ".join(rows)
    path.write_bytes(PACK[path.suffix](content) if path.suffix in PACK else content)
    return rows


def joined_rows(data: bytes) -> list[bytes]:
    return re.split(rb"\n(?=\{)", data.strip()) if data else []


def table(path: Path) -> list[dict[str, object]]:
    rows = [{**json.loads(row), "emb": [0.5, number], "at": None} for number, row in enumerate(ROWS)]
    made = pa.Table.from_pylist(rows).append_column("kind", pa.array(["a"] * COUNT).dictionary_encode())
    made = made.replace_schema_metadata({"huggingface": "{}", "own": "x"})
    pq.write_table(made, path, row_group_size=5, compression="gzip")
    return made.to_pylist()


def tar_rows(data: bytes) -> list[list[tuple[object, ...]]]:
    """The members of each key: name, time, owner, content."""
    rows: dict[str, list[tuple[object, ...]]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            content = tar.extractfile(info).read()
            rows.setdefault(info.name.split(".")[0], []).append((info.name, info.mtime, info.uname, content))
    return list(rows.values())


def tar(path: Path) -> list[list[tuple[object, ...]]]:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as made:
        for number, row in enumerate(ROWS):
            for name, data in (("z.png", b"png"), ("json", row), ("cls", b"7"), ("x" * 120 + ".ö", b"")):
                info = tarfile.TarInfo(f"k{number}.{name}")
                info.size, info.mtime, info.uname = len(data), number + 0.5, "owner"
                made.addfile(info, io.BytesIO(data))
    packed = path.name.endswith("gz")
    path.write_bytes(gzip.compress(sink.getvalue()) if packed else sink.getvalue())
    return tar_rows(sink.getvalue())


def text_rows(data: bytes) -> list[bytes]:
    return [line.strip(b",") for line in data.splitlines() if line.startswith(b"{")]


def arrow(path: Path) -> list[dict[str, object]]:
    rows = [{**json.loads(row), "emb": [0.5, number], "at": None} for number, row in enumerate(ROWS)]
    made = pa.Table.from_pylist(rows).append_column("kind", pa.array(["a"] * COUNT).dictionary_encode())
    made = made.replace_schema_metadata({"huggingface": "{}", "own": "x"})
    with (pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file)(path, made.schema) as writer:
        writer.write_table(made, max_chunksize=5)
    return made.to_pylist()


def arrow_rows(data: bytes) -> list[dict[str, object]]:
    if not data:
        return []
    made = (pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream)(data).read_all()
    assert made.schema.metadata == {b"huggingface": b"{}", b"own": b"x"}
    return made.to_pylist()


def parquet_rows(data: bytes) -> list[dict[str, object]]:
    return pq.read_table(io.BytesIO(data)).to_pylist()


KINDS: dict[str, tuple[Callable[[Path], list], Callable[[bytes], list]]] = {
    "a.jsonl": (lines, text_rows),
    "a.jsonl.gz": (packed_lines, lambda data: text_rows(gzip.decompress(data))),
    "a.jsonl.bz2": (packed_lines, lambda data: text_rows(bz2.decompress(data))),
    "a.jsonl.xz": (packed_lines, lambda data: text_rows(lzma.decompress(data))),
    "list.json.gz": (packed_list, lambda data: text_rows(gzip.decompress(data))),
    "list.jsonl.xz": (packed_list, lambda data: text_rows(lzma.decompress(data))),
    "joined.json": (joined, joined_rows),
    "joined.jsonl": (joined, joined_rows),
    "joined.json.gz": (joined, lambda data: joined_rows(gzip.decompress(data))),
    "joined.jsonl.bz2": (joined, lambda data: joined_rows(bz2.decompress(data))),
    "object.json": (json_object, object_rows),
    "a.json": (json_list, text_rows),
    "a.parquet": (table, parquet_rows),
    "a.arrow": (arrow, arrow_rows),
    "a.feather": (arrow, arrow_rows),
    "a.tar": (tar, tar_rows),
    "a.tar.gz": (tar, lambda data: tar_rows(gzip.decompress(data))),
}


def ranges_of(path: Path, slice_rows: int) -> tuple[storage.FileInfo, list[RowRange]]:
    file = storage.stat(str(path))
    slices = plan_file(CorpusFile("s", file, "/r", slice_rows, 1 << 20))
    return file, [RowRange(each.first_row, each.stop_row, each.start_byte, each.stop_byte) for each in slices]


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.integers(0, COUNT - 1)), slice_rows=st.integers(1, COUNT))
def test_rows_are_copied_as_they_stand(name, chosen, slice_rows, tmp_path):
    make, rows_of = KINDS[name]
    made = make(tmp_path / name)
    file, ranges = ranges_of(tmp_path / name, slice_rows)
    sink = io.BytesIO()
    assert format_of(file).copy_rows(file, ranges, chosen, sink) == len(chosen)
    assert rows_of(sink.getvalue()) == [row for number, row in enumerate(made) if number in chosen]
    copy = tmp_path / f"copy-{name}"
    copy.write_bytes(sink.getvalue())
    if chosen:
        assert type(format_of(storage.stat(str(copy)))) is type(format_of(file))
        assert sum(range_.stop_row - range_.first_row for range_ in ranges_of(copy, 5)[1]) == len(chosen)
    if name == "a.parquet":
        old, new = (pq.read_schema(tmp_path / each) for each in (name, f"copy-{name}"))
        assert new.equals(old, check_metadata=True)


def test_every_format_is_tried_here(tmp_path):
    tried = set()
    for name, (make, _) in KINDS.items():
        make(tmp_path / name)
        tried.add(type(format_of(storage.stat(str(tmp_path / name)))))
    untried = {type(known) for known in FORMATS} - tried
    for kind in untried:
        with pytest.raises(UnreadableFileError, match="cannot be written"):
            kind().copy_rows(storage.FileInfo("/x", 0, ""), [], {0}, io.BytesIO())


def test_the_sources_that_are_written_read_the_same_samples(tmp_path):
    """Files of one name in several folders, with image roots of their own; round trip."""
    folder = tmp_path / "corpus"
    names = ["x/a.jsonl", "y/a.jsonl", "y/a.json", "a.parquet", "a.tar", "b.odd"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        KINDS.get(Path(name).name, (lines,))[0](folder / name)
    config = [{"name": "the set", "paths": [str(folder)]}, {"name": "../odd", "paths": [str(folder / "b.odd")]}]
    config[1]["columns"] = {"id": "key"}
    files = listed(config)
    shards = [
        Shard(file.source, file.file.uri, file.file.size, 2, file.image_root, columns=file.columns) for file in files
    ]
    written = file_names(shards)
    assert len(set(written)) == len(written) == len(names)
    assert not any(part in ("..", ".", "") for name in written for part in name.split("/"))
    target = tmp_path / "out"
    report = PartReport(ImagePaths(str(target), str(target), False))
    expected = []
    for file, name in zip(files, written, strict=True):
        _, ranges = ranges_of(Path(file.file.uri), 4)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (target / name).open("wb") as stream:
            assert Source().write(iter([ChosenRows(file.file, ranges, frozenset({3, 7}))]), report, stream) == 2
        expected += [samples(file)[row] for row in (3, 7)]
    Source().finish(Finish(report.paths, [], [], "run", shards))
    sources = yaml.safe_load((target / "sources.yaml").read_text())["corpus"]["sources"]
    assert [source.get("columns") for source in sources if source["name"] == "../odd"] == [{"id": "key"}]
    again = listed(sources)
    assert sorted(map(repr, expected)) == sorted(repr(sample) for file in again for sample in samples(file))


def listed(sources: list[dict]) -> list[CorpusFile]:
    from scalselect_ray.config import CorpusConfig, SourceConfig

    return list_files(CorpusConfig(sources=[SourceConfig(**source) for source in sources]))


def samples(file: CorpusFile) -> list[tuple]:
    return [(sample.id, sample.turns, sample.images) for _, read in read_slices(plan_file(file)) for sample in read]


def test_a_file_that_gives_other_rows_than_were_chosen_stops_the_export(tmp_path):
    lines(tmp_path / "a.jsonl")
    file, ranges = ranges_of(tmp_path / "a.jsonl", 4)
    chosen = ChosenRows(file, ranges, frozenset({3, 99}))
    with pytest.raises(CorpusError, match="gave 1 of its 2 chosen rows"):
        Source().write(iter([chosen]), PartReport(ImagePaths("/x", "/x", False)), io.BytesIO())
