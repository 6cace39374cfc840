"""The CUDA kernels compiled as C++ that emulates an sm_80 or an sm_70, in the place of the cuda backend's GPUs.

The folder of this file goes before csrc/ where headers are looked for: its cuda/device.h, cuda/start.h and
cuda/current_device.h are found instead of those of csrc/cuda, and all else is as it is shipped. `install` puts the
emulation in force; `python tests/emulation sm_80` builds it, and with `-m MODULE ...` runs a module so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lewel_kernels import cuda
from lewel_kernels.native import target
from lewel_kernels.native.target import ABI, Target, Tools, source_files, string
from lewel_kernels.native.targets import CUDA, TARGETS

FOLDER = Path(__file__).resolve().parent
INSTALL = "import emulation; emulation.install()\n"  # at the start of what `python -c` runs, with tests/ on its path


@dataclass(frozen=True)
class Emulated(Target):
    """The kernels of csrc/cuda compiled as C++ for an emulated GPU."""

    arch: int

    @property
    def command(self) -> str:
        return f"python tests/emulation sm_{self.arch}"

    def notice(self, tools: Tools) -> str:
        return f"compiling the CUDA kernels for an emulated sm_{self.arch}, once; this takes some minutes"

    def files(self) -> list[Path]:
        return [*CUDA.files(), *source_files(FOLDER)]

    def units(self) -> list[str]:
        *units, module = CUDA.units()
        return [*units, str(FOLDER / "emulation.cpp"), module]

    def flags(self) -> list[str]:
        return ["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", f"-DLEWEL_EMULATED={self.arch}", ABI]

    def folders(self) -> list[Path]:
        return [FOLDER, target.sources()]

    def facts(self, tools: Tools) -> dict[str, str]:
        names = {"LEWEL_MODULE": self.module, "LEWEL_ARCHS": string(f"sm_{self.arch}")}
        return names | {"LEWEL_NVCC": string("none, emulated")} | super().facts(tools)


class Gpu(cuda.Gpus):
    """An emulated GPU, which has CPU tensors for its own."""

    def __init__(self, arch: int) -> None:
        self.target = Emulated(f"emulated_sm{arch}", f"_lewel_emulated_sm{arch}", arch)
        self.library = self.target.name
        TARGETS[self.library] = self.target

    def capability(self, device: torch.device) -> tuple[int, int]:
        return divmod(self.target.arch, 10)


GPUS = {f"sm_{arch}": Gpu(arch) for arch in (80, 70)}


def install(name: str = "sm_80") -> None:
    """Have the cuda backend run on an emulated GPU, for CPU tensors and when it is demanded; a second call changes it.

    Raises:
        ValueError: if no such GPU is emulated.
    """
    if name not in GPUS:
        raise ValueError(f"the GPU to emulate must be one of {', '.join(GPUS)}; got {name!r}")
    cuda.gpus, cuda.device_type, cuda.automatic = GPUS[name], "cpu", False


def in_force() -> bool:
    return isinstance(cuda.gpus, Gpu)
