"""What tells the bytes of a range from others: spread over a large one, so that it costs little to look."""

import gzip
import io
import random
import tarfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalselect_ray.corpus.formats import Cutting, digest_of, format_of, scan
from scalselect_ray.io import storage

DICE = random.Random(7)
MEMBERS = [DICE.randbytes(1 << 19) for _ in range(6)]


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        for number, data in enumerate(MEMBERS):
            for name, content in ((f"{number}.png", data), (f"{number}.txt", b"a cat")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"caption": ["a cat"] * 6, "image": MEMBERS}), sink, row_group_size=2)
    return sink.getvalue()


def stream() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"caption": ["a cat"] * 6, "image": MEMBERS})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


FILES = {
    "a.tar": tar(),
    "a.tar.gz": gzip.compress(tar(), 0),
    "a.parquet": parquet(),
    "a.arrow": stream(),
    "a.jsonl": b'{"x": 1}\n' * 100,
}


@pytest.mark.parametrize("name", FILES)
def test_little_of_a_large_range_is_read_for_its_digest(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(FILES[name])
    file = storage.stat(str(tmp_path / name))
    form, ranges = format_of(file), list(scan(file, Cutting(2, 1 << 30)))
    read = []
    original = storage.read_bytes

    def counting(uri, start=None, stop=None):
        data = original(uri, start, stop)
        read.append(len(data))
        return data

    monkeypatch.setattr(storage, "read_bytes", counting)
    assert [digest_of(form, file, range_) for range_ in ranges] == [range_.digest for range_ in ranges]
    if form.scanned:
        assert sum(read) == file.size
        content = FILES[name]
        assert ranges[0].digest == f"{zlib.crc32(content[ranges[0].start_byte : ranges[0].stop_byte]):08x}"
    else:
        assert sum(read) <= len(ranges) * 4 * (1 << 16)


def test_what_is_exchanged_in_one_range_of_a_tar_changes_its_digest_alone(tmp_path):
    name = "a.tar"
    (tmp_path / name).write_bytes(FILES[name])
    file = storage.stat(str(tmp_path / name))
    before = list(scan(file, Cutting(2, 1 << 30)))
    content = bytearray(FILES[name])
    for member in MEMBERS[2:4]:
        at = content.index(member)
        content[at : at + len(member)] = DICE.randbytes(len(member))
    (tmp_path / name).write_bytes(content)
    after = list(scan(storage.stat(str(tmp_path / name)), Cutting(2, 1 << 30)))
    assert [one.digest == other.digest for one, other in zip(before, after, strict=True)] == [True, False, True]


@pytest.mark.parametrize("name", FILES)
def test_the_digest_of_rows_does_not_depend_on_how_the_others_are_cut(name, tmp_path):
    """Else what is committed would go for what is of another file."""
    (tmp_path / name).write_bytes(FILES[name])
    file = storage.stat(str(tmp_path / name))
    committed = {(range_.first_row, range_.stop_row): range_.digest for range_ in scan(file, Cutting(3, 1 << 30))}
    for rows in (1, 2, 4, 100):
        for kept, digest in committed.items():
            found = list(scan(file, Cutting(rows, 1 << 30, dict([kept]))))
            assert [range_.digest for range_ in found if (range_.first_row, range_.stop_row) == kept] == [digest]
