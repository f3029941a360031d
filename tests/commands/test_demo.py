"""The demo writes where nothing of others is."""

from pathlib import Path

import pytest

from scalselect_ray.cli import main
from scalselect_ray.commands import demo
from scalselect_ray.errors import OutputError


@pytest.fixture(autouse=True)
def without_a_model(monkeypatch):
    monkeypatch.setattr(demo, "make_model", lambda folder: (folder.mkdir(), (folder / "model.safetensors").touch()))
    monkeypatch.setattr(demo, "_SAMPLES", 2)


@pytest.mark.parametrize(
    "names", [["config.yaml"], ["notes.txt"], ["corpus/train.json"], ["model/config.json"], [".git/config"]], ids=str
)
def test_a_folder_with_other_files_is_refused_and_left_as_it_is(names, tmp_path, capsys):
    for name in names:
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["demo", str(tmp_path / "here")]) == 2
    said = capsys.readouterr().err
    assert "holds files that no demo has written" in said
    assert names[0].split("/")[0] in said
    assert sorted(tmp_path.rglob("*")) == before
    assert all((tmp_path / "here" / name).read_text() == "mine" for name in names)


def test_a_file_is_no_folder_for_it(tmp_path):
    (tmp_path / "here").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        demo.make_demo(str(tmp_path / "here"))


def test_it_writes_into_a_new_or_empty_folder_and_again_into_its_own(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/below"):
        first = {path: path.read_bytes() for path in files(demo.make_demo(str(tmp_path / name)))}
        assert {path: path.read_bytes() for path in files(demo.make_demo(str(tmp_path / name)))} == first
        (tmp_path / name / "output").mkdir()
        (tmp_path / name / "corpus" / "shapes.json").unlink()  # as if it had been interrupted
        demo.make_demo(str(tmp_path / name))
        (tmp_path / name / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"notes\.txt"):
            demo.make_demo(str(tmp_path / name))


def files(config: str) -> list[Path]:
    return sorted(path for path in Path(config).parent.rglob("*") if path.is_file())
