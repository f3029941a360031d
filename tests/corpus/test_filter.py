"""A filter on the rows of a source: the same rows of every format, under a key of its own."""

import dataclasses
import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import (
    CorpusFile,
    Reject,
    check_filters,
    list_files,
    plan_file,
    read_rows,
    read_slices,
    reading_units,
)
from scalselect_ray.errors import CorpusError
from scalselect_ray.io.storage import FileInfo

ROWS = [
    {
        "id": str(number),
        "image": f"{number}.png",
        "question": "?",
        "answer": "!",
        "score": number / 10,
        "lang": ("en", "de", None)[number % 3],
        "meta": {"kind": "img" if number % 2 else "web"},
    }
    for number in range(23)
]
FILTER = "score >= 0.5 and lang in ('en', 'de') and meta.kind == 'img'"
KEPT = [row["id"] for row in ROWS if row["score"] >= 0.5 and row["lang"] and row["meta"]["kind"] == "img"]


def tar(mode: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as file:
        for row in ROWS:
            for name, data in ((f"{row['id']}.img.png", b"png"), (f"{row['id']}.json", json.dumps(row).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=6)
    return sink.getvalue()


def arrow() -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)
    return sink.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES = {
    "a.json": json.dumps(ROWS).encode(),
    "object.json": json.dumps({"data": ROWS}).encode(),
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.parquet": parquet(),
    "a.arrow": arrow(),
    "a.tar": tar("w"),
    "a.tar.gz": tar("w:gz"),
}


def corpus(path: Path, text: str | None, **more: object) -> list[CorpusFile]:
    source = SourceConfig(name="s", paths=[str(path)], filter=text, **more)
    return list_files(CorpusConfig(sources=[source], slice_rows=4))


def read(file: CorpusFile) -> list:
    return [row for unit in reading_units(plan_file(file)) for _, rows in read_slices(unit) for row in rows]


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_of_every_format(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    (file,) = corpus(tmp_path / name, FILTER)
    (whole,) = corpus(tmp_path / name, None)
    samples = read(file)
    assert [sample.id for sample in samples] == KEPT
    assert [sample.row for sample in samples] == [int(number) for number in KEPT], "a row keeps its place in the file"
    assert samples == [row for row in read(whole) if row.id in KEPT], "what is kept is read as without a filter"
    assert {slice_.filter for slice_ in plan_file(file)} == {FILTER}
    assert read_rows(file, [0, samples[0].row]) == {samples[0].row: samples[0]}
    kept = check_filters([file])["s"]
    assert (kept.rows, kept.looked_at) == (len(KEPT), len(ROWS))


@pytest.mark.parametrize("name", FILES)
def test_a_column_that_is_not_there_is_said_with_those_that_are(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    for text, wrong in (("score > 1 and langs == 'en'", "langs"), ("meta.too == 'img'", "meta.too")):
        with pytest.raises(CorpusError) as error:
            check_filters(corpus(tmp_path / name, text))
        assert f"no column '{wrong}'" in str(error.value)
        assert all(column in str(error.value) for column in ("score", "lang", "meta", "question", name))
    with pytest.raises(CorpusError, match="score is compared as a text, and holds a number"):
        check_filters(corpus(tmp_path / name, "score > '0.5'"))


def test_a_column_may_be_in_some_files_and_rows_alone(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"id": 2}\n{"id": 3, "odd": 1}\n')
    kept = check_filters(corpus(tmp_path, "odd is null"))["s"]
    assert (kept.rows, kept.looked_at) == (2, 3)


def test_what_is_broken_is_a_reject_whatever_the_filter(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(ROWS[0]), '{"id": 1, "score"', json.dumps(ROWS[8])]))
    (file,) = corpus(tmp_path / "a.jsonl", "score < 0.1")
    kept, broken = read(file)
    assert (kept.id, broken.row) == ("0", 1)
    assert isinstance(broken, Reject)
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [{row["id"]: row for row in ROWS}, 7, ROWS[8]])))
    assert [row.row for row in read(corpus(tmp_path / "c.jsonl", "score < 0.1")[0])] == [0, 1], "these are no rows"
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing else")
    (file,) = corpus(tmp_path / "b.parquet", "score < 0.1")
    assert check_filters([file])["s"].looked_at == 0
    assert [type(row) for row in read(file)] == [Reject]


def test_filtered_and_unfiltered_never_share_a_key(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    texts = [None, "score > 0.5", "score > 0.6", "lang == 'en'"]
    keys = [corpus(tmp_path / "a.jsonl", text)[0].key for text in texts]
    keys.append(corpus(tmp_path / "a.jsonl", "score > 0.5", columns={"id": "lang"})[0].key)
    assert len(set(keys)) == len(keys)
    (again,) = corpus(tmp_path / "a.jsonl", "  (score>0.50)", limit=3)
    assert again.key == keys[1]
    assert [row.id for row in read(again)] == [], "a limit counts the rows before the filter"


def test_a_file_without_a_filter_keeps_the_key_that_it_had():
    file = CorpusFile("s", FileInfo("/corpus/a.json", 5, "7"), "/images", 256, 1 << 26)
    assert file.key == "00509717027398a9"
    assert dataclasses.replace(file, columns={"images": "pics"}).key == "b7870c17a9c54ea0"
    assert dataclasses.replace(file, filter="a > 1").key == "0365ff4cb576f8e6"
