"""Tests of what a user or packager of the distribution relies on."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import sae_lens_hierarchical

ROOT = Path(__file__).parents[1]


def test_the_module_runs_the_command_line_and_says_its_version() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sae_lens_hierarchical", "--version"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )

    version = sae_lens_hierarchical.__version__
    assert result.stdout == f"sae-lens-hierarchical {version}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_the_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert f"\n## [{sae_lens_hierarchical.__version__}] - " in changelog


def test_every_imported_package_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = (
        project["dependencies"] + project["optional-dependencies"]["saebench"]
    )
    declared = {
        normalized(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements
    }
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "sae_lens_hierarchical").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in imports(node)
    } - {"sae_lens_hierarchical", *sys.stdlib_module_names}
    distributions = packages_distributions()
    # One that is not installed here, as SAEBench, has its package's name.
    undeclared = {
        name
        for name in imported
        if declared.isdisjoint(map(normalized, distributions.get(name, [name])))
    }

    assert "torch" in imported
    assert not undeclared


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
