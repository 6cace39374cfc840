"""Building the CUDA kernels and asking for their backend: what is compiled for which GPUs, and a sentence for all else.

An nvcc that is a script, and a stand-in for csrc/ of a few empty files, take its part where the real one is not needed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import emulation
import pytest
import torch

from lewel_kernels import cuda, info, native
from lewel_kernels.native import builder, nvcc, target
from lewel_kernels.native.targets import CPU, CUDA, TARGETS
from lewel_kernels.native.toolchain import BuildError

ROOT = Path(__file__).parents[1]
EMULATED = tuple(gpu.target for gpu in emulation.GPUS.values())
KNOWN = {
    12: "50 60 61 70 72 75 80 86 87 89 90",
    13: "75 80 86 87 88 89 90 100 103 110 120 121",
}
needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="there is no C++ compiler to test with"
)
# Compiles nothing that is CUDA: the C++ compiler that it is given does it all.
FAKE = """#!{python}
import subprocess, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments == ["--version"]:
    print("Cuda compilation tools, release {release}, V{release}.48")
elif arguments == ["--list-gpu-arch"]:
    print("\\n".join("compute_" + arch for arch in "{known}".split()))
else:
    print({says!r})
    if {says!r}:
        sys.exit(1)
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write(" ".join(arguments) + "\\n")
    compiler, out = arguments[arguments.index("-ccbin") + 1], arguments[arguments.index("-o") + 1]
    files = [x for x in arguments if x.endswith((".cu", ".cpp", ".cu.o", ".cpp.o")) and x != out]
    how = ["-shared"] if "-shared" in arguments else ["-fPIC", "-x", "c++", "-c"]
    sys.exit(subprocess.run([compiler, *how, *files, "-o", out]).returncode)
"""
Toolkit = Callable[..., Path]


@pytest.fixture(autouse=True)
def nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No toolkit, no choice made, an empty cache, and a PyTorch that was built for CUDA 13."""
    monkeypatch.setenv("LEWEL_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", nvcc.ARCHS, "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(nvcc, "_USUAL", str(tmp_path / "nowhere"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda, "gpus", cuda.Gpus())
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == "nvcc" else real(name, *rest))


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolkit:
    """Makes a toolkit with a fake nvcc and points CUDA_HOME to it, or to nothing; ``says`` makes compiling fail so."""

    def make(release: str = "13.0", *, says: str = "", name: str = "toolkit", variable: str = "CUDA_HOME") -> Path:
        program = tmp_path / name / "bin" / "nvcc"
        program.parent.mkdir(parents=True)
        known = KNOWN[min(13, int(release.split(".")[0]))]
        program.write_text(FAKE.format(python=sys.executable, release=release, known=known, says=says))
        program.chmod(0o755)
        monkeypatch.setenv(variable, str(tmp_path / name))
        return program

    return make


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for csrc/ that compiles in no time."""
    folder = tmp_path / "csrc"
    for unit in (*CPU.units(), *CUDA.units(), "cuda/a.h"):
        (folder / unit).parent.mkdir(parents=True, exist_ok=True)
        (folder / unit).write_text("")
    monkeypatch.setattr(target, "sources", lambda: folder)
    return folder


def archs(release: str = "13.0") -> list[str]:
    known = KNOWN[int(release.split(".")[0])].split()
    capabilities = tuple((int(x[:-1]), int(x[-1])) for x in known)
    return nvcc.architectures(nvcc.Nvcc("/toolkit/bin/nvcc", f"{release}.48", capabilities))


# ---- what is built


@needs_compiler
def test_every_kernel_is_compiled_for_every_gpu_once(
    toolkit: Toolkit, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = toolkit()
    first = builder.build(CUDA)
    assert first.library.is_file()
    assert "compiling the cuda backend for sm_75, sm_80, sm_90, compute_90, once" in capsys.readouterr().err
    calls = program.with_name("calls").read_text().splitlines()
    kernels = [call for call in calls if "-gencode" in call]
    link = next(call for call in calls if "-shared" in call)
    units = sorted(word.split("cuda/")[1] for call in kernels for word in call.split() if word.endswith(".cu"))
    assert units == ["kernels_bfloat16.cu", "kernels_double.cu", "kernels_float.cu", "kernels_half.cu"]
    for call in kernels:
        assert re.findall(r"-gencode=\S+", call) == [
            "-gencode=arch=compute_75,code=sm_75",
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90,code=sm_90",
            "-gencode=arch=compute_90,code=compute_90",
        ]
        assert f"-I{sources}" in call
        assert "torch" not in call
    assert "-cudart=static" in link
    assert "-ltorch_cuda" in link
    assert builder.build(CUDA) == builder.Build(first.library, None)
    assert not capsys.readouterr().err


@needs_compiler
def test_compiler_of_several_words(toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = toolkit()
    monkeypatch.setenv("CXX", "env -u LANG c++ -DMANY_WORDS='1 2'")
    builder.build(CUDA)
    assert "-ccbin ./cxx" in program.with_name("calls").read_text()


@needs_compiler
@pytest.mark.parametrize("what", ["kernel", "GPUs", "nvcc", "torch"])
def test_what_goes_into_a_build_names_it(
    what: str, toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit()
    builder.build(CUDA)
    assert builder.find(CUDA)
    if what == "kernel":
        (sources / "cuda" / "kernels_half.cu").write_text("// changed\n")
    elif what == "GPUs":
        monkeypatch.setenv(nvcc.ARCHS, "8.0")
    elif what == "nvcc":
        toolkit("13.1", name="newer")
    else:
        monkeypatch.setattr(target.torch, "__version__", "3.0")
    assert builder.find(CUDA) is None


def test_a_build_depends_on_its_own_sources_alone(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(emulation.FOLDER, copy := sources.parent / "emulation")
    monkeypatch.setattr(emulation, "FOLDER", copy)

    def changed(by: str) -> set[str]:
        before = {x.name: builder._name(x, None) for x in TARGETS.values()}
        (sources / by).write_text(f"// {by}\n")
        return {x.name for x in TARGETS.values() if builder._name(x, None) != before[x.name]}

    emulated = {x.name for x in EMULATED}
    assert changed("cpu/kernels_float.cpp") == changed("registration.cpp") == {"cpu"}
    assert changed("cuda/a.h") == changed("cuda/kernels_half.cu") == {"cuda"} | emulated
    assert changed("../emulation/machine.h") == emulated


def test_the_cuda_sources_include_nothing_from_elsewhere_in_csrc() -> None:
    """What a build is named after would not see it change."""
    for path in (ROOT / "csrc" / "cuda").rglob("*.*"):
        for name in re.findall(r'#include "(.*)"', path.read_text()):
            found = [folder / name for folder in (path.parent, ROOT / "csrc") if (folder / name).is_file()]
            assert found, f"{path} includes {name}, which is not there"
            assert found[0].resolve().is_relative_to(ROOT / "csrc" / "cuda"), f"{path} includes {name}"


@needs_compiler
def test_a_build_serves_machines_without_nvcc(toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit()
    library = builder.build(CUDA).library
    monkeypatch.delenv("CUDA_HOME")
    assert builder.build(CUDA) == builder.Build(library, None)


@needs_compiler
@pytest.mark.parametrize("name", [x.name for x in EMULATED])
def test_an_emulated_build_needs_no_nvcc(name: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    (sources / "cuda" / "kernels_half.cu").write_text(f"static_assert(LEWEL_EMULATED == {name[-2:]});\n")
    assert builder.build(TARGETS[name]).library.name == f"_lewel_{name}.so"


def test_nvcc_is_looked_for_in_order(toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = toolkit(name="usual")
    monkeypatch.setattr(nvcc, "_USUAL", str(tmp_path / "usual"))
    monkeypatch.delenv("CUDA_HOME")
    assert nvcc.find().path == str(usual)
    on_path = toolkit(name="path")
    monkeypatch.undo()
    monkeypatch.setattr(nvcc, "_USUAL", str(tmp_path / "usual"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", f"{on_path.parent}{os.pathsep}{os.environ['PATH']}")
    assert nvcc.find().path == str(on_path)
    second = tmp_path / "second" / "bin"
    shutil.copytree(on_path.parent, second)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "second"))
    assert nvcc.find().path == str(second / "nvcc")
    shutil.copytree(on_path.parent, tmp_path / "first" / "bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "first"))
    assert nvcc.find().path == str(tmp_path / "first" / "bin" / "nvcc")


@pytest.mark.parametrize(
    ("asked", "release", "expected"),
    [
        ("", "12.6", "sm_70 sm_80 sm_90 compute_90"),
        ("", "13.0", "sm_75 sm_80 sm_90 compute_90"),
        ("7.0;8.0 9.0+PTX", "12.6", "sm_70 sm_80 sm_90 compute_90"),
        ("Volta", "12.6", "sm_70 compute_70"),
        ("Volta+Tegra;Hopper", "12.6", "sm_72 sm_90 compute_90"),
        ("Ampere Ada", "13.0", "sm_80 sm_86 sm_89 compute_86 compute_89"),
        ("12.0+PTX;9.0a;8.0;8.0;", "13.0", "sm_80 sm_90 sm_120 compute_120"),
    ],
)
def test_architectures(asked: str, release: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nvcc.ARCHS, asked)
    monkeypatch.setattr(torch.version, "cuda", release)
    assert archs(release) == expected.split()


@pytest.mark.parametrize(
    ("built", "capability", "does"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_75 sm_80 sm_90", (7, 0), False),
        ("sm_80 compute_90", (12, 0), True),
        ("sm_80 compute_90", (9, 0), True),
        ("sm_120", (12, 1), True),
        ("compute_120", (10, 0), False),
    ],
)
def test_what_runs_on_a_gpu(built: str, capability: tuple[int, int], does: bool) -> None:
    assert nvcc.runs(built.split(), capability) is does


# ---- what can be missing


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BuildError,
        match=r"no nvcc .*CUDA_HOME and CUDA_PATH are not set.*left to the backends triton and reference; install the "
        r"CUDA toolkit 13\.0 .*apt install cuda-nvcc-13-0 .*conda install .*cuda-version=13\.0.* pip install "
        r'"cuda-toolkit\[nvcc,cudart\]==13\.0\.\*".* set CUDA_HOME',
    ):
        builder.build(CUDA)
    monkeypatch.setattr(native, "_reasons", {})
    assert str(native.unavailable("cuda")).endswith("then run `python -m lewel_kernels.build --cuda`")


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_no_nvcc_in_the_toolkit(variable: str, toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit(name="other", variable="CUDA_PATH")
    monkeypatch.setenv(variable, "/no/toolkit")
    with pytest.raises(
        BuildError, match=f"{variable} names the CUDA toolkit '/no/toolkit', in which .*bin/nvcc;.*unset"
    ):
        builder.build(CUDA)


@pytest.mark.parametrize(
    ("program", "words"), [("exit 1", "does not run"), ("echo hello", "does not answer --version")]
)
def test_nvcc_that_is_none(program: str, words: str, toolkit: Toolkit) -> None:
    toolkit().write_text(f"#!/bin/sh\n{program}\n")
    with pytest.raises(
        BuildError, match=rf"CUDA compiler .*/bin/nvcc {words} .*; set CUDA_HOME to a toolkit whose nvcc"
    ):
        builder.build(CUDA)


@pytest.mark.parametrize(
    ("asked", "release", "words"),
    [
        (
            "7.0",
            "13.0",
            r"asks for 7\.0, .*nvcc 13\.0.*CUDA 13 begins with 7\.5; install a CUDA 12\.x toolkit .* CUDA 12\.6 build",
        ),
        (
            "8.0;7.2",
            "13.0",
            r"asks for 7\.2, .*nvcc 13\.0.*CUDA 12\.x toolkit .* PyTorch's CUDA 12\.6 build.*leave 7\.2 out",
        ),
        ("Volta", "13.0", r"asks for 7\.0, .*CUDA 12\.x"),
        ("6.1;8.0", "12.6", r"asks for 6\.1, .*tensor cores .* from 7\.0 on; leave it out of '6\.1;8\.0'"),
        ("Pascal", "13.0", r"asks for 6\.0, .*tensor cores .*leave it out of 'Pascal'"),
        ("10.0", "12.6", r"asks for 10\.0, .*nvcc 12\.6.*knows .*9\.0; install a newer toolkit .*ask for 9\.0\+PTX"),
        ("native", "13.0", r"must be a list such as .*; got 'native' in 'native': correct or unset it"),
        ("8.0,9.0", "13.0", r"must be a list .*; got '8\.0,9\.0'"),
        ("8.0;sm_90", "13.0", r"must be a list .*; got 'sm_90' in '8\.0;sm_90'"),
        (" ", "13.0", r"must be a list .*; got '' in ' '"),
    ],
)
def test_gpus_that_cannot_be_compiled_for(
    asked: str, release: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nvcc.ARCHS, asked)
    monkeypatch.setattr(torch.version, "cuda", release)
    with pytest.raises(BuildError, match=f"{nvcc.ARCHS} {words}"):
        archs(release)


@needs_compiler
def test_a_wrong_list_of_gpus_is_not_covered_up_by_an_older_build(
    toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit()
    builder.build(CUDA)
    monkeypatch.setenv(nvcc.ARCHS, "7.0")
    with pytest.raises(BuildError, match="CUDA 13 begins with"):
        builder.build(CUDA)


@pytest.mark.parametrize(
    ("version", "built_for", "words"),
    [
        (
            "cuda",
            "12.6",
            r"nvcc 13\.0.*PyTorch.*CUDA 12\.6, .*different major.*install the CUDA toolkit 12\.6 .*13 build",
        ),
        ("cuda", None, r"PyTorch was built without CUDA; install"),
        ("hip", "6.2", r"PyTorch was built for AMD GPUs \(ROCm\)"),
    ],
)
def test_pytorch_that_does_not_go_with_nvcc(
    version: str, built_for: str | None, words: str, toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit()
    monkeypatch.setattr(torch.version, version, built_for)
    with pytest.raises(BuildError, match=words):
        builder.build(CUDA)


@needs_compiler
def test_no_ninja(toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit()
    monkeypatch.setitem(sys.modules, "ninja", None)
    monkeypatch.setenv("PATH", os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if ".venv" not in p))
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == "ninja" else real(name, *rest))
    with pytest.raises(BuildError, match="ninja is not installed; run `python -m pip install ninja`"):
        builder.build(CUDA)


@needs_compiler
@pytest.mark.parametrize("where", ["compiling", "moving", "log"])
def test_full_disk(where: str, toolkit: Toolkit, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    toolkit(says="" if where != "log" else "a.ii: fatal error: error writing: No space left on device")
    if where != "log":
        monkeypatch.setattr(*((builder.shutil, "move") if where == "moving" else (CUDA.__class__, "write")), fail)
    with pytest.raises(BuildError, match=r"no space is left .*cache folder .*/cache .*set LEWEL_CACHE_DIR or TMPDIR"):
        builder.build(CUDA)


@needs_compiler
@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            "host_config.h:143: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported",
            "failed: .*unsupported GNU version! .*later than 15.*; set CXX to an older compiler",
        ),
        ("c++: fatal error: Killed signal terminated program cc1plus", "failed: .*Killed.*; .*set MAX_JOBS=1"),
        ("kernels_half.cu(1): error: expected a ;", r"failed: .*kernels_half.cu\(1\): error.*the whole log is .*\.log"),
    ],
)
def test_nvcc_that_fails(says: str, words: str, toolkit: Toolkit, sources: Path, tmp_path: Path) -> None:
    toolkit(says=f"In file included from somewhere:\n{says}")
    with pytest.raises(BuildError, match=words):
        builder.build(CUDA)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()], (
        "a failed build leaves nothing behind"
    )


# ---- who asks for it


def test_info_tells_nvcc_and_builds_nothing(toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_reasons", {})
    assert "\nnvcc: there is no nvcc" in info.report()
    program = toolkit()
    report = info.report()
    assert f"\nnvcc: 13.0.48 at {program}, compiles for sm_75, sm_80, sm_90, compute_90\n" in report
    assert re.search(r"  cuda: (not built yet; `python -m lewel_kernels.build --cuda`|cannot be built)", report)
    monkeypatch.setenv(nvcc.ARCHS, "7.0")
    assert f"nvcc: 13.0.48 at {program}, unused: {nvcc.ARCHS} asks for 7.0" in info.report()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--cuda"], 1, r"The cuda backend cannot be built: (the variable CUDA_HOME names .*|this PyTorch was .*)\.\n"),
        (["--help"], 0, r"--cuda"),
        (["--gpu"], 2, r"unrecognized arguments: --gpu"),
    ],
)
def test_command(arguments: list[str], status: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lewel_kernels.build", *arguments],
        env=os.environ | {"CUDA_HOME": "/no/toolkit"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert re.search(words, done.stdout + done.stderr)


# ---- the real nvcc

KERNELS = """
#include "cuda/a.h"
#include "cuda/call.h"
namespace lewel::cuda {{
template <class T>
void forward(const Forward&, Workspace&, const Device*) {{}}
template <class T>
void backward(const Backward&, Workspace&, const Device*) {{}}
template void forward<{type}>(const Forward&, Workspace&, const Device*);
template void backward<{type}>(const Backward&, Workspace&, const Device*);
}}  // namespace lewel::cuda
__global__ void twice_{name}(float* x) {{ *x *= 2; }}
extern "C" int launch_{name}(float* x) {{ return twice_{name}<<<1, 1>>>(x), cudaGetLastError(); }}
"""
REGISTRATION = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
extern "C" __attribute__((visibility("default"))) int stream(void** s) {
  return aoti_torch_get_current_cuda_stream(0, s);
}
"""


@pytest.fixture
def real_sources(sources: Path) -> Path:
    for name in ("module.cpp", "call.h", "numbers.h"):
        shutil.copy(ROOT / "csrc" / "cuda" / name, sources / "cuda")
    for name, kind in {"half": "Half", "bfloat16": "BFloat16", "float": "float", "double": "double"}.items():
        (sources / "cuda" / f"kernels_{name}.cu").write_text(KERNELS.format(name=name, type=kind))
    (sources / "cuda" / "registration.cpp").write_text(REGISTRATION)
    return sources


@needs_compiler
def test_the_real_nvcc_builds_a_library_that_loads_without_a_gpu(
    real_sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(target, "sources", lambda: real_sources)
    monkeypatch.setenv("LEWEL_CACHE_DIR", str(real_sources.parent / "cache"))
    monkeypatch.setenv(nvcc.ARCHS, "8.0")
    try:
        nvcc.check_torch()
        version = nvcc.find().version
        nvcc.architectures(nvcc.find())
    except BuildError as error:
        pytest.skip(str(error))
    made = replace(CUDA, module="_lewel_stand_in_cuda")  # pybind11 would hand out the module of a name once more
    module = native._load(made, builder.build(made).library)
    monkeypatch.delitem(sys.modules, made.module)
    built = module.build_info()
    assert (built["archs"], built["nvcc"], built["torch_abi"]) == ("sm_80", version, "2.10")
    assert "-lineinfo" in built["flags"]
