"""The extensions that are built from csrc/: the cpu kernels and the CUDA kernels."""

from __future__ import annotations

import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

from lewel_kernels import env
from lewel_kernels.native import nvcc, target
from lewel_kernels.native.target import (
    ABI,
    Target,
    Tools,
    libraries,
    quoted,
    rule,
    source_files,
    string,
    unnamed_folders,
)
from lewel_kernels.native.toolchain import find_compiler, header_folders


@dataclass(frozen=True)
class Cpu(Target):
    """The kernels of csrc/cpu, for the processor of this machine or the one that LEWEL_CPU_ISA names."""

    def files(self) -> list[Path]:
        return [path for path in source_files(target.sources()) if target.sources() / "cuda" not in path.parents]

    def units(self) -> list[str]:
        return ["registration.cpp", "cpu/kernels_float.cpp", "cpu/kernels_double.cpp", "build_info.cpp"]

    def flags(self) -> list[str]:
        return [
            "-std=c++17",
            "-O3",
            f"-march={_isa()}",
            "-fPIC",
            "-fvisibility=hidden",
            "-Wno-psabi",
            # Nothing reads errno or traps. NaN and inf matter, so this is all of -ffast-math that is wanted.
            "-fno-math-errno",
            "-fno-trapping-math",
            ABI,
        ]

    def inputs(self) -> list[str]:
        return [*super().inputs(), *([_processor()] if _isa() == "native" else [])]

    def facts(self, tools: Tools) -> dict[str, str]:
        return {"LEWEL_ISA": string(_isa()), **super().facts(tools)}


# nvcc takes a compiler of one word: a command of several goes into a script beside build.ninja.
_SCRIPT = "./cxx"


@dataclass(frozen=True)
class Cuda(Target):
    """The kernels of csrc/cuda by nvcc, for the GPUs that nvcc.py decides on, and the ops around them by the compiler.

    The library holds a libcudart of its own. The shared one that torch has loaded need not have every function which
    this nvcc calls from what it compiles (they differ within a major version), and the toolkit's would have to be found
    at run time. Both copies use the device's one context, so torch's streams are valid in either. Nothing asks the
    driver before a kernel is launched: the library can be loaded where there is no GPU.
    """

    @property
    def command(self) -> str:
        return f"{super().command} --cuda"

    def notice(self, tools: Tools) -> str:
        archs = ", ".join(_archs(tools))
        return f"compiling the cuda backend for {archs}, once; this takes some minutes"

    def check(self) -> None:
        nvcc.check_torch()

    def find_tools(self) -> Tools:
        return Tools(find_compiler(), nvcc.find())

    def versions(self, tools: Tools) -> list[str]:
        assert tools.nvcc is not None
        return [*super().versions(tools), tools.nvcc.version, *_archs(tools)]

    def files(self) -> list[Path]:
        return source_files(target.sources() / "cuda")

    def units(self) -> list[str]:
        kernels = (f"cuda/kernels_{dtype}.cu" for dtype in ("half", "bfloat16", "float", "double"))
        return [*kernels, "cuda/registration.cpp", "cuda/module.cpp"]

    def flags(self) -> list[str]:
        return ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden"]

    def inputs(self) -> list[str]:
        return [*super().inputs(), *self._host_flags()]

    def _host_flags(self) -> list[str]:
        # USE_CUDA: torch's headers declare its streams.
        return ["-std=c++17", "-O2", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA", ABI]

    def facts(self, tools: Tools) -> dict[str, str]:
        assert tools.nvcc is not None
        names = {
            "LEWEL_MODULE": self.module,
            "LEWEL_ARCHS": string(" ".join(_archs(tools))),
            "LEWEL_NVCC": string(tools.nvcc.version),
        }
        return names | super().facts(tools)

    def write(self, folder: Path, tools: Tools) -> None:
        super().write(folder, tools)
        script = folder / _SCRIPT
        script.write_text(f'#!/bin/sh\nexec {shlex.join(tools.compiler.command)} "$@"\n')
        script.chmod(0o755)

    def commands(self, tools: Tools) -> list[str]:
        assert tools.nvcc is not None
        compiler, here = tools.compiler.command, f"-I{target.sources()}"
        nvcc_with = [tools.nvcc.path, "-ccbin", compiler[0] if len(compiler) == 1 else _SCRIPT]
        # The compiler by way of nvcc, which knows where its own headers are, in whatever way it was installed.
        headers = [f"-isystem={path}" for path in header_folders()]
        # nvcc would split what has a comma.
        unnamed = [f"-Xcompiler={flag}" for flag in unnamed_folders(self.folders()) if "," not in flag]
        host = quoted([*nvcc_with, *self._host_flags(), *headers, here, *unnamed])
        generate = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in _archs(tools)]
        kernels = quoted([*nvcc_with, *self.flags(), *generate, here])
        # The packages of pip have their libraries in lib, where nvcc looks for lib64.
        toolkit = Path(tools.nvcc.path).resolve().parent.parent / "lib"
        link_with = [*libraries(), "-ltorch_cuda", f"-L{toolkit}"]
        return [
            *rule("cpp", f"{host} $facts -c $in -o $out"),
            *rule("cu", f"{kernels} -c $in -o $out"),
            *rule("link", f"{quoted([*nvcc_with, '-shared', '-cudart=static'])} $in {quoted(link_with)} -o $out"),
        ]


CPU = Cpu("cpu", "_lewel_native")
CUDA = Cuda("cuda", "_lewel_cuda")
TARGETS: dict[str, Target] = {target.name: target for target in (CPU, CUDA)}


def _archs(tools: Tools) -> list[str]:
    assert tools.nvcc is not None
    return nvcc.architectures(tools.nvcc)


def _isa() -> str:
    """The value of -march."""
    return env.CPU_ISA.get() or "native"


def _processor() -> str:
    """What -march=native depends on: a cache on a shared disk serves machines of several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    )
