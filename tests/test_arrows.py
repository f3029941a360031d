"""Who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scalselect_ray"
PURE = ("io", "corpus", "vlm", "subspace", "selection", "store")
FORBIDDEN = {
    **{
        folder: {"ray", "scalselect_ray.cluster", "scalselect_ray.job", "scalselect_ray.commands", "scalselect_ray.cli"}
        for folder in PURE
    },
    "cluster": {"scalselect_ray.job", "scalselect_ray.commands", "scalselect_ray.cli"},
    "commands": {"scalselect_ray.cli"},
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with the packages around it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{item.name}" for item in node.names)}
    return {".".join(name.split(".")[:depth]) for name in names for depth in range(1, 4)}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_point_one_way(folder):
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(PACKAGE)): found for path in files if (found := imported(path) & FORBIDDEN[folder])}
    assert not wrong
