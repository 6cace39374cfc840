"""What an extension is: the sources it depends on, and how they are compiled. targets.py has the extensions."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from lewel_kernels.native import nvcc
from lewel_kernels.native.toolchain import Compiler, find_compiler, header_folders, torch_folder

# The oldest stable ABI of torch that has parallel_for.
ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"


@dataclass(frozen=True)
class Tools:
    """The programs that compile a target, found on this machine."""

    compiler: Compiler
    nvcc: nvcc.Nvcc | None = None


@dataclass(frozen=True)
class Target:
    """An extension; this class describes one that a C++ compiler alone can build."""

    name: str
    module: str

    @property
    def library(self) -> str:
        return f"{self.module}.so"

    @property
    def command(self) -> str:
        """The command that builds it ahead of time, as messages tell it."""
        return "python -m lewel_kernels.build"

    def notice(self, tools: Tools) -> str:
        """The text to print before it is compiled."""
        return f"compiling the {self.name} backend, once; this takes some ten seconds"

    def check(self) -> None:
        """Raise a BuildError where neither a build in the cache nor any tool would help."""

    def find_tools(self) -> Tools:
        return Tools(find_compiler())

    def versions(self, tools: Tools) -> list[str]:
        """Command and version of each tool, for the build's name. Raises a BuildError if they cannot build it."""
        return [*tools.compiler.command, tools.compiler.version]

    def inputs(self) -> list[str]:
        """All else that the build's name depends on: flags, torch, Python, machine, paths and text of the sources."""
        # A Python without the GIL has another ABI under the same cache_tag.
        python = [sys.implementation.cache_tag, sysconfig.get_config_var("EXT_SUFFIX"), getattr(sys, "abiflags", None)]
        inputs = [*self.flags(), torch.__version__, *map(str, python), platform.machine()]
        for path in self.files():
            inputs += [Path(os.path.relpath(path, sources())).as_posix(), path.read_text()]
        return inputs

    def files(self) -> list[Path]:
        """The source files, in a fixed order."""
        raise NotImplementedError

    def units(self) -> list[str]:
        """The files to compile: paths below csrc/, or absolute ones. Only the last is compiled with the `facts`."""
        raise NotImplementedError

    def flags(self) -> list[str]:
        """Flags of the kernels' compiler, except those that only say where headers are."""
        raise NotImplementedError

    def folders(self) -> list[Path]:
        """Where the headers of the sources are looked for, in order."""
        return [sources()]

    def facts(self, tools: Tools) -> dict[str, str]:
        """The macros that build_info.cpp, the last of the units, reads: what it tells of the build."""
        return {"LEWEL_FLAGS": string(" ".join(self.flags())), "LEWEL_TORCH": string(torch.__version__)}

    def write(self, folder: Path, tools: Tools) -> None:
        """Writes build.ninja, which is to be run in the folder. Raises a BuildError where headers are missing."""
        # In a file, as what nvcc passes on must not have commas in it.
        facts = [f"#define {name} {value}\n" for name, value in self.facts(tools).items()]
        (folder / "facts.h").write_text("".join(facts))
        units = [Path(unit) for unit in self.units()]
        lines = [
            "ninja_required_version = 1.3",
            *self.commands(tools),
            *(f"build {unit.name}.o: {unit.suffix[1:]} {_path(sources() / unit)}" for unit in units),
            "  facts = -include facts.h",
            f"build {self.library}: link {' '.join(f'{unit.name}.o' for unit in units)}",
        ]
        # A path may have bytes that are no text, or none in this locale.
        (folder / "build.ninja").write_bytes(os.fsencode("\n".join(lines) + "\n"))

    def commands(self, tools: Tools) -> list[str]:
        """Lines of build.ninja: a rule for each suffix of a source, and `link`."""
        headers = [f"-isystem{path}" for path in header_folders()]
        here = [f"-I{folder}" for folder in self.folders()]
        unnamed = unnamed_folders(self.folders())
        compile = quoted([*tools.compiler.command, *self.flags(), *headers, *here, *unnamed])
        return [
            *(line for suffix in ("cpp", "cu") for line in rule(suffix, f"{compile} $facts -c $in -o $out")),
            *rule("link", f"{quoted(tools.compiler.command)} -shared $in {quoted(libraries())} -o $out"),
        ]


def sources() -> Path:
    """csrc/: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "csrc"
    return shipped if shipped.is_dir() else package.parent / "csrc"


def source_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu"))


def libraries() -> list[str]:
    # torch, imported before, has loaded them: they need not be found a second time.
    return [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu", "-lc10"]


def unnamed_folders(folders: list[Path]) -> list[str]:
    """Compiler flags that leave folder names out of __FILE__: no message shall name those of whoever compiled."""
    named = [*header_folders(), *map(str, folders)]
    # GCC follows links in the names of headers.
    return [f"-fmacro-prefix-map={folder}/=" for folder in dict.fromkeys([*named, *map(os.path.realpath, named)])]


def string(value: str) -> str:
    return f'"{value}"'


def rule(name: str, command: str) -> list[str]:
    return [f"rule {name}", f"  command = {command}"]


def quoted(arguments: list[str] | tuple[str, ...]) -> str:
    return " ".join(shlex.quote(argument).replace("$", "$$") for argument in arguments)


def _path(file: Path) -> str:
    return str(file).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
