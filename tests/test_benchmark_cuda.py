"""The CUDA paths of the benchmarks on a pretended GPU: its tensors are the CPU's, everything else must be right.

No speed and no kernel is tested, only that devices are named and kept apart, and that the rows say what they should.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import __main__, heap, machine, recording, timing
from benchmarks.gpu import commands as gpu_commands
from benchmarks.gpu import session, tune
from benchmarks.op import commands as op_commands
from benchmarks.op import overhead, providers, rates
from benchmarks.op.cost import MODES
from benchmarks.training import aligned_loss
from benchmarks.training import commands as training_commands

ROOT = Path(__file__).parents[1]
GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
NAME, PEAK = "Pretended GPU 80GB", 3 << 20
MOVES = {"aten::copy_", "aten::_to_copy", "aten::set_.source_Tensor"}  # may have tensors of two devices


class Memory(TorchDispatchMode):
    """Knows which storages are on the GPU, and refuses to compute with tensors of both devices, as PyTorch does.

    While something is timed it refuses to compute with the CPU's alone, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[StorageWeakRef] = set()  # weak, and yet no other storage takes the place of one of them
        self.timed = False

    def put(self, x: Tensor) -> None:
        self.storages.add(StorageWeakRef(x.untyped_storage()))

    def holds(self, x: Tensor) -> bool:
        return StorageWeakRef(x.untyped_storage()) in self.storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = {self.holds(x) for x in inputs if x.ndim or self.holds(x)}  # a number of the CPU goes with everything
        if len(on_gpu) == 2 and func.name() not in MOVES:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func.name()}")
        if self.timed and on_gpu == {False}:
            raise RuntimeError(f"{func.name()} on the CPU is timed as the GPU's")
        out = func(*args, **(kwargs or {}))
        known = {StorageWeakRef(x.untyped_storage()) for x in inputs}
        for x in tree_leaves(out):
            if on_gpu == {True} and isinstance(x, Tensor) and StorageWeakRef(x.untyped_storage()) not in known:
                self.put(x)
        return out


class Placement(TorchFunctionMode):
    """What names the GPU gets the CPU, and what comes of it is put into the GPU's memory."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if self.memory.holds(args[0]) else CPU
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return self.memory.holds(args[0])
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._move(func, *args, **kwargs)
        if (generator := kwargs.get("generator")) is not None:
            asked = torch.device(kwargs.get("device") or "cpu")
            assert getattr(generator, "asked", CPU) == asked, "a generator of another device"
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        assert torch.device(device).index in (None, 0)
        out = func(*args, **{**kwargs, "device": "cpu"})
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.memory.put(x)
        return out

    def _move(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        named = [kwargs.pop("device", None), *(v for v in args if isinstance(v, str | torch.device))]
        asked = {Tensor.cpu: "cpu", Tensor.cuda: "cuda"}.get(func) or next(filter(None, named), None)
        dtypes = [value for value in args if isinstance(value, torch.dtype)]  # Module.to hands on a None and a bool too
        there = self.memory.holds(x)
        moved = x.to(*dtypes, **kwargs) if dtypes or kwargs else x
        if asked is None or (torch.device(asked).type == "cuda") == there:
            return moved
        moved = moved.clone()
        if there:
            self.memory.storages.discard(StorageWeakRef(moved.untyped_storage()))
        else:
            self.memory.put(moved)
        return moved


class Generator(torch.Generator):
    """Knows the device that it was made for."""

    asked: torch.device

    def __new__(cls, device: object = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        made.asked = torch.device(device)  # type: ignore[call-overload]
        return made


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.seconds - self.seconds)


class Stream:
    """Streams wait for one another, and a capture on the default one is an error."""

    def wait_stream(self, stream: Stream) -> None:
        assert stream is not self


class CUDAGraph:
    """What is captured has run once, eagerly; a replay leaves everything where it is and is only counted."""

    replays = 0

    def capture_begin(self, *, capture_error_mode: str) -> None:
        assert capture_error_mode == "global"

    def capture_end(self) -> None:
        self.ended = True

    def replay(self) -> None:
        assert self.ended
        CUDAGraph.replays += 1


class Profile(torch.profiler.profile):
    """What the CPU did is what the device did."""

    def __init__(self, *, activities: list[torch.profiler.ProfilerActivity]) -> None:
        assert torch.profiler.ProfilerActivity.CUDA in activities
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU])

    def events(self) -> Any:
        events = super().events()
        for event in events:
            event.device_type = torch.autograd.DeviceType.CUDA
        return events


def index(device: object = None) -> int:
    """PyTorch's own check of what names a GPU."""
    found = torch.cuda._utils._get_device_index(device, optional=True)
    assert found == 0
    return found


@contextlib.contextmanager
def pretended_gpu() -> Iterator[SimpleNamespace]:
    """One GPU, `set` its index each time that it was chosen. set_device itself, with its check, is PyTorch's."""
    memory, seen = Memory(), SimpleNamespace(set=[])
    streams = [Stream()]

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    def timed(call: Callable[[], object], device: str, repeats: int) -> float:
        memory.timed = torch.device(device) == GPU
        try:
            return sample(call, device, repeats)
        finally:
            memory.timed = False

    sample = timing.sample
    autocast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    fakes: dict[str, object] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: f"{NAME}{index(device) or ''}",
        "get_device_properties": lambda device=None: SimpleNamespace(L2_cache_size=1 << (16 + index(device))),
        "get_device_capability": lambda device=None: (9, index(device)),
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: index(device),
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: (1 << 20) + index(device),
        "max_memory_allocated": lambda device=None: (1 << 20) + PEAK + index(device),
        "reset_peak_memory_stats": lambda device=None: index(device),
        "Event": Event,
        "Stream": Stream,
        "stream": on,
        "current_stream": lambda: streams[-1],
        "CUDAGraph": CUDAGraph,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
    }
    with pytest.MonkeyPatch.context() as patch, memory, Placement(memory):
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(torch._C, "_cuda_setDevice", seen.set.append)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None)
        patch.setattr(torch.cuda.graph, "default_capture_stream", None)
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.profiler, "profile", Profile)
        patch.setattr(torch, "autocast", lambda kind, *args, **options: autocast("cpu", *args, **options))
        patch.setattr(torch, "is_autocast_enabled", lambda *_: enabled("cpu"))
        patch.setattr(torch, "get_autocast_dtype", lambda _: dtype("cpu"))
        patch.setattr(timing, "sample", timed)
        patch.setattr(machine, "_driver", lambda: "580.0")
        patch.setattr(CUDAGraph, "replays", 0)
        yield seen


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The pretended GPU; results go to a folder of the test's own."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    monkeypatch.setattr(timing, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(rates, "SIDES", {"cuda": 32})
    monkeypatch.setattr(rates, "WARM_SECONDS", 0.01)
    monkeypatch.setattr(rates, "COPY_SECONDS", 0.01)
    monkeypatch.setattr(rates, "WAY_SECONDS", 0.01)
    for name in providers.COMPILED:  # for a GPU there is nothing to compile with
        monkeypatch.delitem(providers.PROVIDERS, name)
    rates.copy_rate.cache_clear()
    with pretended_gpu() as seen:
        yield seen
    rates.copy_rate.cache_clear()


def rows_of(suite: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows that a command records, in the folder of the GPU."""
    with pytest.raises(SystemExit) as done:
        __main__.main(list(arguments))
    assert done.value.code in (None, 0)
    path = recording.ROOT / machine.slug(NAME) / f"{suite}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        assert (row["device"], row["driver"], row["cuda"]) == (NAME, "580.0", torch.version.cuda)
        assert row["instructions"] is None
    return rows


SMALL = ("--shape", "small", "--dtype", "fp32", "--layout", "nchw", "--provider", "reference", "--seconds", "0.01")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_run_records_calls_and_graph_replays(gpu: SimpleNamespace, device: str) -> None:
    rows = rows_of("quick", "run", "--suite", "quick", "--device", device, *SMALL)
    assert gpu.set == [0]
    assert [(row["mode"], row["launch"], row["provider"]) for row in rows] == [
        (mode, launch, name) for mode in MODES for launch in ("plain", "graph") for name in ("eager", "reference")
    ]
    assert CUDAGraph.replays > 0
    for row in rows:
        assert row["case"]["device"] == "cuda:0"
        assert row["problem"] is None
        assert row["samples"] >= timing.LEAST_ROUNDS
        assert row["speedups"].keys() == {"eager"}
        assert row["copy_rate"] > 0 < row["matmul_rate"]
        plain = row["launch"] == "plain"
        assert row["peak_bytes"] == (PEAK if plain else None)
        assert (row["launches"] or 0) > 0 if plain else row["launches"] is None
        assert (row["saved_bytes"] is not None) == (plain and row["mode"] == "forward+backward")


def test_a_case_in_16_bits_runs_under_autocast(gpu: SimpleNamespace) -> None:
    bf16 = [argument.replace("fp32", "bf16") for argument in SMALL]
    assert {row["problem"] for row in rows_of("quick", "run", "--device", "cuda", *bf16)} == {None}


def test_overhead(gpu: SimpleNamespace) -> None:
    rows = rows_of("overhead", "overhead", "--device", "cuda", "--seconds", "0.01")
    assert gpu.set == [0]
    assert {row["case"]["device"] for row in rows} == {"cuda:0"}
    assert {(row["call"], row["mode"]) for row in rows} >= {("reference", mode) for mode in MODES}
    assert {row["call"] for row in rows if row["mode"] == overhead.SINGLE_OPS} >= {"conv2d", "matmul"}
    assert not {row["call"] for row in rows} & {"cpu"}  # it refuses tensors of a GPU


def test_loss(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligned_loss, "BATCHES", (1, 2))
    rows = rows_of("loss", "loss", "--device", "cuda", "--seconds", "0.01")
    assert gpu.set == [0]
    assert [(row["case"]["N"], row["variant"]) for row in rows] == [*product((1, 2), ("plain", "blocked"))]
    assert {row["peak_bytes"] for row in rows} == {PEAK}
    assert all(0 < row["logits_bytes"] <= row["live_bytes"] for row in rows)


def test_candidates_of_the_tuner_are_timed_as_replays_of_a_graph(gpu: SimpleNamespace) -> None:
    """Each of the launches of all calls; one alone takes less time than the host needs for it."""
    ran: list[str] = []

    def stage(name: str) -> Any:
        return [SimpleNamespace(run=lambda: ran.append(name))] * 2

    times = tune.seconds_of({name: [stage(name), stage(name)] for name in ("a", "b")}, "cuda:0", 0.01)
    assert {name: len(found) > 2 for name, found in times.items()} == {"a": True, "b": True}
    assert CUDAGraph.replays > 10
    assert ran == ["a"] * 8 + ["b"] * 8  # to warm up, and while it is captured


def test_step(gpu: SimpleNamespace) -> None:
    tiny = ("--encoder", "tiny", "--image-size", "16", "--batch", "8", "--precision", "fp32", "--method", "lewel_m")
    rows = rows_of("step", "step", "--device", "cuda", "--seconds", "0.01", *tiny)
    assert gpu.set == [0]
    assert [(row["variant"], row["backend"]) for row in rows] == [("eager", None), ("fused", "reference")]
    assert {row["case"]["device"] for row in rows} == {"cuda:0"}
    assert {(row["problem"], row["peak_bytes"]) for row in rows} == {(None, PEAK)}


def test_on_a_gpu_a_step_is_a_resnet_in_the_dtype_of_the_gpu(gpu: SimpleNamespace) -> None:
    options = SimpleNamespace(device="cuda:0", encoder="auto", image_size=0, batch=128, precision=["auto"])
    cases = training_commands.cases(options)  # type: ignore[arg-type]
    assert list(map(str, cases)) == ["resnet50, 224x224, batch 128, bf16"]


@pytest.mark.parametrize("name", session.SESSIONS)
def test_the_parts_of_a_session_are_commands_for_this_gpu(
    name: str, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, commands in (
        (op_commands, ("suite", "overhead", "prologue")),
        (training_commands, ("loss", "step")),
        (gpu_commands, ("build", "right", "tune")),
    ):
        for name_of_one in commands:
            monkeypatch.setattr(folder, f"run_{name_of_one}", lambda options: taken.append(options.device))
    monkeypatch.setattr(session, "_run", lambda part, _: begun.append(part.command) or "ok")
    monkeypatch.setattr(session.dispatch, "refusal", lambda *_: None)  # which would say that triton is interpreted here
    for known in providers.COMPILED:  # only named here
        monkeypatch.setitem(providers.PROVIDERS, known, providers.COMPILED[known])
    begun: list[tuple[str, ...]] = []
    taken: list[str] = []
    with pytest.raises(SystemExit) as done:
        __main__.main([name, "--device", "cuda"])
    assert done.value.code == 0
    assert not gpu.set  # the memory that this would take is for the parts
    measured = [command[2:] for command in begun if command[:2] == ("-m", "benchmarks")]
    for arguments in measured:
        with pytest.raises(SystemExit) as done:
            __main__.main(list(arguments))
        assert done.value.code is None
    counts = {"first": 5, "check": 1, "tune-session": 2, "report": 5}
    assert taken == ["cuda:0"] * len(measured) == ["cuda:0"] * counts[name]
    assert begun[0][1:3] == (("benchmarks", "build") if name == "first" else ("lewel_kernels.build", "--cuda"))
    assert all("cuda:0" in command for command in begun[1:])


def test_pytest_benchmarks(tmp_path: Path) -> None:
    """`pytest benchmarks --device cuda`, in a process of its own."""
    stored = tmp_path / "run.json"
    code = (
        "import sys, pytest\n"
        "from benchmarks.op import providers\n"
        "from tests.test_benchmark_cuda import pretended_gpu\n"
        "for name in providers.COMPILED: del providers.PROVIDERS[name]\n"
        "with pretended_gpu() as gpu: status = pytest.main(sys.argv[1:])\n"
        "assert gpu.set == [0], gpu.set\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code, "benchmarks", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
    command += ["-k", "small-fp32 and reference", "--benchmark-json", str(stored)]
    command += ["--benchmark-max-time", "0.01", "--benchmark-min-rounds", "1"]
    # In a worker of pytest-xdist nothing is timed, and this variable says that it is one.
    alone = {name: x for name, x in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(stored.read_text())["benchmarks"]
    assert sorted(b["name"] for b in found) == sorted(f"test_quick[reference-small-fp32-{mode}]" for mode in MODES)
    assert all(b["extra_info"]["device"] == "cuda:0" and b["extra_info"]["device_ms"] > 0 for b in found)


def test_pretended_devices_are_kept_apart(gpu: SimpleNamespace) -> None:
    """So that the other tests mean something."""
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    assert (there * 2).device == GPU
    assert there.double().is_cuda
    assert here.to(there.device).device == GPU
    assert there.cpu().device == here.device == CPU
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="timed as the GPU's"):
        timing.sample(lambda: here * 2, "cuda:0", 1)
    with pytest.raises(AssertionError, match="generator"):
        torch.randn(2, device="cuda", generator=torch.Generator())
    with pytest.raises(ValueError, match="index"):
        torch.cuda.set_device("cuda")
