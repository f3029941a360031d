"""Who may import whom: the rooms of the package, and single files where a room is mixed.

A row knows what it names and no more, whether it imports it at its top or in a function. Rows stand in order: each
names only rows above it, so that no two rooms import each other.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scalselect_ray"
OUTSIDE = {"ray", "torch", "transformers"}
PURE = (  # no Ray
    "redaction errors filters console io config source_lists config_files selection subspace corpus vlm store"
)
MAY_IMPORT = {
    # no Ray, no stage, no verb
    "redaction": "",
    "errors": "redaction",
    "filters": "",
    "console": "redaction",
    "io": "errors",
    "config": "errors filters",
    "source_lists": "errors io",
    "config_files": "redaction errors io config source_lists",
    "selection": "errors",
    "subspace": "errors",
    "corpus": "redaction errors filters io",
    "vlm": "errors io config corpus torch transformers",
    "store": "redaction errors console io config config_files subspace corpus",
    "testing": "errors io config corpus torch transformers",
    "exports": "redaction errors console io corpus store",
    "report": "redaction errors console io corpus vlm store",
    # Ray
    "cluster": f"{PURE} ray",
    "exports/flow exports/parts exports/sorting exports/chosen": f"{PURE} cluster exports ray",
    "report/gather report/samples report/compare report/write": f"{PURE} cluster report ray",
    "stages": f"{PURE} cluster report/write report/compare ray torch",
    # the method, and the ways in
    "job": f"{PURE} cluster stages ray",
    "commands": f"{PURE} stages job testing torch transformers",
    "api": f"{PURE} commands ray",
    "__init__": "api config",
    "cli": f"{PURE} cluster exports/flow report/write commands",
    "__main__": "cli",
}
ROW_OF = {name: row for row in MAY_IMPORT for name in row.split()}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def row_of(file: Path) -> str:
    """The row of a file: its own, or that of its room."""
    name = file.with_suffix("").as_posix()
    return ROW_OF.get(name) or ROW_OF[name.split("/")[0]]


def imported(file: Path) -> set[str]:
    """The rows, and the libraries from outside, that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{item.name}" for item in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first in OUTSIDE:
                found.add(first)
            elif first == "scalselect_ray" and rest != ["__version__"]:
                found.add(row_of(_file(rest)))
    return found


def _file(names: list[str]) -> Path:
    """The file in which a dotted name of the package is found."""
    for depth in range(len(names), 0, -1):
        path = Path(*names[:depth])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (PACKAGE / file).is_file():
                return file
    return Path("__init__.py")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_what_its_row_names(file):
    row = row_of(file)
    assert imported(file) - {row} <= {ROW_OF.get(name, name) for name in MAY_IMPORT[row].split()}


def test_each_row_names_rows_above_it():
    known = set(OUTSIDE)
    for row, names in MAY_IMPORT.items():
        assert set(names.split()) <= known, row
        known |= set(row.split())


def test_each_row_is_of_files_that_are_there():
    assert {
        name for name in ROW_OF if not (PACKAGE / f"{name}.py").is_file() and not (PACKAGE / name).is_dir()
    } == set()
