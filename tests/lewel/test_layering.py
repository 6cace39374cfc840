"""What may import what: the floors of the trainer, and the public names of the op."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lewel
import lewel_kernels

HOUSE = Path(lewel.__file__).parent
# From the ground up. What stands on a floor imports from lower floors and from its own folder, and from nowhere else.
FLOORS = (
    {"errors", "ranges", "whole"},
    {"console", "installed", "meeting"},
    {"distributed"},
    {"recipe"},
    {"data", "methods"},
    {"run", "watching"},
    {"evaluation"},
    {"cost"},
    {"train", "results"},
    {"start"},
    {"ablations"},
    {"api"},
    {"commands"},
    {"__init__", "cli"},
    {"__main__"},
)
SOURCES = sorted(HOUSE.rglob("*.py"))
EACH = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(HOUSE)))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, wherever in it; a name from a module follows it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: write whole names, as in from lewel.run import step"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room(name: str) -> str:
    """The folder or file of lewel/ that a dotted name below lewel lies in."""
    part = name.split(".")[1]
    return part if (HOUSE / part).is_dir() or (HOUSE / f"{part}.py").exists() else "__init__"


def test_every_folder_has_its_floor():
    there = {path.relative_to(HOUSE).parts[0].removesuffix(".py") for path in SOURCES}
    assert there == set.union(*FLOORS)


@EACH
def test_nothing_imports_upwards(path):
    own = path.relative_to(HOUSE).parts[0].removesuffix(".py")
    floor = next(number for number, rooms in enumerate(FLOORS) if own in rooms)
    allowed = set.union({own}, *FLOORS[:floor])
    for line, name in imports(path):
        if name.split(".")[0] == "lewel":
            assert room(name) in allowed, f"line {line} imports {name}, which is not below {own}"


@pytest.mark.parametrize("folder", sorted(path for path in HOUSE.iterdir() if path.is_dir() and path.name[0] != "_"),
                         ids=lambda folder: folder.name)  # fmt: skip
def test_no_files_of_a_folder_import_each_other_in_a_circle(folder):
    files = {".".join(path.relative_to(HOUSE.parent).with_suffix("").parts): path for path in folder.rglob("*.py")}
    arrows = {
        name: {other for other in files if any((known + ".").startswith(other + ".") for _, known in imports(path))}
        for name, path in files.items()
    }
    list(TopologicalSorter(arrows).static_order())  # raises CycleError, which names the files


@EACH
def test_only_public_names_of_the_op_are_used(path):
    for line, name in imports(path):
        if name.split(".")[0] == "lewel_kernels":
            assert name.count(".") < 2, f"line {line} imports {name}"
            assert name.partition(".")[2] in {"", *lewel_kernels.__all__}, f"line {line} imports {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lewel_kernels":
            assert node.attr in lewel_kernels.__all__, f"line {node.lineno} uses lewel_kernels.{node.attr}"


@EACH
def test_the_trainer_runs_without_the_benchmarks(path):
    assert not [name for _, name in imports(path) if name.split(".")[0] == "benchmarks"]
