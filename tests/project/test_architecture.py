"""docs/architecture.md tells the truth: its layers are those of the imports, and the files that it names exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "lm_eval_spt"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LAYERS = re.findall(r"^\d+\. `(\w+)/`:", PAGE, flags=re.MULTILINE)  # from the top down


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST, package: str, modules: set[str]) -> Iterator[tuple[str, int]]:
    """Give the modules that are imported anywhere in a module, and in which line: in functions, too.

    Args:
        tree: the module's syntax tree.
        package: the package that the module is in, or is.
        modules: all that count.
    """
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            names = [inner if (inner := f"{base}.{alias.name}") in modules else base for alias in node.names]
        for name in names:
            if name in modules:
                yield name, node.lineno


def imports() -> Iterator[tuple[str, str, int]]:
    """Give (module, what it imports, line) for every import of one module of the package by another."""
    for module, path in MODULES.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name, line in imported(ast.parse(path.read_text(encoding="utf-8")), package, set(MODULES)):
            if name != module:
                yield module, name, line


def layer(module: str) -> int:
    """Return a module's layer: 0 for the package's door, which may import anything, then as the page counts."""
    parts = module.split(".")
    return LAYERS.index(parts[1]) + 1 if len(parts) > 1 and parts[1] != "__main__" else 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import p.a.x", ["p.a.x"]),
        ("from p.a import x, something", ["p.a.x", "p.a"]),
        ("from p.a.x import function", ["p.a.x"]),
        ("from . import x", ["p.a.x"]),
        ("from ..b import y", ["p.b.y"]),
        ("from .x import function", ["p.a.x"]),
        ("def function():\n    from p.b.y import z", ["p.b.y"]),
        ("import torch", []),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: list[str]) -> None:
    modules = {"p", "p.a", "p.a.x", "p.b", "p.b.y"}
    assert [name for name, _ in imported(ast.parse(source), "p.a", modules)] == expected


def test_the_page_lists_every_folder_and_no_other() -> None:
    assert len(LAYERS) == len(set(LAYERS)) and set(LAYERS) == {
        path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()
    }
    folders = {
        path.parent.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    } - {"."}
    named = set(re.findall(r"`([a-z_/]+)/`", PAGE))
    # The others on the page, such as tests/, belong to the repository.
    assert {name for name in named if not (ROOT / name).is_dir()} == folders


def test_imports_point_downwards() -> None:
    upward = [
        f"{module}, line {line}, imports {name}" for module, name, line in imports() if layer(module) > layer(name)
    ]
    assert not upward


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, name, _ in imports():
        graph[module].add(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_file_that_the_page_names_exists() -> None:
    files = re.findall(r"`([\w./]+\.(?:py|js|csv|md))`", PAGE)
    missing = [name for name in files if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()]
    assert len(files) > 50 and not missing
