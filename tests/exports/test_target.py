"""The folder of an export: refused where a run would read it, and claimed by one export at a time."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock

import pytest

from scalselect_ray.config_files import parse_config
from scalselect_ray.corpus.location import covers
from scalselect_ray.errors import OutputError
from scalselect_ray.exports import target
from scalselect_ray.exports.target import check_location, claim_of, claimed
from scalselect_ray.io import storage
from scalselect_ray.io.listing import expand
from scalselect_ray.store.layout import format_name

A, B = ({"run_id": "r", "to": name, "images": None} for name in ("a", "b"))


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "x") if request.param == "local" else f"memory://claims{tmp_path}/x"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_SETTLE_S", 0.3)
    monkeypatch.setattr(target, "_LOOK_S", 0.01)


def all_at_once(folder: str, count: int = 8) -> list[int]:
    """Which of so many different exports got the folder; each holds it until all have asked."""
    began, ended, lock = Barrier(count), Barrier(count), Lock()
    winners: list[int] = []
    refusals: list[str] = []

    def begin(number: int) -> None:
        began.wait()
        try:
            with claimed(folder, {"run_id": "r", "to": str(number), "images": None}):
                with lock:
                    winners.append(number)
                ended.wait()
        except OutputError as error:
            with lock:
                refusals.append(str(error))
            ended.wait()

    with ThreadPoolExecutor(count) as threads:
        list(threads.map(begin, range(count)))
    assert all("holds another export" in said for said in refusals)
    return winners


def test_of_exports_at_once_one_has_the_folder(root):
    for attempt in range(5):
        assert len(all_at_once(f"{root}-{attempt}")) == 1


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional writes", "without"])
def test_of_exports_at_once_one_has_the_folder_in_a_bucket(conditional, s3, tmp_path, monkeypatch):
    s3.clear()
    if not conditional:
        monkeypatch.setattr(storage, "_CONDITIONAL", ())
    assert len(all_at_once(f"s3://bucket{tmp_path}/x", 4)) == 1


def test_an_object_is_created_once(s3, tmp_path):
    s3.clear()
    for uri in (str(tmp_path / "new" / "a"), f"s3://bucket{tmp_path}/a"):
        assert storage.create(uri, b"first")
        assert not storage.create(uri, b"second")
        assert storage.read_bytes(uri) == b"first"


def test_a_store_that_throttles_makes_a_claim_none_the_less(s3, tmp_path):
    from scalselect_ray.testing.object_store import every

    s3.clear()
    s3.fault = every(2, ["503"], "claimed")
    try:
        with claimed(f"s3://bucket{tmp_path}/claimed", A):
            assert json.loads(storage.read_bytes(claim_of(f"s3://bucket{tmp_path}/claimed"))) == A
    finally:
        s3.clear()


def test_a_folder_that_another_finished_meanwhile_is_left_as_it_is(root, monkeypatch):
    """The other one begins, ends and removes its claim between our look and our claim."""
    create = storage.create

    def late(uri: str, data: bytes) -> bool:
        storage.write(storage.join(root, "export.json"), json.dumps({**B, "format": format_name("export")}).encode())
        return create(uri, data)

    monkeypatch.setattr(storage, "create", late)
    with pytest.raises(OutputError, match=r"holds another export \(b of run r\)"), claimed(root, A):
        pytest.fail("the folder is another's")


def test_a_claim_under_which_nothing_was_written_is_given_back(root):
    with pytest.raises(RuntimeError), claimed(root, A):
        raise RuntimeError
    with claimed(root, B):
        storage.write(storage.join(root, "data.json"), b"[")
    with pytest.raises(RuntimeError), claimed(root, B):
        raise RuntimeError
    with pytest.raises(OutputError, match="holds another export"), claimed(root, A):
        pytest.fail("something of B lies there")
    with claimed(root, B):
        assert storage.read_bytes(storage.join(root, "data.json")) == b"["


def test_a_claim_that_says_nothing_is_named(tmp_path):
    """Of a process that was killed between making the file and writing it."""
    root = str(tmp_path)
    storage.write(claim_of(root), b"")
    with pytest.raises(OutputError, match=r"\.spool/export\.json does not say .* remove it"), claimed(root, A):
        pytest.fail("nobody knows whose folder it is")


def test_an_export_of_another_version_is_named(root):
    storage.write(storage.join(root, "export.json"), json.dumps({**A, "format": "scalselect.export/9"}).encode())
    with pytest.raises(OutputError, match=r"scalselect\.export/9.*scalselect\.export/1"), claimed(root, A):
        pytest.fail("of another version")


def test_files_of_others_are_never_touched(root):
    storage.write(storage.join(root, "mine.txt"), b"mine")
    with pytest.raises(OutputError, match="is not empty"), claimed(root, A):
        pytest.fail("not ours")
    assert storage.list_names(root) == ["mine.txt"]
    assert not storage.exists(claim_of(root))


LOCATIONS = [
    ("/c", "/c/chosen", True),
    ("/c", "/c", True),
    ("/c", "/c2/chosen", False),
    ("/c/", "/c/a/b", True),
    ("/c/*.json", "/c/chosen", False),
    ("/c/*", "/c/chosen", False),
    ("/c/*/a.json", "/c/chosen", True),
    ("/c/*/a.json", "/c/chosen/deeper", False),
    ("/c/v?/*", "/c/v1", True),
    ("/c/v?/*", "/c/w1", False),
    ("/c/**/*.json", "/c/a/b/c", True),
    ("/c/**", "/c/a", True),
    ("/c/[ab]/*", "/c/a", True),
    ("s3://b/c", "s3://b/c/x", True),
    ("s3://b/c", "s3://b/cc/x", False),
    ("s3://b/*.json", "/b/x", False),
]


@pytest.mark.parametrize(("path", "folder", "refused"), LOCATIONS)
def test_no_run_would_read_an_export_as_its_corpus(path, folder, refused, monkeypatch):
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    config = parse_config(
        f"corpus: {{sources: [{{name: s, paths: ['{path}']}}]}}\n"
        "extractor: {model: /m}\nselection: {budget: 0.5}\noutput: /out\n"
    )
    if refused:
        with pytest.raises(OutputError, match=r"lies below .* \(source 's'\)"):
            check_location(folder, config.corpus, "/out")
    else:
        check_location(folder, config.corpus, "/out")


def test_the_rule_agrees_with_the_listing(tmp_path):
    """A path covers a folder where the listing finds some file below it."""
    for name in ("a", "v1", "w", "a/b"):
        (tmp_path / name).mkdir()
    for pattern in ["", "*", "*.json", "*/*.json", "v?/*", "**", "**/*.json", "[ab]/*", "*/b/*", "a/*", "?/data/*",
                    "{a,w}/*", "{a,v1}", "*/data", "{a/b,v2}/**", "[a/b", "_*/**"]:  # fmt: skip
        path = str(tmp_path / pattern) if pattern else str(tmp_path)
        for folder in ("a", "v1", "w", "a/b"):
            written = [tmp_path / folder / name for name in ("data.json", "data/0.json", "b/0.json", "b/b/0.json")]
            for file in written:
                file.parent.mkdir(exist_ok=True, parents=True)
                file.write_text("[]")
            found = {file.uri for file in expand(path).files} & {str(file) for file in written}
            for file in written:
                file.unlink()
            assert covers(path, str(tmp_path / folder)) == bool(found), (pattern, folder)


def test_an_export_into_the_output_folder_is_refused(tmp_path):
    config = parse_config(
        "corpus: {sources: [{name: s, paths: [/c]}]}\nextractor: {model: /m}\nselection: {budget: 0.5}\noutput: /out\n"
    )
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "link").symlink_to(output)
    for folder in (output, output / "runs" / "x", tmp_path / "link" / "x"):
        with pytest.raises(OutputError, match="lies in the output folder"):
            check_location(str(folder), config.corpus, str(output))
    check_location(str(tmp_path / "out2"), config.corpus, str(output))
