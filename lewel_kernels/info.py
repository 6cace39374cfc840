"""``python -m lewel_kernels.info``: versions, devices, backends and reasons; the report to paste into an issue."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

import torch

import lewel_kernels
from lewel_kernels import dispatch, env, native
from lewel_kernels.native import nvcc, toolchain


def report() -> str:
    """The whole report. Builds nothing."""
    lines = [
        f"lewel_kernels {lewel_kernels.__version__}",
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{package} {_version(package)}" for package in ("torch", "triton", "torchvision", "ninja", "pybind11")),
        f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        *_gpus(),
        f"nvcc: {_nvcc()}",
        "backends, in automatic order:",
    ]
    lines += [f"  {name}: {_status(name)}" for name in dispatch.BACKENDS]
    lines.append("environment:")
    lines += [f"  {v.name}={os.environ.get(v.name, '')!r} (unset: {v.default})" for v in env.VARIABLES]
    return "\n".join(lines)


def _status(name: str) -> str:
    if name == "cpu":
        return native.status()
    if name == "cuda":
        state = native.status(name)
        return "; ".join([state, *_on_gpus(name)]) if state.startswith("loaded") else state
    kind = dispatch.load(name).device_type
    if kind is None:
        return "runs everywhere PyTorch runs"
    if kind != "cuda":
        return f"runs on {kind} tensors, in its interpreter"
    if not torch.cuda.is_available():
        return "runs on cuda tensors; PyTorch sees no GPU here"
    return "; ".join(_on_gpus(name))


def _on_gpus(name: str) -> list[str]:
    """What a backend says of each GPU."""
    answers = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        request = dispatch.Request(torch.device("cuda", index), torch.float32)
        answers.append(f"gpu {index}: {dispatch.refusal(name, request) or 'runs'}")
    return answers


def _nvcc() -> str:
    try:
        found = nvcc.find()
    except toolchain.BuildError as error:
        return str(error)
    try:
        nvcc.check_torch()
        told = f"compiles for {', '.join(nvcc.architectures(found))}"
    except toolchain.BuildError as error:
        told = f"unused: {error}"
    return f"{found.version} at {found.path}, {told}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return ["gpu: none visible to PyTorch"]
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"gpu {index}: {properties.name}, sm_{properties.major}{properties.minor}")
    return names


if __name__ == "__main__":
    try:
        print(report())
    except ValueError as error:  # of a variable
        sys.exit(str(error))
