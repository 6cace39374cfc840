"""The trainer uses the op through lewel_kernels' public names only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lewel
import lewel_kernels

SOURCES = sorted(Path(lewel.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_only_public_names_of_the_op_are_used(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert not alias.name.startswith("lewel_kernels."), f"line {node.lineno} imports {alias.name}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lewel_kernels":
            assert node.module == "lewel_kernels", f"line {node.lineno} imports from {node.module}"
            used = [alias.name for alias in node.names]
            assert set(used) <= set(lewel_kernels.__all__), f"line {node.lineno} imports {used}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lewel_kernels":
            assert node.attr in lewel_kernels.__all__, f"line {node.lineno} uses lewel_kernels.{node.attr}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_the_trainer_runs_without_the_benchmarks(path):
    names = [
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    ]
    assert not [name for name in names if name.split(".")[0] == "benchmarks"]
