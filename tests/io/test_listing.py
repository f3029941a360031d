"""What a path of a corpus stands for: on a disk and in a store, by name, by folder and by pattern."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalselect_ray.errors import ConfigError
from scalselect_ray.io import storage
from scalselect_ray.io.listing import expand

TREE = (
    "a.jsonl", "B.JSONL", "c.csv", "d.csv", "README", ".hidden.jsonl", "own/0.jsonl", "own/1.jsonl", "own/deep/2.jsonl",
    "x[1]/0.jsonl", "x1/0.jsonl", "{a,b}/0.jsonl", "shard-008.jsonl", "shard-009.jsonl", "shard-010.jsonl",
    "_temporary/0/part.jsonl", "own/.ipynb_checkpoints/0.jsonl", "_delta_log/0.jsonl", "own/_delta_log/1.jsonl",
)  # fmt: skip
VISIBLE = sorted(
    name for name in TREE if "/." not in f"/{name}" and "/_" not in f"/{name}" and name.lower().endswith(".jsonl")
)
PATHS = {
    "": VISIBLE,
    "own": ["own/0.jsonl", "own/1.jsonl", "own/deep/2.jsonl"],
    "a.jsonl": ["a.jsonl"],
    "c.csv": ["c.csv"],  # named outright
    ".hidden.jsonl": [".hidden.jsonl"],
    "_temporary": ["_temporary/0/part.jsonl"],
    "*.jsonl": ["a.jsonl", "shard-008.jsonl", "shard-009.jsonl", "shard-010.jsonl"],
    "*.[Jj]*": ["B.JSONL", "a.jsonl", "shard-008.jsonl", "shard-009.jsonl", "shard-010.jsonl"],
    ".*.jsonl": [".hidden.jsonl"],
    "**": VISIBLE,
    "**/*": VISIBLE,
    "**/0.jsonl": ["own/0.jsonl", "x1/0.jsonl", "x[1]/0.jsonl", "{a,b}/0.jsonl"],
    "*/*.jsonl": ["own/0.jsonl", "own/1.jsonl", "x1/0.jsonl", "x[1]/0.jsonl", "{a,b}/0.jsonl"],
    "*/**/2.jsonl": ["own/deep/2.jsonl"],
    "_*/**": ["_delta_log/0.jsonl", "_temporary/0/part.jsonl"],
    "**/_delta_log/*": ["_delta_log/0.jsonl", "own/_delta_log/1.jsonl"],
    "x[1]": ["x[1]/0.jsonl"],
    "x[1]/*.jsonl": ["x[1]/0.jsonl"],
    "x[1-3]/*.jsonl": ["x1/0.jsonl"],
    "x?/*": ["x1/0.jsonl"],
    "*/x[1]/0.jsonl": [],
    "{a,b}/*.jsonl": ["{a,b}/0.jsonl"],  # a folder of this name is there
    "shard-{008..010}.jsonl": ["shard-008.jsonl", "shard-009.jsonl", "shard-010.jsonl"],
    "{own,x1}/0.jsonl": ["own/0.jsonl", "x1/0.jsonl"],
    "{own,x1}": ["own/0.jsonl", "own/1.jsonl", "own/deep/2.jsonl", "x1/0.jsonl"],
    "{own/deep,x1}/*": ["own/deep/2.jsonl", "x1/0.jsonl"],
    "*/deep": ["own/deep/2.jsonl"],
    "{a": [],
    "nowhere": [],
    "nowhere/*.jsonl": [],
}  # fmt: skip
PASSED_OVER = {
    "": {".csv": 2, "without a suffix": 1, "hidden file": 1, "hidden folder _temporary": 1, "hidden folder "
    "_delta_log": 2,
         "hidden folder .ipynb_checkpoints": 1},
    "*": {".csv": 2, "without a suffix": 1, "hidden file": 1, "folder own": 1, "folder x[1]": 1, "folder x1": 1,
          "folder {a,b}": 1},
    "*.csv": {".csv": 2},
    "*.jsonl": {"hidden file": 1},
    "{c,d}.csv": {},
    "own/*/*.jsonl": {"hidden folder .ipynb_checkpoints": 1, "hidden folder _delta_log": 1},
}  # fmt: skip


def is_rows(name: str) -> bool:
    return name.lower().endswith(".jsonl")


@pytest.fixture(scope="module", params=["local", "memory", pytest.param("s3", marks=pytest.mark.heavy)])
def root(request, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tree"))
    if request.param == "s3":
        request.getfixturevalue("s3").clear()
        folder = "s3://bucket/tree"
    elif request.param == "memory":
        folder = f"memory://bucket{folder}"
    for name in TREE:
        storage.write(f"{folder}/{name}", b"row\n")
    return folder


def names(root: str, path: str) -> list[str]:
    """The files of a path below `root`, which are told in order."""
    files = expand(storage.absolute(f"{root}/{path}"), is_rows).files
    assert [file.uri for file in files] == sorted(file.uri for file in files)
    return [file.uri.rpartition(root.removeprefix("memory:/") + "/")[2] for file in files]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_stands_for_the_same_files_on_a_disk_and_in_a_store(path, root):
    assert names(root, path) == PATHS[path]


@pytest.mark.parametrize("path", PASSED_OVER)
def test_what_is_passed_over_is_counted_by_what_it_is(path, root):
    assert expand(storage.absolute(f"{root}/{path}"), is_rows).passed_over == PASSED_OVER[path]


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("nowhere", ["nowhere"]),
        ("nowhere/*", ["nowhere/*"]),
        ("{a,z}.jsonl", ["z.jsonl"]),
        ("shard-{007..011}.jsonl", ["shard-007.jsonl", "shard-011.jsonl"]),
        ("{own,nowhere}/*.jsonl", ["nowhere/*.jsonl"]),
        ("*.parquet", ["*.parquet"]),
        ("own/deep/*", []),
    ],
)
def test_what_stands_for_nothing_is_named(path, missing, root):
    assert expand(f"{root}/{path}", is_rows).unmatched == [f"{root}/{name}" for name in missing]


@pytest.mark.parametrize("path", ["a**.json", "x/**.json", "a{0..99999999}", "a{0..999}{0..9999}"])
def test_a_pattern_that_is_none_is_refused(path, tmp_path):
    with pytest.raises(ConfigError, match=r"alone between two slashes|more than 1,048,576 names"):
        expand(str(tmp_path / path))


def test_a_bucket_may_be_one_of_several():
    for number in "12":
        storage.write(f"memory://b{number}/a.jsonl", b"")
    found = expand("memory://b{1,2}/*.jsonl").files
    assert [file.uri for file in found] == ["memory:///b1/a.jsonl", "memory:///b2/a.jsonl"]


PARTS = st.sampled_from(["a", "ab", "b.c", "*", "a*", "?", "[ab]*", "**"])
FILES = st.lists(st.sampled_from(["a", "ab", "b.c"]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.lists(FILES, max_size=8), pattern=st.lists(PARTS, min_size=1, max_size=4))
def test_a_pattern_matches_what_pathlib_matches(tree, pattern, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for parts in tree:
        path = root.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    text = "/".join(pattern)
    expected = {path for path in root.glob(text + ("/*" if pattern[-1] == "**" else "")) if path.is_file()}
    named = [path for path in root.glob(text) if path.is_dir() and pattern[-1] == path.name]
    expected |= {path for folder in named for path in folder.rglob("*") if path.is_file()}
    assert {file.uri for file in expand(str(root / text)).files} == set(map(str, expected))


@pytest.fixture
def linked(tmp_path) -> Path:
    """A corpus with links of every kind: to a folder and a file elsewhere, to what is there already, to nothing, to
    itself and to what it lies in."""
    for name in ("corpus/own/0.jsonl", "elsewhere/set/1.jsonl", "elsewhere/set/deep/2.jsonl", "blobs/3"):
        storage.write(str(tmp_path / name), b"")
    links = {"far": "elsewhere/set", "again": "corpus/own", "itself": "corpus/own", "own/up": "corpus",
             "3.jsonl": "blobs/3", "4.jsonl": "nothing", "own/same.jsonl": "corpus/own/0.jsonl"}  # fmt: skip
    for name, target in links.items():
        (tmp_path / "corpus" / name).symlink_to(tmp_path / target)
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ["3.jsonl", "far/1.jsonl", "far/deep/2.jsonl", "own/0.jsonl"]),
        ("**", ["3.jsonl", "far/1.jsonl", "far/deep/2.jsonl", "own/0.jsonl"]),
        ("**/*.jsonl", ["3.jsonl", "far/1.jsonl", "far/deep/2.jsonl", "own/0.jsonl"]),
        ("*.jsonl", ["3.jsonl"]),
        ("*/*.jsonl", ["far/1.jsonl", "own/0.jsonl"]),
        ("far", ["far/1.jsonl", "far/deep/2.jsonl"]),
        ("far/*", ["far/1.jsonl"]),
        ("{far,own}/*.jsonl", ["far/1.jsonl", "own/0.jsonl"]),
        ("again", ["again/0.jsonl", "again/up/3.jsonl", "again/up/far/1.jsonl", "again/up/far/deep/2.jsonl"]),
        ("again/*.jsonl", ["again/0.jsonl"]),
        ("3.jsonl", ["3.jsonl"]),
    ],
)
def test_links_are_followed_and_each_file_is_there_once(path, found, linked):
    assert names(str(linked), path) == found


def test_what_links_lead_to_is_told(linked):
    listing = expand(str(linked), is_rows)
    assert listing.passed_over == {"link to nothing": 1, "link to what is read already": 1}
    assert str(linked.parent / "elsewhere" / "set") in listing.linked


def test_circles_of_links_end(tmp_path):
    """Twelve folders, each with links to all: there are more ways than could be gone."""
    for number in range(12):
        storage.write(str(tmp_path / f"f{number}" / "0.jsonl"), b"")
        for other in range(12):
            (tmp_path / f"f{number}" / f"to{other}").symlink_to(tmp_path / f"f{other}")
    assert names(str(tmp_path), "") == [f"f{number}/0.jsonl" for number in sorted(range(12), key=str)]
    assert len(names(str(tmp_path), "**/*.jsonl")) == 12
    assert names(str(tmp_path), "f3/to4") == ["f3/to4/0.jsonl", *(
        f"f3/to4/to{number}/0.jsonl" for number in sorted(set(range(12)) - {4}, key=str))]  # fmt: skip


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path, monkeypatch):
    """What cannot be seen must not look as if it were not there."""
    storage.write(str(tmp_path / "a" / "0.jsonl"), b"")
    scandir = os.scandir

    def refusing(path):
        if path == str(tmp_path / "a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match=str(tmp_path / "a")):
        expand(str(tmp_path))
