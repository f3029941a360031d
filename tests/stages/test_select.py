"""From score files to a manifest of many parts, against a plain sort."""

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalselect_ray.io import storage
from scalselect_ray.report import compare
from scalselect_ray.stages import select
from scalselect_ray.stages.score import ScoredPart, Scores
from scalselect_ray.store.layout import RunFolder
from scalselect_ray.store.record import Angles, Change
from scalselect_ray.store.subspace import write_subspace
from scalselect_ray.store.tables import MANIFEST, SCORES, value_counts, write_part
from scalselect_ray.subspace import dominant_subspace, fit_transform, of_rows


def made_up(folder: str, files: int, rows: int) -> tuple[Scores, pa.Table]:
    """Score files with many ties, and all their rows."""
    scores = np.random.default_rng(0).integers(0, 60, (files, rows)) / 50.0
    scores[0, 0] = 1e30  # far above the others
    tables = []
    for file in range(files):
        names = pa.array([f"s{(file * rows + row) % 3}" for row in range(rows)])
        columns = [
            names,
            pa.array([f"/shard/{file}"] * rows),
            pa.array(range(rows)),
            pa.array([f"{file}-{row}" for row in range(rows)]),
        ]
        tables.append(pa.table([*columns, pa.array(scores[file])], schema=SCORES))
        sink = pa.BufferOutputStream()
        pq.write_table(tables[-1], sink)
        storage.write(f"{folder}/scores/{file:05d}.parquet", sink.getvalue().to_pybytes())
    table = pa.concat_tables(tables)
    parts = [ScoredPart(rows, value_counts(table["source"]), {}, {}, {}, 0.0, 1e30) for table in tables]
    return Scores([f"{folder}/scores/{file:05d}.parquet" for file in range(files)], parts, [], []), table


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("quotas", [{}, {"s1": (None, 0.2), "s2": (0.5, None)}], ids=["one group", "quotas"])
def test_each_score_file_is_read_once_for_all_parts_of_the_manifest(quotas, s3, monkeypatch):
    monkeypatch.setattr(select, "_SHUFFLE_ROWS", 250)
    folder = f"s3://bucket/{uuid.uuid4().hex}"
    scored, table = made_up(folder, 9, 100)
    reads = []
    for rows in (10_000, 40):
        monkeypatch.setattr(select, "_PART_ROWS", rows)
        s3.clear()
        by_source = select.choose(scored, 500, quotas, RunFolder(f"{folder}/{rows}"))
        gets = [path for method, path in s3.paths if method == "GET" and "/scores/" in path]
        reads.append({uri: sum(uri.endswith(path.partition("?")[0]) for path in gets) for uri in scored.uris})
    assert reads[0] == reads[1]

    names = storage.list_names(f"{folder}/40/manifest")
    parts = [pq.read_table(pa.BufferReader(storage.read_bytes(f"{folder}/40/manifest/{name}"))) for name in names]
    manifest = pa.concat_tables(parts)
    assert len(parts) > 8
    assert manifest["rank"].to_pylist() == list(range(1, 501))
    assert by_source == {
        name: sum(source == name for source in manifest["source"].to_pylist()) for name in scored.sources
    }
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    sources = np.array(table["source"].to_pylist())[order]
    inside = np.ones(len(order), bool)
    if quotas:
        sizes = {"s1": 100, "s2": 250, "s0": 150}
        inside = np.array([np.sum(sources[:place] == source) < sizes[source] for place, source in enumerate(sources)])
    assert manifest["id"].to_pylist() == np.array(table["id"].to_pylist())[order[inside][:500]].tolist()


@pytest.mark.usefixtures("cluster")
def test_two_manifests_are_compared_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_TASK_ROWS", 7)
    some = of_rows(np.random.default_rng(0).normal(size=(9, 4)))
    transform = fit_transform(some, standardize=False, l2_normalize=False)
    subspace = dominant_subspace(some, transform, None, 0.9)
    for name, rows in (("before", range(50)), ("after", range(20, 90))):
        for part in (0, 1):
            some = [row for row in rows if row % 2 == part]
            table = pa.table(
                {
                    "source": ["s"] * len(some),
                    "shard": [f"{row // 30}" for row in some],
                    "row": [row % 30 for row in some],
                }
            )
            (tmp_path / name / "manifest").mkdir(parents=True, exist_ok=True)
            write_part(
                str(tmp_path / name / "manifest" / f"{part}.parquet"), table.replace_schema_metadata(MANIFEST.metadata)
            )
        write_subspace(str(tmp_path / name / "subspace.safetensors"), subspace)
    found = compare.compare(RunFolder(str(tmp_path / "after")), RunFolder(str(tmp_path / "before")), 70)
    angles = Angles(mean=0.0, largest=0.0)
    assert found == Change(previous="before", kept=30, entered=40, left=20, principal_angles_degrees=angles)
