"""Tests that imports in the package go one way: from higher layers to lower ones."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import sae_lens_hierarchical

FOLDER = Path(sae_lens_hierarchical.__file__).parent
# From low to high. A part may import parts of lower layers, and its own modules.
LAYERS = [
    {"defaults", "files", "ops", "registration", "spelling"},
    {"saes"},
    {"data"},
    {"loading"},
    {"training"},
    {""},  # the package's own __init__
    {"eval"},
    {"features", "figures", "saebench"},
    {"export", "report"},
    {"comparison", "hub", "quickstart"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PATHS = {module_name(path): path for path in FOLDER.rglob("*.py")}


def imports(module: str) -> set[str]:
    """Return the modules that one imports, anywhere in it: in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(PATHS[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}:{node.lineno} is a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # What is no module of ours is a name in one.
            found |= {name if name in PATHS else node.module for name in names}
    return found


def part(module: str) -> str:
    return f"{module}.".split(".")[1]


IMPORTS = {module: imports(module) for module in PATHS}


def test_every_part_has_a_layer() -> None:
    assert {part(module) for module in PATHS} == HEIGHT.keys()


@pytest.mark.parametrize("module", sorted(PATHS))
def test_imports_go_to_lower_layers(module: str) -> None:
    higher = {
        imported
        for imported in IMPORTS[module] & PATHS.keys()
        if part(imported) != part(module)
        and HEIGHT[part(imported)] >= HEIGHT[part(module)]
    }

    assert not higher


def test_modules_import_each_other_in_no_circle() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, naming it


@pytest.mark.parametrize(
    ("package", "only_in"), [("sae_bench", "saebench"), ("triton", "ops")]
)
def test_optional_packages_are_imported_in_one_place(
    package: str, only_in: str
) -> None:
    importing = {
        part(module)
        for module, imported in IMPORTS.items()
        if any(name.split(".")[0] == package for name in imported)
    }

    assert importing == {only_in}
