"""Fixtures of the op's tests: every generic test runs once per backend that can run on this machine.

`pytest tests -k test_op_ --device cuda --large` is the whole proof on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# Workers of pytest-xdist share the cores: one thread each, unless a test asks for more. OpenMP reads this once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import emulation
import tiers
import torch

from lewel_kernels import cuda, dispatch

# On the CPU the GPU backends run in an interpreter and in an emulation. Triton reads its variable when it is imported,
# which a conftest.py beside this one may do; so it is set here, and `pytest_configure` takes it back.
os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "the device of the op's tests, such as cuda; backends that cannot run there are not tested (default: cpu)"
    with contextlib.suppress(ValueError):  # benchmarks/ has the same option, where both folders are asked for
        parser.addoption("--device", default="cpu", help=told)
    parser.addoption("--large", action="store_true", help="also run the tests that need some ten GB of memory")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{tiers.MARKER}: left to make test-all; see tests/tiers.py")
    config.addinivalue_line("markers", "xdist_group: pytest-xdist's, which need not be installed")
    config.pluginmanager.register(tiers.Report(config), "tiers")
    # cuBLAS reads this when it starts, and without it PyTorch refuses matrix products where `poisoned` is in force.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Convolutions take TF32 unless told otherwise, and the error of eager in float32, a yardstick, would be 1e-3.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    name = config.getoption("--device")
    if interpreted(config):
        emulation.install()
    else:
        del os.environ["TRITON_INTERPRET"]
        if "triton" in sys.modules:
            raise pytest.UsageError(
                "with --device cuda name tests, or files in it: tests/lewel imports triton too early"
            )
    try:
        torch.ones((), device=name).add(1).item()
    except (AssertionError, RuntimeError) as error:  # PyTorch asserts that it was built for CUDA
        reason = str(error).partition("\n")[0]
        raise pytest.UsageError(
            f"--device must name a device that PyTorch can compute on; got {name!r}: {reason}"
        ) from error


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter(request: pytest.FixtureRequest) -> Iterator[None]:
    """Triton's interpreter patches triton.language at every call of a device function, which takes half of its time.

    The kernel that calls has patched it already, but for what a module has imported besides: once for each will do.
    """
    if not interpreted(request.config) or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.interpreter import InterpretedFunction

    call, seen = InterpretedFunction.__call__, set()

    def call_patched(self: Any, *args: Any, **options: Any) -> Any:
        if id(self.fn.__globals__) in seen:
            return self.rewrite()(*args, **options)
        seen.add(id(self.fn.__globals__))
        return call(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call_patched)
        yield


def pytest_report_header(config: pytest.Config) -> list[str]:
    device = asked_device(config)
    model = f" ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})" if device.type == "cuda" else ""
    lines = [f"op: device {device}{model}, torch {torch.__version__}, backends {', '.join(dispatch.BACKENDS)}"]
    lines += [f"op: tests of {name} are deselected: it does not run on {device}" for name in elsewhere(config)]
    if interpreted(config):
        lines.append("op: triton runs in its interpreter, on the CPU; its tests that want a GPU are deselected")
        lines.append("op: cuda runs in its emulation of an sm_80, on the CPU")
    return lines


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselected rather than skipped: a line for each test would bury what was skipped for other reasons."""
    names = elsewhere(config)

    def left_out(item: pytest.Item) -> bool:
        backend = item.callspec.params.get("backend") if hasattr(item, "callspec") else None
        needs_gpu = backend == "triton" and interpreted(config) and NOT_INTERPRETED.search(item.nodeid)
        return backend in names or bool(needs_gpu)

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]
    config.pluginmanager.get_plugin("tiers").counts = tiers.mark(items)
    for item in items:
        if item.path.stem in ONE_WORKER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


# Files whose tests share something that takes long to make: a worker makes it once.
ONE_WORKER = ("test_distributed", "test_export", "test_killed", "test_op_peak_memory")


@pytest.fixture(params=dispatch.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; skips, with the backend's own sentence, where it cannot run."""
    name: str = request.param
    if sentence := dispatch.refusal(name, dispatch.Request(device_of(name, request.config), torch.float32)):
        pytest.skip(f"{name}: {sentence}")
    return name


@pytest.fixture
def slow(backend: str, request: pytest.FixtureRequest) -> bool:
    """Whether a call takes a second: a test may then be content with fewer."""
    return backend == "triton" and interpreted(request.config)


@pytest.fixture
def device(backend: str, request: pytest.FixtureRequest) -> torch.device:
    """Where the tensors of a test for ``backend`` live."""
    return device_of(backend, request.config)


def interpreted(config: pytest.Config) -> bool:
    """Whether the kernels of the GPU backends run on the CPU, interpreted or emulated."""
    return asked_device(config).type == "cpu"


# The interpreter takes a second for what a GPU does in a microsecond, and cuts off where a GPU rounds to bfloat16. Left
# out there are bfloat16, what calls the op hundreds of times, and what tests the code around the kernels, which the
# other backends go through as well.
NOT_INTERPRETED = re.compile(
    "bf16|bfloat16|rounded_once|second_order|inductor|compile_once|fresh_process|two_ranks|batched_gradients"
    "|run_to_run|repeats_of_a_large_batch|any_number_of_threads|row_alone.*dense|registration.*subset_of_gradients"
    "|layouts.*fp64|tell_the_truth.*(float64|float16)"
    "|as_accurate_as_eager.*(pooled]|dense|full_width)|vectors_and_tiles.*(fp16|K68|K65)|exact_in_float64.*full_width"
    "|opcheck_of_the_backward|annealed_temperature|marked_dynamic|test_op_func.*(jacrev|reverse_over_reverse|reverse_over_forward)|tell_the_truth.*(dense|full_width)|affine.*(test_vmap|dynamic_batch)"
)


def device_of(backend: str, config: pytest.Config) -> torch.device:
    """The backend's own type of device; the one that was asked for if that is of this type, or the backend has none."""
    own, asked = dispatch.load(backend).device_type, asked_device(config)
    return asked if own in (None, asked.type) else torch.device(own)


def elsewhere(config: pytest.Config) -> list[str]:
    """The backends of which --device wants no tests. A run on the CPU leaves out nothing that this machine can run."""
    asked = asked_device(config).type
    return [name for name in dispatch.BACKENDS if asked != "cpu" and device_of(name, config).type != asked]


def asked_device(config: pytest.Config) -> torch.device:
    return torch.device(config.getoption("--device"))


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every torch.empty is filled with NaN, so that reading what nobody wrote cannot go unnoticed."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _no_demand_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LEWEL_BACKEND in the caller's shell must not decide what a test tests."""
    monkeypatch.delenv("LEWEL_BACKEND", raising=False)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """What a test compiles does not count towards the limits of another."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The GPU that the cuda backend emulates during a test, or "gpu"; skips, with its own sentence, where it cannot."""
    name: str = request.param
    if name != "gpu":
        monkeypatch.setattr(cuda, "gpus", emulation.GPUS[name])
    if reason := dispatch.refusal("cuda", dispatch.Request(torch.device(cuda.device_type), torch.float32)):
        pytest.skip(f"cuda: {reason}")
    return name


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For PyTorch, where all tensors are too small to be shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
