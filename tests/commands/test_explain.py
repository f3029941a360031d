"""Why a sample has its score, against what the run stored and a computation of everything at once."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mixed_corpus import Selected, manifest_of
from safetensors.numpy import load_file

from scalselect_ray.cli import main


def explain(
    mixed: Selected, sample: str, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["explain", str(mixed.output), sample, "--json", *options]) == 0
    said = capsys.readouterr()
    return json.loads(said.out), " ".join(said.err.split())


def scores_of(output: Path) -> list[dict[str, Any]]:
    run = output / "runs" / json.loads((output / "latest.json").read_text())["run_id"]
    return pa.concat_tables([pq.read_table(path) for path in sorted((run / "scores").iterdir())]).to_pylist()


def test_a_chosen_sample_is_explained_by_tokens_rank_and_directions(
    mixed: Selected, capsys: pytest.CaptureFixture[str]
):
    scores = scores_of(mixed.output)
    row = next(row for row in manifest_of(mixed.output) if row["rank"] == 3)
    answer, said = explain(mixed, f"{row['shard']}:{row['row']}", capsys)
    assert answer["matches"][0]["score"] == row["score"]
    assert answer["rank"] == 3
    assert answer["scored"] == len(scores)
    assert answer["below"] == sum(other["score"] < row["score"] for other in scores)
    assert answer["place"] == 1 + sum(other["score"] > row["score"] for other in scores)
    assert answer["percentile"] == pytest.approx(100 * answer["below"] / len(scores))
    assert f"chosen, rank 3 of {sum(other['score'] is not None for other in manifest_of(mixed.output))}" in said

    tables = [pq.read_table(path) for path in mixed.output.glob("features/*/*.parquet")]
    stored = [other for table in tables for other in table.to_pylist()]
    ours = next(
        other
        for other in stored
        if (other["source"], other["shard"], other["row"]) == (row["source"], row["shard"], row["row"])
    )
    assert answer["tokens"] == {name: ours[name] for name in answer["tokens"]}
    arrays = load_file(mixed.output / "runs" / mixed.run_id / "subspace.safetensors")
    contribution = (
        (np.array(ours["feature"], np.float64) - arrays["mean"]) @ arrays["basis"] / arrays["singular_values"]
    ) ** 2
    order = np.argsort(-contribution)[:10]
    assert [item["number"] for item in answer["directions"]] == [place + 1 for place in order]
    np.testing.assert_allclose([item["contribution"] for item in answer["directions"]], contribution[order], rtol=1e-9)
    np.testing.assert_allclose(
        [item["share"] for item in answer["directions"]], contribution[order] / row["score"], rtol=1e-6
    )
    energy = arrays["spectrum"] ** 2 / np.sum(arrays["spectrum"] ** 2)
    np.testing.assert_allclose([item["energy"] for item in answer["directions"]], energy[order], rtol=1e-9)
    assert answer["k"] == len(contribution)


def test_a_sample_that_was_not_chosen_is_told_how_far_it_is_below_the_cutoff(
    mixed: Selected, capsys: pytest.CaptureFixture[str]
):
    worst = min(scores_of(mixed.output), key=lambda row: row["score"])
    cutoff = min(row["score"] for row in manifest_of(mixed.output) if row["score"] is not None)
    answer, said = explain(mixed, f"{worst['source']}:{worst['shard']}:{worst['row']}", capsys, "--run", mixed.run_id)
    assert answer["rank"] is None
    assert answer["cutoff"] == cutoff
    assert answer["below"] == 0
    assert f"not chosen: {100 * (1 - worst['score'] / cutoff):.2g}% below the cutoff" in said


def test_with_quotas_the_line_is_that_of_the_samples_source(
    mixed: Selected, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = Selected(tmp_path / "output", mixed.folder, mixed.rows)
    shutil.copytree(mixed.output, copy.output)
    config = copy.output / "runs" / copy.run_id / "config.yaml"
    kept = yaml.safe_load(config.read_text())
    kept["selection"]["per_source"] = {"tar": {"cap": 1.0}}
    config.write_text(yaml.safe_dump(kept))
    worst = min((row for row in scores_of(copy.output) if row["source"] == "tar"), key=lambda row: row["score"])
    answer, _ = explain(copy, f"tar:{worst['shard']}:{worst['row']}", capsys)
    assert answer["cutoff"] == min(
        row["score"] for row in copy.manifest if row["source"] == "tar" and row["score"] is not None
    )

    for path in copy.output.glob("features/*/*.parquet"):
        path.unlink()
    answer, said = explain(copy, f"tar:{worst['shard']}:{worst['row']}", capsys)
    assert answer["tokens"] is None
    assert answer["directions"] == []
    assert "its feature file is gone" in said


def test_the_end_of_a_files_name_is_enough(mixed: Selected, capsys: pytest.CaptureFixture[str]):
    answer, _ = explain(mixed, "rows.parquet:5", capsys)
    assert [(match["source"], match["row"]) for match in answer["matches"]] == [("parquet", 5)]


def test_samples_of_one_id_are_listed_by_their_places(mixed: Selected, capsys: pytest.CaptureFixture[str]):
    answer, said = explain(mixed, "the same", capsys)
    rows = [row for row in scores_of(mixed.output) if row["id"] == "the same"]
    assert len(answer["matches"]) == min(len(rows), 50)
    assert "directions" not in answer
    assert f"{len(rows)} samples are called the same" in said or f"{len(rows)} (50 are shown) samples" in said
    first = answer["matches"][0]
    again, _ = explain(mixed, f"{first['source']}:{first['shard']}:{first['row']}", capsys)
    assert again["matches"] == [first]


def test_a_sample_without_an_image_says_so(mixed: Selected, capsys: pytest.CaptureFixture[str]):
    row = next(row for row in manifest_of(mixed.output) if row["score"] is None)
    answer, said = explain(mixed, f"{row['shard']}:{row['row']}", capsys)
    assert answer["matches"][0]["reason"] == "text_only"
    assert "it has no score: text_only: kept" in said


def test_what_is_not_there_is_an_error_of_the_input(mixed: Selected, capsys: pytest.CaptureFixture[str]):
    for arguments, message in (
        (["no such id"], "has no sample 'no such id'"),
        (["rows.parquet:999999"], "SHARD:ROW"),
        (["x", "--run", "20200101T000000000Z-00000000"], "is not there"),
    ):
        assert main(["explain", str(mixed.output), *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
