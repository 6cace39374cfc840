"""nvcc, and the GPUs that it is to compile for.

Found where torch.utils.cpp_extension finds it, without importing that module, which takes a second. Whether a GPU is
visible plays no part: images of containers are built without one, and all ranks of a job have to build the same.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

import torch

from lewel_kernels.native.toolchain import BuildError, run

ARCHS = "TORCH_CUDA_ARCH_LIST"
_USUAL = "/usr/local/cuda"
# sm_80 code runs on every 8.x, and +PTX is for GPUs after the last: these serve all from the first on.
_DEFAULTS = {12: "7.0;8.0;9.0+PTX", 13: "7.5;8.0;9.0+PTX"}  # by the first major version of nvcc that they are for
# What torch reads into names, the longer ones first.
_NAMED = {
    "Kepler+Tesla": "3.7",
    "Kepler": "3.5+PTX",
    "Maxwell+Tegra": "5.3",
    "Maxwell": "5.0;5.2+PTX",
    "Pascal": "6.0;6.1+PTX",
    "Volta+Tegra": "7.2",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}
Capability = tuple[int, int]


@dataclass(frozen=True)
class Nvcc:
    path: str
    version: str
    known: tuple[Capability, ...]  # what it compiles for

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def check_torch() -> None:
    """Raises BuildError for a PyTorch without CUDA or for AMD GPUs, which no nvcc helps."""
    if torch.version.hip is not None:
        raise BuildError(
            "this PyTorch was built for AMD GPUs (ROCm), and the CUDA kernels are for NVIDIA's; install a PyTorch that "
            "was built with CUDA"
        )
    if torch.version.cuda is None:
        raise BuildError("this PyTorch was built without CUDA; install a PyTorch that was built with it")


def find() -> Nvcc:
    """The nvcc of CUDA_HOME, else of CUDA_PATH, else on the PATH, else of /usr/local/cuda."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            if path := shutil.which(os.path.join(home, "bin", "nvcc")):
                return _inspect(path)
            raise BuildError(
                f"the variable {variable} names the CUDA toolkit {home!r}, in which there is no bin/nvcc; correct or "
                "unset it"
            )
    if path := shutil.which("nvcc") or shutil.which(f"{_USUAL}/bin/nvcc"):
        return _inspect(path)
    raise BuildError(
        f"there is no nvcc to compile the CUDA kernels (CUDA_HOME and CUDA_PATH are not set, and it is neither on the "
        f"PATH nor in {_USUAL}), and GPUs are left to the backends triton and reference; "
        f"{_install(torch.version.cuda or '13.0')}"
    )


def _install(version: str) -> str:
    major, minor = version.split(".")[:2]
    ways = [
        f"from NVIDIA's repository by apt install cuda-nvcc-{major}-{minor} cuda-cudart-dev-{major}-{minor}",
        f"by conda install -c conda-forge cuda-nvcc cuda-cudart-static cuda-version={major}.{minor}",
    ]
    if int(major) >= 13:  # before, the packages of pip left nvcc out
        ways.append(f'by pip install "cuda-toolkit[nvcc,cudart]=={major}.{minor}.*"')
    return f"install the CUDA toolkit {major}.{minor} ({', or '.join(ways)}) and set CUDA_HOME to its folder"


@functools.cache
def _inspect(path: str) -> Nvcc:
    def ask(option: str, pattern: str) -> list[str]:
        try:
            told = run([path, option], stderr=subprocess.DEVNULL, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildError(
                f"the CUDA compiler {path} does not run ({error}); set CUDA_HOME to a toolkit whose nvcc does"
            ) from error
        if found := re.findall(pattern, told):
            return found
        raise BuildError(
            f"the CUDA compiler {path} does not answer {option} as nvcc does ({told.strip()[:80]!r}); set CUDA_HOME to "
            "a toolkit whose nvcc does"
        )

    version = ask("--version", r"release \S+ V(\d+\.\d+\.\d+)")[0]
    known = {(int(number[:-1]), int(number[-1])) for number in ask("--list-gpu-arch", r"compute_(\d+)")}
    return Nvcc(path, version, tuple(sorted(known)))


def architectures(nvcc: Nvcc) -> list[str]:
    """What to compile for: sm_80 for the code of a GPU, compute_90 for PTX, which later ones compile when they load it.

    Raises:
        BuildError: if this nvcc and this torch do not go together, or TORCH_CUDA_ARCH_LIST and this nvcc.
    """
    built_for = torch.version.cuda or ""
    if nvcc.major != int(built_for.split(".")[0] or 0):
        raise BuildError(
            f"nvcc {nvcc.version} ({nvcc.path}) and this PyTorch, which was built for CUDA {built_for}, are of "
            f"different major versions; {_install(built_for)}, or install PyTorch's CUDA {nvcc.major} build"
        )
    asked = requested() or _parse(_DEFAULTS[13 if nvcc.major >= 13 else 12])
    for major, minor, _ in asked:
        if (major, minor) not in nvcc.known:
            raise BuildError(_unknown(nvcc, (major, minor)))
    names = {(major, minor, kind) for major, minor, ptx in asked for kind in ("sm", "compute") if kind == "sm" or ptx}
    return [f"{kind}_{major}{minor}" for major, minor, kind in sorted(names, key=lambda x: (x[2] != "sm", x))]


def _unknown(nvcc: Nvcc, capability: Capability) -> str:
    asked = f"{ARCHS} asks for {_dotted(capability)}, for which nvcc {nvcc.version} ({nvcc.path}) does not compile"
    oldest, newest = nvcc.known[0], nvcc.known[-1]
    if capability < oldest and nvcc.major >= 13:
        return (
            f"{asked}: CUDA 13 begins with {_dotted(oldest)}; install a CUDA 12.x toolkit and PyTorch's CUDA 12.6 "
            f"build, and set CUDA_HOME to the toolkit, or leave {_dotted(capability)} out"
        )
    return (
        f"{asked}: it knows {', '.join(map(_dotted, nvcc.known))}; install a newer toolkit and set CUDA_HOME to it, or "
        f"ask for {_dotted(newest)}+PTX, which later GPUs run"
    )


def requested() -> list[tuple[int, int, bool]]:
    """TORCH_CUDA_ARCH_LIST as major, minor, +PTX; empty if it is not set.

    Raises:
        BuildError: if it is not in torch's syntax, or asks for a GPU without tensor cores.
    """
    return _parse(os.environ.get(ARCHS) or "")


def _parse(text: str) -> list[tuple[int, int, bool]]:
    meaning = text
    for name, numbers in _NAMED.items():
        meaning = meaning.replace(name, numbers)
    items = []
    for item in re.split(r"[;\s]+", meaning.strip("; \t\n")) if meaning else ():
        # The suffix of 9.0a is for instructions of that one GPU, of which the kernels use none.
        if not (parts := re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", item)):
            raise BuildError(
                f'the variable {ARCHS} must be a list such as "7.5;8.0;9.0+PTX" or names such as "Volta;Ampere"; got '
                f"{item!r} in {text!r}: correct or unset it"
            )
        capability = int(parts[1]), int(parts[2])
        if capability < (7, 0):
            raise BuildError(
                f"the variable {ARCHS} asks for {_dotted(capability)}, and the CUDA kernels need the tensor cores that "
                f"GPUs have from 7.0 on; leave it out of {text!r}"
            )
        items.append((*capability, parts[3] is not None))
    return items


def runs(archs: list[str], capability: Capability) -> bool:
    """Whether code for these architectures runs on a GPU: its own major version's up to its minor, or PTX up to it."""
    for name in archs:
        kind, number = name.split("_")
        built = int(number[:-1]), int(number[-1])
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return True
    return False


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
