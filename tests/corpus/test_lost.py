"""Lost rows, estimated by bytes, against the rows that were really there."""

import gzip
import io
import json
import random
import tarfile

import pytest

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import CorpusFile, SliceId, list_files, lost_rows, make_plan, plan_here, rests_of
from scalselect_ray.corpus.lost import LostRows, Rest
from scalselect_ray.io.storage import FileInfo

ROWS = [
    json.dumps({"id": number, "conversations": [{"from": "human", "value": f"What is {number * 7919 % 1009}?"}]})
    for number in range(400)
]


def planned(tmp_path):
    """The plan of the two sources `good` and `bad`."""
    sources = [SourceConfig(name=folder.name, paths=[str(folder)]) for folder in sorted(tmp_path.iterdir())]
    return make_plan(list_files(CorpusConfig(sources=sources, slice_rows=64, slice_bytes=1 << 20)), set(), plan_here)


def lost(tmp_path):
    plan = planned(tmp_path)
    return lost_rows(plan.files, plan.slice_ids, rests_of(plan.todo))


@pytest.fixture
def folder(tmp_path):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "good" / "rows.jsonl").write_text("\n".join(ROWS))
    return tmp_path / "bad"


def test_where_everything_is_read_nothing_is_lost(folder, tmp_path):
    (folder / "rows.jsonl").write_text("\n".join(ROWS))
    assert lost(tmp_path) == []


def test_of_a_list_that_breaks_off_the_row_is_lost_in_which_it_does(folder, tmp_path):
    content = "[" + ", ".join(ROWS) + "]"
    (folder / "rows.json").write_text(content[: len(content) // 4])
    (found,) = lost(tmp_path)
    assert (found.source, found.rows) == ("bad", 1)
    assert found.byte == content.index(ROWS[found.row])
    assert f"about 1 row lost in {folder}/rows.json from byte {found.byte:,} (row {found.row}) on" in str(found)


@pytest.mark.parametrize("at", [0.2, 0.7])
def test_the_rest_of_a_tar_with_a_broken_header(folder, tmp_path, at):
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for number, row in enumerate(ROWS):
            member = tarfile.TarInfo(f"{number:05d}.json")
            member.size = len(row)
            tar.addfile(member, io.BytesIO(row.encode()))
    data = bytearray((folder / "rows.tar").read_bytes())
    begin = int(at * 400) * 1024
    data[begin : begin + 512] = b"x" * 512
    (folder / "rows.tar").write_bytes(data)
    (found,) = lost(tmp_path)
    assert found.row == pytest.approx(400 * at, abs=1)
    assert found.row + found.rows == pytest.approx(400, rel=0.05)


def test_the_rest_of_a_gzip_that_is_damaged_in_its_midst(folder, tmp_path):
    noise = random.Random(0)
    rows = [json.dumps({"id": number, "text": noise.randbytes(200).hex()}) for number in range(8_000)]
    data = bytearray(gzip.compress("\n".join(rows).encode()))
    data[len(data) // 2 : len(data) // 2 + 1000] = bytes(1000)
    (folder / "rows.jsonl.gz").write_bytes(data)
    (found,) = lost(tmp_path)
    assert found.row + found.rows == pytest.approx(8_000, rel=0.1)
    assert found.rows > 2_000


@pytest.mark.parametrize("beside", [0, 1, 3])
def test_a_whole_file_weighs_as_its_like_in_the_source_do(folder, tmp_path, beside):
    text = "\n".join(ROWS)
    for number in range(beside):
        (folder / f"{number}.jsonl").write_text(text)
    (folder / "z.parquet").write_bytes(b"\0" * len(text))
    (found,) = lost(tmp_path)
    assert (found.row, found.byte) == (0, 0)
    assert found.rows == pytest.approx(400, rel=0.01)


def test_a_row_each_where_nothing_can_be_read():
    assert lost_rows([], [], {}) == []


def test_one_row_is_said_as_one():
    assert str(LostRows(source="s", shard="a.json", row=3, byte=None, rows=1)) == (
        "about 1 row lost in a.json at row 3"
    )


def test_what_is_lost_in_several_places_is_added_up(folder, tmp_path):
    """Rows in the midst that each stand for others, as keys of a tar with dots in them do."""
    (folder / "rows.jsonl").write_text("\n".join(ROWS))
    plan = planned(tmp_path)
    (file,) = (file for file in plan.files if file.source == "bad")
    mean = file.file.size / 400
    rest = Rest(40, round(50 * mean)).with_another(Rest(7, round(30 * mean)))
    (found,) = lost_rows(plan.files, plan.slice_ids, {file.key: rest})
    assert (found.row, found.byte, found.rejects) == (7, None, 2)
    assert found.rows == pytest.approx(80 * 398 / 320, rel=0.02), "398 rows are in what is left of the bytes"
    assert str(found).endswith("at row 7 and 1 more place")


def test_a_reject_that_stands_for_others_is_no_row_that_was_read():
    """Two rows of 50 bytes were read, and 300 bytes not."""
    file = CorpusFile("s", FileInfo("/a.jsonl", 400, "1", 0.0), "/", 10, 1000)
    (found,) = lost_rows([file], [SliceId(file.key, 0, 2, 3), SliceId(file.key, 2, 3, 3)], {file.key: Rest(2, 300)})
    assert (found.rows, found.byte) == (6, 100)
