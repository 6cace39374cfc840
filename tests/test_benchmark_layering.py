"""benchmarks/ by floors: arrows run down only, and the op is measured where only its own requirements are installed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__

ROOT = Path(__main__.__file__).parent
# From the top down. A folder may import itself and what is further down; the files beside __main__.py are the lowest.
FLOORS = ("__main__", "documents", "gpu", "training", "op", "compiled", "root")
SOURCES = sorted(ROOT.rglob("*.py"))
TRAINER = ("lewel", "torchvision", "tyro", "tqdm", "yaml", "matplotlib", "sklearn", "safetensors", "PIL")
MAY_NOT: dict[str, tuple[str, ...]] = {"gpu": TRAINER, "op": TRAINER, "compiled": TRAINER, "root": TRAINER}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it; ``from package import name`` counts as package.name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(module: str) -> str:
    """Of a module of benchmarks, by its full name."""
    part = module.split(".")[1]
    return part if part in FLOORS else "root"


def name_of(path: Path) -> str:
    return ".".join(("benchmarks", *path.relative_to(ROOT).with_suffix("").parts))


def test_every_folder_has_a_floor() -> None:
    folders = {path.parent.relative_to(ROOT).parts[0] for path in SOURCES if path.parent != ROOT}
    assert folders == set(FLOORS) - {"__main__", "root"}
    assert set(__main__.COMMANDS) <= folders


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path: Path) -> None:
    if path.name == "conftest.py":  # of pytest, which loads it by its place
        return
    mine = floor_of(name_of(path))
    modules = imported(path)
    above = set(FLOORS[: FLOORS.index(mine)])
    assert not {module for module in modules if module.startswith("benchmarks.") and floor_of(module) in above}
    assert not {module for module in modules if module.split(".")[0] in MAY_NOT.get(mine, ())}


BARE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
from benchmarks import __main__
__main__.main({arguments!r})
"""


def run_without(blocked: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = BARE.format(blocked=blocked, arguments=list(arguments))
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT.parent, env=environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--suite", "rehearsal", "--provider", "reference", "--seconds", "0.01", "--no-record"),
        ("overhead", "--help"),
        ("prologue", "--help"),
        ("first", "--help"),
        ("tune", "--help"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_op_is_measured_without_the_trainer(arguments: tuple[str, ...]) -> None:
    """On a machine with the requirements of lewel_kernels alone."""
    done = run_without((*TRAINER, "triton"), *arguments)
    assert done.returncode == 0, done.stderr
    if arguments[0] == "run":
        assert "reference   forward+backward" in done.stdout


@pytest.mark.parametrize(
    ("command", "missing", "told"),
    [
        ("step", "torchvision", "python -m benchmarks step needs torchvision: pip install '.[train]'"),
        ("build", "triton", "python -m benchmarks build needs triton: pip install triton"),
        ("plot", "matplotlib", "python -m benchmarks plot needs matplotlib: pip install '.[train]'"),
    ],
)
def test_what_a_command_lacks_is_a_sentence(command: str, missing: str, told: str) -> None:
    done = run_without((missing,), command)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == told
