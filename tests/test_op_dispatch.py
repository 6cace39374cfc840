"""Which backend runs: routing, precedence, refusals, and the reports a user reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from op_cases import OpCase, make, run_op
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from lewel_kernels import (
    AlignAggregate,
    BackendUnavailable,
    dispatch,
    explain,
    fused_align_aggregate,
    use_backend,
)
from lewel_kernels.signature import Inputs, Options

CASE = OpCase("tiny", N=2, C=8, D=6, K=4, G=2, space=(3, 3), bias=True)


def call(**options: object) -> torch.Tensor:
    inputs = make(CASE, dtype=torch.float32)
    return fused_align_aggregate(inputs.features, inputs.weight, pixels=inputs.pixels, num_groups=2, **options)  # type: ignore[call-overload, no-any-return]


class Spy(types.ModuleType):
    """A backend for tests: delegates to the reference and notes every call."""

    def __init__(
        self, name: str, *, refusal: str | None = None, device_type: str | None = None, heat_rows: bool = False
    ) -> None:
        super().__init__(f"spy_{name}")
        self.name, self.device_type, self._refusal, self.heat_rows = name, device_type, refusal, heat_rows
        self.calls: list[str] = []
        self.requests: list[dispatch.Request] = []

    def refuse(self, request: dispatch.Request) -> str | None:
        self.requests.append(request)
        return self._refusal

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls.append("forward")
        pooled, maps, heat, norm = dispatch.load("reference").forward(*args, **kwargs)  # type: ignore[arg-type]
        return pooled, maps, heat.mT.contiguous().mT if self.heat_rows else heat, norm

    def backward(self, *args: object, **kwargs: object) -> object:
        self.calls.append("backward")
        return dispatch.load("reference").backward(*args, **kwargs)  # type: ignore[arg-type]


Install = Callable[..., Spy]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a spy into BACKENDS, in front of the others."""

    def add(name: str, **options: Any) -> Spy:
        spy = Spy(name, **options)
        monkeypatch.setitem(sys.modules, spy.__name__, spy)
        monkeypatch.setattr(dispatch, "BACKENDS", {name: spy.__name__, **dispatch.BACKENDS})
        monkeypatch.setattr(dispatch, "_warned", set())
        return spy

    return add


def test_a_request_runs_on_the_backend_it_names_and_on_no_other(
    backend: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, str]] = []

    def noting(name: str, direction: str, original: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            ran.append((name, direction))
            return original(*args, **kwargs)

        return wrapper

    for name in dispatch.BACKENDS:
        module = dispatch.load(name)
        for direction in ("forward", "backward"):
            monkeypatch.setattr(module, direction, noting(name, direction, getattr(module, direction)))
    run_op(make(CASE, dtype=torch.float32, device=device), backend)
    assert ran == [(backend, "forward"), (backend, "backward")]


def test_the_cpu_backend_runs_where_there_is_a_compiler() -> None:
    """The other tests skip a backend that refuses; a build that broke must not hide behind that."""
    if not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++")):
        pytest.skip("there is no C++ compiler on this machine")
    request = dispatch.Request(torch.device("cpu"), torch.float32)
    assert dispatch.refusal("cpu", request) is None
    assert explain(torch.zeros(2, 8, 9), torch.zeros(4, 8)).backend == "cpu"


def test_the_reference_refuses_what_pytorch_cannot_compute_with() -> None:
    request = dispatch.Request(torch.device("cpu"), torch.float8_e4m3fn)
    assert "no arithmetic for torch.float8_e4m3fn" in (dispatch.refusal("reference", request) or "")
    assert dispatch.refusal("reference", dispatch.Request(torch.device("meta"), torch.bfloat16)) is None


def test_automatic_takes_the_first_that_does_not_refuse(install: Install) -> None:
    second = install("second")
    first = install("first", refusal="it is having a rest")
    call().sum().backward()
    assert (first.calls, second.calls) == ([], ["forward", "backward"])


def test_precedence_is_argument_context_variable_automatic(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    spies = [install(name) for name in ("variable", "context", "argument", "automatic")]
    variable, context, argument, automatic = spies

    def ran() -> str:
        names = [spy.name for spy in spies if spy.calls]
        for spy in spies:
            spy.calls.clear()
        return ",".join(names)

    call()
    assert ran() == "automatic"
    monkeypatch.setenv("LEWEL_BACKEND", "variable")
    call()
    assert ran() == "variable"
    with use_backend("context"):
        call()
        assert ran() == "context"
        call(backend="argument")
        assert ran() == "argument"
        with use_backend("automatic"):
            call()
            assert ran() == "automatic"
        call()
        assert ran() == "context"
    call()
    assert ran() == "variable"
    assert (variable, context, argument, automatic) == tuple(spies)


def test_use_backend_is_undone_by_an_exception(install: Install) -> None:
    spy = install("spy")
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    call()
    assert spy.calls == ["forward"]


@pytest.mark.parametrize("demand", ["argument", "context", "variable"])
def test_a_demanded_backend_never_falls_back(demand: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    willing = install("willing")
    picky = install("picky", refusal="it wants a larger machine; buy one")
    with pytest.raises(BackendUnavailable, match=r"picky.*it wants a larger machine; buy one"):  # noqa: PT012
        if demand == "argument":
            call(backend="picky")
        elif demand == "context":
            with use_backend("picky"):
                call()
        else:
            monkeypatch.setenv("LEWEL_BACKEND", "picky")
            call()
    assert (willing.calls, picky.calls) == ([], [])


def test_the_backward_runs_where_the_forward_ran(install: Install) -> None:
    spy = install("spy")
    with use_backend("spy"):
        pooled = call()
    with use_backend("reference"):
        pooled.sum().backward()
    assert spy.calls == ["forward", "backward"]


@pytest.mark.parametrize("demand", ["context", "variable"])
def test_unknown_names_are_errors_that_list_the_known(demand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*reference; got 'fpga'"):  # noqa: PT012
        if demand == "context":
            with use_backend("fpga"):
                pass
        else:
            monkeypatch.setenv("LEWEL_BACKEND", "fpga")
            call()


def test_one_error_lists_every_reason(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in dispatch.BACKENDS:
        monkeypatch.setattr(dispatch.load(name), "refuse", lambda request: "it is on strike")
    install("tired", refusal="it is having a rest")
    install("elsewhere", device_type="cuda")
    with pytest.raises(BackendUnavailable) as caught:
        call()
    lines = str(caught.value).splitlines()
    assert "torch.float32" in lines[0]
    assert "  tired: it is having a rest" in lines
    assert "  elsewhere: it runs on cuda tensors; the features are on cpu" in lines
    assert "  reference: it is on strike" in lines
    assert len(lines) == 1 + len(dispatch.BACKENDS)


def test_an_unusable_fast_backend_is_worth_one_warning(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(dispatch.BACKENDS) - {"reference"}:
        monkeypatch.setattr(dispatch.load(name), "refuse", lambda request: "no compiler; run apt-get install g++")
    install("elsewhere", device_type="cuda", refusal="no GPU")
    install("quick", device_type="cpu", refusal="no compiler; run apt-get install g++")
    with pytest.warns(UserWarning, match="reference.*quick.*run apt-get install") as caught:
        call()
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the line that calls the op, not one of ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
        call(backend="reference")


def test_where_another_fast_backend_runs_there_is_no_warning(install: Install) -> None:
    spy = install("willing", device_type="cpu")
    install("quick", device_type="cpu", refusal="no compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert spy.calls == ["forward"]


def test_what_is_there_for_tests_is_never_chosen_automatically(install: Install) -> None:
    spy = install("instrument")
    spy.automatic = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert spy.calls == []
    told = explain(torch.zeros(2, 8, 9), torch.zeros(4, 8))
    assert told.refusals["instrument"] == "it is there for tests and runs only when demanded"
    call(backend="instrument")
    assert spy.calls == ["forward"]


def test_explain_says_which_and_why_and_why_not(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("willing")
    install("picky", refusal="it wants a larger machine")
    x, weight = torch.zeros(2, 8, 9), torch.zeros(4, 8)

    automatic = explain(x, weight)
    assert automatic.backend == "willing"
    assert automatic.refusals["picky"] == "it wants a larger machine"
    assert set(automatic.refusals) == set(dispatch.BACKENDS) - {"willing"}
    assert "backend willing: " in str(automatic)
    assert "not picky: it wants a larger machine" in str(automatic)

    demanded = explain(x, weight, backend="reference")
    assert demanded.reason == "demanded by the backend argument"
    others = set(dispatch.BACKENDS) - {"reference"}
    assert demanded.refusals == dict.fromkeys(others, "the backend argument demands reference")
    with use_backend("reference"):
        assert explain(x, weight).reason == "demanded by use_backend"
    monkeypatch.setenv("LEWEL_BACKEND", "reference")
    assert explain(x, weight).reason == "demanded by LEWEL_BACKEND"

    refused = explain(x, weight, backend="picky")
    assert refused.backend is None
    assert "picky" in refused.reason
    with pytest.raises(BackendUnavailable, match="it wants a larger machine"):
        fused_align_aggregate(x, weight, backend="picky")


def test_explain_agrees_with_what_runs(backend: str, device: torch.device) -> None:
    inputs = make(CASE, dtype=torch.float32, device=device)
    told = explain(inputs.features, inputs.weight, pixels=inputs.pixels, num_groups=2, backend=backend)
    assert told.backend == backend


@pytest.mark.parametrize("heat_rows", [False, True], ids=["maps", "rows"])
def test_heat_maps_may_be_stored_as_rows(heat_rows: bool, install: Install) -> None:
    """Fake and real results have the strides that the backend says, and the backward reads them."""
    # A name of its own: the compiler's cache on disk knows an op by its arguments, not by its fake kernel.
    name = f"spy_of_{'rows' if heat_rows else 'maps'}"
    spy = install(name, heat_rows=heat_rows)
    features, weight = torch.randn(2, 8, 9), torch.randn(4, 8)
    arguments = (None, weight, None, None, None, 2, 1.0, 1e-12, torch.float32, False, name)
    mode, forward = FakeTensorMode(), torch.ops.lewel_kernels.align_aggregate_fwd
    with mode:
        fakes = (mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in arguments)
        fake = forward(mode.from_tensor(features), *fakes)
    found = forward(features, *arguments)
    strides = (36, 1, 4) if heat_rows else (36, 9, 1)
    assert [x[2].stride() for x in (fake, found)] == [strides, strides]
    for op in (fused_align_aggregate, torch.compile(fused_align_aggregate, fullgraph=True)):
        gradients = []
        for backend in (name, "reference"):
            leaf = features.clone().requires_grad_()
            op(leaf, weight, num_groups=2, backend=backend).square().sum().backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
    assert spy.calls == ["forward", *2 * ["forward", "backward"]]


def test_a_backend_is_told_the_number_of_maps_and_their_type(install: Install) -> None:
    spy = install("spy")
    call()
    explain(torch.zeros(2, 8, 9), torch.zeros(12, 8))
    AlignAggregate(8, 20, dtype=torch.bfloat16)(torch.zeros(2, 8, 9, dtype=torch.bfloat16))
    assert [request.num_maps for request in spy.requests] == [4, 12, 20]
    assert [request.dtype for request in spy.requests] == [torch.float32, torch.float32, torch.bfloat16]


def test_the_number_of_maps_may_be_a_symbol_of_the_compiler(install: Install) -> None:
    spy = install("spy")
    counter = CompileCounter()
    compiled = torch.compile(fused_align_aggregate, fullgraph=True, dynamic=True, backend=counter)
    for n in (4, 3, 5):
        compiled(torch.zeros(n, 8, 9), torch.zeros(12, 8))
    assert counter.frame_count == 1
    assert {request.num_maps for request in spy.requests} == {12}


def test_explain_shows_what_the_backend_would_launch(install: Install) -> None:
    spy = install("spy")
    x, pixels, weight, bias = torch.zeros(2, 8, 3, 3), torch.zeros(2, 6, 9), torch.zeros(4, 6, 1, 1), torch.zeros(4)
    scale, shift = torch.zeros(6), torch.zeros(6)
    options = {"num_groups": 2, "temperature": 0.5, "eps": 1e-6, "out_dtype": torch.float64}

    def tell(**changes: object) -> dispatch.Explanation:
        arguments = {"pixels": pixels, "pixels_affine": (scale, shift), **options, **changes}
        return explain(x, weight, bias, **arguments)  # type: ignore[arg-type]

    assert tell().plan == ""
    assert len(str(tell()).splitlines()) == len(dispatch.BACKENDS)

    def describe(inputs: Inputs, given: Options) -> str:
        shapes = [None if t is None else tuple(t.shape) for t in inputs]
        assert shapes == [(2, 8, 9), (2, 6, 9), (4, 6), (4,), (6,), (6,)]
        assert given == Options(**options)  # type: ignore[arg-type]
        return "one kernel\nanother kernel"

    spy.describe = describe  # type: ignore[attr-defined]
    told = tell()
    assert told.plan == "one kernel\nanother kernel"
    assert str(told).splitlines()[1:3] == ["  one kernel", "  another kernel"]
    assert tell(backend="reference").plan == ""
    spy.describe = lambda inputs, given: str(given.out_dtype)  # type: ignore[attr-defined]
    assert tell(out_dtype=None).plan == "torch.float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert tell(out_dtype=None).plan == "torch.bfloat16"


def test_backends_after_the_chosen_one_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """To answer, one may have to compile its kernels, for minutes."""
    chosen = explain(torch.ones(1, 4, 1, 1), torch.ones(4, 4)).backend
    last = list(dispatch.BACKENDS)[-1]
    assert chosen != last
    monkeypatch.setattr(dispatch.load(last), "refuse", lambda request: pytest.fail("it was asked"))
    said = explain(torch.ones(1, 4, 1, 1), torch.ones(4, 4))
    assert said.refusals[last] == f"{chosen} comes first in the automatic order"


@pytest.mark.parametrize("stderr", ["sys.stderr.close()", "sys.stderr = None"], ids=["closed", "none"])
def test_a_warning_that_cannot_be_said_stops_nothing(stderr: str, tmp_path: Path) -> None:
    code = (
        f"import sys, torch, lewel_kernels\n{stderr}\n"
        "print(*lewel_kernels.fused_align_aggregate(torch.zeros(2, 8, 9), torch.zeros(4, 8)).shape)\n"
    )
    environment = os.environ | {
        "CXX": "no-such-compiler", "LEWEL_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout == "2 1 8\n", run.stderr
