"""Of which files a run was made."""

import pytest

from scalselect_ray.corpus import CorpusFile, Plan, SliceId
from scalselect_ray.errors import DamagedObjectError, OutputError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo
from scalselect_ray.store.files import files_of, read_files, write_files
from scalselect_ray.store.layout import Output


def corpus_file(source: str, name: str) -> CorpusFile:
    return CorpusFile(source, FileInfo(f"s3://key:secret@bucket/{name}", 9, "v"), "s3://bucket", 10, 100)


def test_each_file_comes_back_with_its_slices(tmp_path):
    files = [corpus_file("a", "one.json"), corpus_file("a", "empty.json"), corpus_file("b", "one.json")]
    ids = [SliceId(files[0].key, 0, 10, 12), SliceId(files[0].key, 10, 12, 12), SliceId(files[2].key, 0, 3, 3)]
    folder = Output(str(tmp_path)).run("r")
    write_files(files_of(Plan(files, ids, [])), folder)
    first, second = read_files(folder)
    assert (first.source, first.file_key, first.rows, first.slices) == ("a", files[0].key, 12, tuple(ids[:2]))
    assert (second.source, second.file_key, second.rows, second.slices) == ("b", files[2].key, 3, tuple(ids[2:]))
    assert first.shard == "s3://***@bucket/one.json", "a name in a table, without secrets"
    assert [first.slice_of(row) for row in (0, 9, 10, 11, 12)] == [ids[0], ids[0], ids[1], ids[1], None]


def test_a_run_without_the_table_is_one_of_version_0_1(tmp_path):
    with pytest.raises(OutputError, match=r"scalselect 0\.1.*run again"):
        read_files(Output(str(tmp_path)).run("r"))


def test_a_damaged_table_of_a_finished_run_is_not_promised_to_be_mended(tmp_path):
    folder = Output(str(tmp_path)).run("r")
    storage.write(folder.files, b"PAR1 not really PAR1")
    with pytest.raises(OutputError, match=r"files\.parquet is damaged.*use the new run") as raised:
        read_files(folder)
    assert not isinstance(raised.value, DamagedObjectError)
