"""The whole job against a real S3 server, well and unwell."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import GOLDEN, write_config

from scalselect_ray.cli import main
from scalselect_ray.io import storage
from scalselect_ray.testing import object_store

pytestmark = pytest.mark.usefixtures("cluster")

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())


@pytest.fixture
def bucket(s3, request) -> str:
    """A prefix of the bucket of one test, in a store that is well."""
    s3.clear()
    yield f"s3://bucket/{request.node.name}"
    s3.clear()


def table(uri: str) -> pa.Table:
    names = [uri] if uri.endswith(".parquet") else [storage.join(uri, name) for name in storage.list_names(uri)]
    return pa.concat_tables(pq.read_table(pa.BufferReader(storage.read_bytes(name))) for name in names)


def latest(output: str) -> str:
    return storage.join(output, "runs", json.loads(storage.read_bytes(storage.join(output, "latest.json")))["run_id"])


def corpus_in_three_formats(folder: Path) -> list[str]:
    """`folder`/list.json with its images, rows.parquet and shard.tar: the golden corpus three times."""
    images = {name: (CORPUS / name).read_bytes() for row in ROWS for name in row["images"]}
    (folder / "list.json").write_text(json.dumps(ROWS))
    for name, data in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    structs = [
        {**row, "id": str(row["id"]), "images": [{"bytes": images[n], "path": n} for n in row["images"]]}
        for row in ROWS
    ]
    pq.write_table(
        pa.Table.from_pylist(structs), folder / "rows.parquet", row_group_size=20
    )  # twice the size of a slice
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, row in enumerate(ROWS):
            members = {f"{number:04d}.json": json.dumps({**row, "images": None}).encode()}
            members |= {f"{number:04d}.img{i}.{n.rpartition('.')[2]}": images[n] for i, n in enumerate(row["images"])}
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return ["list.json", "rows.parquet", "shard.tar"]


def config_below(folder: Path, root: str, names: list[str], output: str, model: str = str(MODEL)) -> str:
    folder.mkdir(exist_ok=True)
    sources = [{"name": name, "paths": [f"{root}/{name}"], "image_root": root} for name in names]
    return str(
        write_config(folder, sources, Path("model"), output=output, extractor={"model": model, "dtype": "float32"})
    )


def test_disk_and_bucket_give_the_same_bits(tmp_path, bucket, s3):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    names = corpus_in_three_formats(corpus)
    assert main(["run", config_below(tmp_path / "disk", str(corpus), names, str(tmp_path / "out"))]) == 0
    object_store.upload(corpus, f"{bucket}/corpus")
    object_store.upload(MODEL, f"{bucket}/model")
    s3.clear()
    config = config_below(tmp_path / "s3", f"{bucket}/corpus", names, f"{bucket}/out", f"{bucket}/model")
    assert main(["run", config]) == 0
    here, there = latest(str(tmp_path / "out")), latest(f"{bucket}/out")
    for name in ("scores", "manifest"):
        ours, theirs = table(f"{here}/{name}"), table(f"{there}/{name}")
        assert theirs["score"].equals(ours["score"]), name
        assert theirs["row"].equals(ours["row"])

    puts = Counter(path.partition("?")[0] for method, path in s3.paths if method == "PUT" and "/features/" in path)
    assert len(puts) == 10  # 9 slices and the description of the extractor
    assert set(puts.values()) == {1}, "a commit is one PUT"
    assert not [path for method, path in s3.paths if method in ("POST", "DELETE")], (
        "nothing is renamed, appended or removed"
    )
    parquet = [path for method, path in s3.paths if path.endswith("rows.parquet") and method == "GET"]
    assert len(parquet) <= 2 + 2 * 2, "footer for plan and for each row group once, though a group holds two slices"
    saved = "".join(storage.read_bytes(f"{there}/{name}").decode() for name in ("config.yaml", "run.json"))
    assert "nobody-may-see" not in saved

    s3.clear()
    assert main(["run", config, "selection.budget=0.5"]) == 0
    assert not [path for method, path in s3.paths if method == "GET" and "/corpus/" in path and "list-type" not in path]
    assert json.loads(storage.read_bytes(f"{latest(f'{bucket}/out')}/run.json"))["slices"]["extracted"] == 0


def test_a_store_that_throttles_resets_and_cuts_gives_the_same_bits(tmp_path, bucket, s3):
    object_store.upload(CORPUS, f"{bucket}/corpus")
    config = config_below(tmp_path, f"{bucket}/corpus", ["samples.json"], f"{bucket}/out")
    assert main(["run", config]) == 0
    expected = table(f"{latest(f'{bucket}/out')}/scores")
    s3.clear()
    s3.fault = object_store.every(9, ["500", "503", "reset", "cut", "slow"], "/bucket/")
    assert main(["run", config, f"output={bucket}/unwell"]) == 0
    assert {"500", "503", "reset", "cut", "slow"} <= set(s3.faults)
    s3.clear()
    assert table(f"{latest(f'{bucket}/unwell')}/scores")["score"].equals(expected["score"])
    assert table(f"{latest(f'{bucket}/unwell')}/rejects.parquet").num_rows == 0


def test_a_missing_key_is_one_reject(tmp_path, bucket, s3):
    object_store.upload(CORPUS, f"{bucket}/corpus")
    storage.delete([f"{bucket}/corpus/{ROWS[3]['images'][0]}"])
    config = config_below(tmp_path, f"{bucket}/corpus", ["samples.json"], f"{bucket}/out")
    assert main(["run", config]) == 0
    rejects = table(f"{latest(f'{bucket}/out')}/rejects.parquet").to_pylist()
    lost = ROWS[3]["images"][0]
    assert {(row["row"], row["reason"]) for row in rejects} == {
        (n, "image_missing") for n, row in enumerate(ROWS) if lost in row["images"]
    }


@pytest.mark.parametrize(
    ("where", "method", "words"),
    [
        ("/images/", "GET", "/corpus/images/"),
        ("samples.json", "GET", "/corpus/samples.json"),
        ("/features/", "PUT", "/out/features/"),
    ],
    ids=["images", "corpus", "output"],
)
def test_a_missing_permission_stops_the_run_and_says_where(where, method, words, tmp_path, bucket, s3, capsys):
    object_store.upload(CORPUS, f"{bucket}/corpus")
    s3.fault = lambda m, path: "403" if m == method and where in path else None
    assert main(["run", config_below(tmp_path, f"{bucket}/corpus", ["samples.json"], f"{bucket}/out")]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "permission" in said
    assert "Traceback" not in said


def test_a_store_that_fails_for_good_rejects_no_sample(tmp_path, bucket, s3, capsys):
    """The trouble is the store's: when it is over, the next run finds the samples unharmed."""
    object_store.upload(CORPUS, f"{bucket}/corpus")
    config = config_below(tmp_path, f"{bucket}/corpus", ["samples.json"], f"{bucket}/out")
    lost = ROWS[-1]["images"][0]
    s3.fault = lambda method, path: "500" if path.endswith(lost) else None
    assert main(["run", config]) == 1
    assert lost in capsys.readouterr().err
    s3.clear()
    committed = sum(file.uri.endswith(".parquet") for file in storage.list_tree(f"{bucket}/out/features"))
    assert main(["run", config]) == 0
    assert table(f"{latest(f'{bucket}/out')}/rejects.parquet").num_rows == 0
    record = json.loads(storage.read_bytes(f"{latest(f'{bucket}/out')}/run.json"))
    # what was under way when the run ended may have been committed since
    assert 0 < record["slices"]["extracted"] <= record["slices"]["total"] - committed


def test_large_objects_go_up_in_parts(bucket, s3):
    data = np.random.default_rng(0).bytes(101 << 20)
    storage.write(f"{bucket}/large", data)
    assert sum(method == "PUT" and "partNumber" in path for method, path in s3.paths) == 3
    assert storage.read_bytes(f"{bucket}/large") == data
