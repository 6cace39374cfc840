"""Building the cpu kernels: once per machine, and a sentence with a remedy for everything that can be missing.

Most tests compile a stand-in for csrc/ of a few empty files, which takes a fraction of a second.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lewel_kernels import native
from lewel_kernels.native import builder, target, toolchain
from lewel_kernels.native.targets import CPU

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="there is no C++ compiler to test with"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for every test, and no compiler chosen from outside."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LEWEL_CACHE_DIR", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("LEWEL_CPU_ISA", raising=False)
    return folder


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for csrc/ that compiles in no time."""
    folder = tmp_path / "csrc"
    for unit in CPU.units():
        (folder / unit).parent.mkdir(parents=True, exist_ok=True)
        (folder / unit).write_text('#include "a.h"\n')
        (folder / unit).with_name("a.h").write_text("")
    monkeypatch.setattr(target, "sources", lambda: folder)
    return folder


def hide_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=False
    )


@needs_compiler
def test_builds_once(sources: Path, cache: Path) -> None:
    first = builder.build(CPU)
    assert first.library.is_file()
    assert first.library.is_relative_to(cache)
    assert first.seconds is not None
    assert builder.build(CPU) == builder.Build(first.library, None)


@needs_compiler
@pytest.mark.parametrize("what", ["header", "instruction set", "torch", "suffix", "abiflags"])
def test_what_goes_into_a_build_names_it(what: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder.build(CPU)
    assert builder.find(CPU)
    if what == "header":
        (sources / "a.h").write_text("// changed\n")
    elif what == "instruction set":
        monkeypatch.setenv("LEWEL_CPU_ISA", "x86-64-v3")
    elif what == "torch":
        monkeypatch.setattr(target.torch, "__version__", "3.0")
    elif what == "suffix":
        real = sysconfig.get_config_var
        monkeypatch.setattr(sysconfig, "get_config_var", lambda n: ".cpython-313t.so" if n == "EXT_SUFFIX" else real(n))
    else:
        monkeypatch.setattr(sys, "abiflags", "t")
    assert builder.find(CPU) is None


@needs_compiler
def test_processes_that_ask_at_once_build_once(sources: Path, cache: Path) -> None:
    code = (
        "from pathlib import Path; from lewel_kernels.native import builder, target\n"
        "from lewel_kernels.native.targets import CPU\n"
        f"target.sources = lambda: Path({str(sources)!r})\n"
        "build = builder.build(CPU); print(build.seconds is not None, build.library)\n"
    )
    # Slow enough that the second process certainly finds the first one compiling.
    (sources / "a.h").write_text("#include <regex>\n#include <iostream>\n")
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0].strip().split(maxsplit=1) for process in processes]
    assert sorted(answer[0] for answer in answers) == ["False", "False", "True"]
    assert len({answer[1] for answer in answers}) == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(answers[0][1]).parent.name]


@needs_compiler
def test_missing_nvcc_changes_nothing(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("g++", "clang++", "c++", "as", "ld"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no_toolkit"))
    assert shutil.which("nvcc") is None
    assert builder.build(CPU).library.is_file()


@needs_compiler
def test_a_build_serves_machines_without_a_compiler(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = builder.build(CPU).library
    hide_programs(tmp_path, monkeypatch)
    assert builder.build(CPU) == builder.Build(library, None)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_programs(tmp_path, monkeypatch)
    with pytest.raises(builder.BuildError, match=r"no C\+\+ compiler .* apt install g\+\+\)"):
        builder.build(CPU)


def test_no_such_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-of-next-year -m64")
    with pytest.raises(builder.BuildError, match=r"CXX names .*'g\+\+-of-next-year', which is not there"):
        builder.build(CPU)


@pytest.mark.parametrize(("chosen", "words"), [(" ", "which is not there"), ("'g++", "cannot be split.*quotation")])
def test_compiler_that_is_no_command(chosen: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", chosen)
    with pytest.raises(builder.BuildError, match=f"variable CXX .*{words}.*correct or unset it"):
        builder.build(CPU)


@pytest.mark.parametrize("home", ["no home", "no such user"])
def test_no_folder_for_the_cache(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: object = None) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("LEWEL_CACHE_DIR", "" if home == "no home" else "~no_such_user/x")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(builder.BuildError, match=r"no folder for the compiled kernels .*home.*set LEWEL_CACHE_DIR"):
        builder.build(CPU)


@needs_compiler
def test_unreadable_cache(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(
        builder.BuildError, match=r"cache folder .* cannot be read \(Permission denied\); set LEWEL_CACHE_DIR"
    ):
        builder.build(CPU)


def test_what_a_killed_build_left_is_no_build(
    sources: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = cache / f"{builder._name(CPU, None)}-0123456789ab.k1ll3d"
    left.mkdir(parents=True)
    (left / CPU.library).write_text("half of a library")
    hide_programs(tmp_path, monkeypatch)
    with pytest.raises(builder.BuildError, match="no C\\+\\+ compiler"):
        builder.find(CPU)


@needs_compiler
def test_a_build_says_that_it_takes_a_while(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in ("compiling the cpu backend", ""):
        builder.build(CPU)
        assert expected in (said := capsys.readouterr().err)
    assert not said


def test_compiler_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(builder.BuildError, match=r"compiler .*false does not run"):
        builder.build(CPU)


@needs_compiler
@pytest.mark.parametrize("found", [None, types.ModuleType("a_folder_of_that_name")], ids=["nothing", "folder"])
@pytest.mark.parametrize("package", ["ninja", "pybind11"])
def test_missing_package(
    package: str, found: types.ModuleType | None, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, found)
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(builder.BuildError, match=f"{package} is not installed; run `python -m pip install {package}`"):
        builder.build(CPU)


@needs_compiler
def test_missing_python_headers(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(builder.BuildError, match=r"Python's headers are not in .* apt install python3-dev"):
        builder.build(CPU)


@needs_compiler
@pytest.mark.parametrize("folder", ["a file/cache", "/sys/lewel"])
def test_read_only_cache(folder: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("LEWEL_CACHE_DIR", str(tmp_path / folder))
    with pytest.raises(builder.BuildError, match=r"cache folder .* cannot be written .*set LEWEL_CACHE_DIR"):
        builder.build(CPU)


@needs_compiler
def test_broken_source(sources: Path, cache: Path) -> None:
    (sources / "registration.cpp").write_text("int main( {\n")
    with pytest.raises(
        builder.BuildError, match=r"compiling the kernels failed: .*registration.cpp:1:.*error"
    ) as error:
        builder.build(CPU)
    log = re.search(r"the whole log is (.+?\.log)", str(error.value))
    assert log
    assert "int main( {" in Path(log[1]).read_text()
    assert not [path for path in cache.iterdir() if path.is_dir()], "a failed build leaves nothing behind"


def test_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "_lewel_native.so").write_text("not a library")
    with pytest.raises(builder.BuildError, match=r"cannot be loaded .*; delete "):
        native._load(CPU, tmp_path / "_lewel_native.so")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("failed to map segment from shared object", "noexec.*, set LEWEL_CACHE_DIR to another folder"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.99' not found", "set CXX to an older compiler"),
    ],
    ids=["policy", "newer compiler"],
)
def test_library_that_need_not_be_deleted(
    said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(spec: object) -> None:
        raise ImportError(said)

    monkeypatch.setattr("importlib.util.module_from_spec", refuse)
    with pytest.raises(builder.BuildError, match=remedy) as error:
        native._load(CPU, tmp_path / "_lewel_native.so")
    assert "delete" not in str(error.value)


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="the system does not tell how a folder is mounted")
@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
def test_cache_that_is_mounted_noexec(
    filled: bool, sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if filled:
        builder.build(CPU).library.write_text("not a library")
    monkeypatch.setattr(os, "statvfs", lambda path: types.SimpleNamespace(f_flag=os.ST_NOEXEC))
    told = native._try(CPU)
    assert re.match(
        f"the folder {cache} is mounted noexec, .*; set LEWEL_CACHE_DIR to one that is not, then", told or ""
    )
    assert len([path for path in cache.iterdir() if path.is_dir()]) == filled, "nothing is compiled for it"


@needs_compiler
def test_filled_cache_that_is_read_only(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = builder.build(CPU).library

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "write_text", "write_bytes", "rename"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(builder, "_lock", refuse)
    assert builder.build(CPU) == builder.Build(library, None)


def no_locks(code: int) -> Callable[..., None]:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return flock


@needs_compiler
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EIO], ids=errno.errorcode.get)
def test_file_system_without_locks(code: int, sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(code))
    assert builder.build(CPU).library.is_file()
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


@needs_compiler
def test_builds_side_by_side(sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks another process may be quicker: its build is taken."""
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.ENOSYS))
    compile = toolchain.run

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        if Path(command[0]).name == "ninja":
            monkeypatch.setattr(builder, "run", compile)
            assert builder.build(CPU).seconds is not None
        return compile(command, **options)

    monkeypatch.setattr(builder, "run", run)
    assert builder.build(CPU).library.is_file()
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


@needs_compiler
def test_lock_of_somebody_else(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.suffix == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    assert builder.build(CPU).library.is_file()


@needs_compiler
def test_lock_of_a_killed_process(sources: Path, cache: Path) -> None:
    library = builder.build(CPU).library
    shutil.rmtree(library.parent)
    lock = library.parent.with_name(f"{library.parent.name}.lock")
    assert lock.is_file()
    code = f"import fcntl; fcntl.flock(open({str(lock)!r}, 'a'), fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    threading.Timer(0.2, holder.kill).start()
    assert builder.build(CPU).library == library
    assert holder.wait() < 0, "it was waited for"


def test_lock_ends_with_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a process that was forked meanwhile still has its file open."""
    lock, flock, inherited = tmp_path / "x.lock", fcntl.flock, []

    def note(file: io.TextIOWrapper, operation: int) -> None:
        inherited.append(os.dup(file.fileno()))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", note)
    with builder._lock(lock), lock.open("a") as other, pytest.raises(BlockingIOError):
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("a") as other:
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in inherited:
        os.close(descriptor)


@needs_compiler
def test_build_that_was_cleared_away_in_part(sources: Path) -> None:
    library = builder.build(CPU).library
    library.unlink()
    assert builder.build(CPU).library == library
    assert library.is_file()


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@needs_compiler
@pytest.mark.parametrize(
    "stderr",
    [
        Broken(BrokenPipeError(errno.EPIPE, "Broken pipe")),
        Broken(OSError(errno.ENOSPC, "No space left on device")),
        Broken(ValueError("I/O operation on closed file.")),
        object(),
        None,
    ],
    ids=["broken", "full", "closed", "no file", "none"],
)
def test_what_cannot_be_said_decides_nothing(
    stderr: object, sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    assert builder.build(CPU).library.is_file()
    assert not capsys.readouterr().out


@needs_compiler
def test_compilers_read_no_stdin_and_print_in_any_encoding(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "c++"
    script.write_text("#!/bin/sh\ncat\nprintf '\\377 error: \\374\\n'\n[ \"$1\" = --version ]\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    read, write = os.pipe()  # nobody writes to it
    kept = os.dup(0)
    os.dup2(read, 0)
    try:
        with pytest.raises(builder.BuildError, match=r"compiling the kernels failed: .*error"):
            builder.build(CPU)
    finally:
        os.dup2(kept, 0)
        for file in (read, write, kept):
            os.close(file)


@needs_compiler
@pytest.mark.parametrize("what", ["log", "ninja"])
def test_failure_is_not_blamed_on_the_cache(
    what: str, sources: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "log":
        (sources / "registration.cpp").write_text("int main( {\n")
        cache.mkdir()
        (cache / f"{builder._name(CPU, CPU.find_tools())}.log").mkdir()
        words = (
            r"compiling the kernels failed: .*registration.cpp:1:.* \(the log .* cannot be written: Is a directory\)"
        )
    else:
        monkeypatch.setattr(builder, "find_ninja", lambda: "/no/ninja")
        words = (
            r"/no/ninja does not run \(No such file or directory\); run `python -m pip install --force-reinstall ninja`"
        )
    with pytest.raises(builder.BuildError, match=words):
        builder.build(CPU)


@needs_compiler
def test_disk_without_space_for_anything(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for the file that tempfile tries a folder with."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(builder, "_compile", refuse)
    monkeypatch.setattr("tempfile.gettempdir", refuse)
    with pytest.raises(builder.BuildError, match="no space is left on the disk of the cache folder"):
        builder.build(CPU)


@needs_compiler
def test_the_library_names_no_folder_of_whoever_compiled_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real kernels, in the cache that the other tests use."""
    monkeypatch.delenv("LEWEL_CACHE_DIR")
    code = builder.build(CPU).library.read_bytes()
    assert b"torch/csrc/stable/ops.h" in code
    for folder in (*toolchain.header_folders(), str(target.sources()), str(Path.home())):
        for path in (folder, os.path.realpath(folder)):
            assert os.fsencode(f"{path}/") not in code


def test_modules_say_that_they_run_without_the_gil() -> None:
    """One that does not turns it on again for the whole process when it is imported."""
    declared = [
        re.findall(r"^PYBIND11_MODULE\((.+)\) {$", path.read_text(), re.M) for path in target.sources().rglob("*.cpp")
    ]
    modules = [arguments for found in declared for arguments in found]
    assert len(modules) == 2
    for arguments in modules:
        assert "pybind11::mod_gil_not_used()" in arguments.split(", ")


def test_without_a_compiler_the_reference_runs_and_one_warning_names_the_remedy(tmp_path: Path) -> None:
    code = (
        "import warnings, torch, lewel_kernels\n"
        "x, w = torch.randn(2, 8, 3, 3), torch.randn(4, 8)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    a, b = (lewel_kernels.fused_align_aggregate(x, w) for _ in range(2))\n"
        "assert torch.equal(a, lewel_kernels.fused_align_aggregate(x, w, backend='reference'))\n"
        "print(len(caught), caught[0].message)\n"
        "try: lewel_kernels.fused_align_aggregate(x, w, backend='cpu')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = python(code, PATH=str(tmp_path), LEWEL_BACKEND="")
    assert done.returncode == 0, done.stderr
    warning, error = done.stdout.strip().splitlines()
    assert warning.startswith("1 ")
    for sentence in (warning, error):
        assert "apt install g++" in sentence
        assert "python -m lewel_kernels.build" in sentence


def test_status_builds_nothing(cache: Path) -> None:
    done = python("from lewel_kernels import native; print(native.status())")
    assert re.match(r"not built yet|cannot be built", done.stdout), done.stderr
    assert not cache.exists()


@needs_compiler
def test_status_of_a_build_tells_its_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEWEL_CACHE_DIR")
    done = python(
        "from lewel_kernels.native import builder, targets; builder.build(targets.CPU)\n"
        "from lewel_kernels import native; print(native.status())"
    )
    assert re.match(r"loaded, \S+ with vectors of \d+ bytes, by ", done.stdout), done.stderr


@needs_compiler
def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real kernels, in the cache that the other tests use."""
    monkeypatch.delenv("LEWEL_CACHE_DIR")
    command = [sys.executable, "-m", "lewel_kernels.build"]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert re.search(r"cpu kernels: .*_lewel_native\.so \((took [\d.]+ s|was there already)\)", outputs[0])
    assert "was there already" in outputs[1]
    for word in ("isa: native", "vector_bytes:", "compiler:", "flags:", "torch_abi: 2.10"):
        assert word in outputs[1]


def test_command_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_programs(tmp_path, monkeypatch)
    done = subprocess.run([sys.executable, "-m", "lewel_kernels.build"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The cpu backend cannot be built: there is no C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr


@needs_compiler
@pytest.mark.parametrize("jobs", ["abc", "0", "-1"])
def test_a_number_of_processes_that_is_none(jobs: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(builder.BuildError, match=f"MAX_JOBS must be a number of processes, .*got '{jobs}'"):
        builder.build(CPU)
