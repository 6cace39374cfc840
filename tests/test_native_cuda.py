"""The cuda backend around its kernels: the GPUs and dtypes it takes, the library it loads, what the ops are given."""

from __future__ import annotations

import re
from collections.abc import Callable

import emulation
import pytest
import torch

from lewel_kernels import cuda, dispatch, native, signature
from lewel_kernels.native import builder, target
from lewel_kernels.native.toolchain import BuildError


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No emulation, and a PyTorch for NVIDIA GPUs."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda, "gpus", cuda.Gpus())


def test_each_library_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def build(what: target.Target) -> builder.Build:
        tried.append(what.name)
        raise BuildError(f"{what.name} is not built today; wait")

    monkeypatch.setattr(native, "_reasons", {})
    monkeypatch.setattr(builder, "build", build)
    for _ in range(2):
        assert native.unavailable("cuda") == (
            "cuda is not built today; wait, then run `python -m lewel_kernels.build --cuda`"
        )
        with pytest.raises(RuntimeError, match="cpu is not built today"):
            native.require()
        assert native.status("emulated_sm70").startswith(("not built yet", "unavailable", "cannot be built"))
        with pytest.raises(RuntimeError, match=r"then run `python tests/emulation sm_70`"):
            native.build_info("emulated_sm70")
    assert tried == ["cuda", "cpu", "emulated_sm70"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """Asks the backend about a GPU of a capability, with a library for certain ones, or a reason why there is none."""

    def ask(
        capability: tuple[int, int] | None,
        dtype: torch.dtype = torch.float16,
        built: str = "sm_70 sm_80 sm_90 compute_90",
        by: str = "12.6.1",
        reason: str | None = None,
    ) -> str | None:
        monkeypatch.setattr(cuda, "_capability", lambda device: capability)
        monkeypatch.setattr(native, "unavailable", lambda name: reason)
        monkeypatch.setattr(native, "build_info", lambda name: {"archs": built, "nvcc": by})
        cuda._not_compiled_for.cache_clear()
        return cuda.refuse(dispatch.Request(torch.device("cuda", 0), dtype))

    yield ask
    cuda._not_compiled_for.cache_clear()


def test_it_runs_on_gpus_that_it_was_compiled_for(gpu: Callable[..., str | None]) -> None:
    for capability in ((7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (12, 0)):
        for dtype in (torch.float16, torch.float32, *([torch.float64] if capability != (7, 5) else [])):
            assert gpu(capability, dtype) is None
    assert gpu((8, 0), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"capability": (8, 0), "dtype": torch.int32}, "float32, bfloat16, float16 or float64; .*torch.int32: convert"),
        ({"capability": None}, "PyTorch sees no GPU"),
        ({"capability": (6, 1)}, r"tensor cores .* from sm_70 on \(V100\), and cuda:0 is sm_61"),
        (
            {"capability": (7, 0), "dtype": torch.bfloat16},
            r"bfloat16 needs .* sm_80 .* is sm_70: use float16 \(torch.autocast\(dtype=torch.float16\) with a Grad",
        ),
        (
            {"capability": (7, 5), "dtype": torch.float64},
            "float64 takes more shared memory than a block has on sm_75, .*: use float32",
        ),
        ({"capability": (8, 0), "reason": "no nvcc; install it"}, "no nvcc; install it"),
        (
            {"capability": (7, 0), "built": "sm_75 sm_80", "by": "13.0.88"},
            r"compiled for sm_75, sm_80 by nvcc 13\.0\.88, and this GPU is sm_70; .*CUDA 12\.x toolkit and PyTorch's "
            r"CUDA 12\.6 build, then run `python -m lewel_kernels.build --cuda`",
        ),
        (
            {"capability": (8, 0), "built": "sm_90"},
            r"compiled for sm_90 .*, and this GPU is sm_80; set TORCH_CUDA_ARCH_LIST to a list that has 8\.0, or "
            "unset it, then run `python -m lewel_kernels.build --cuda`",
        ),
    ],
)
def test_refusals(asked: dict[str, object], words: str, gpu: Callable[..., str | None]) -> None:
    assert re.search(words, str(gpu(**asked)))


def test_nothing_is_compiled_for_a_gpu_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "unavailable", lambda name: pytest.fail("it was compiled"))
    monkeypatch.setattr(cuda, "_capability", lambda device: (7, 0))
    device = torch.device("cuda", 0)
    assert cuda.refuse(dispatch.Request(device, torch.bfloat16))
    assert cuda.refuse(dispatch.Request(device, torch.int8))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "AMD" in str(cuda.refuse(dispatch.Request(device, torch.float16)))


def test_an_emulated_gpu_has_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(native, "unavailable", asked.append)
    for gpu in emulation.GPUS.values():
        monkeypatch.setattr(cuda, "gpus", gpu)
        monkeypatch.setattr(native, "build_info", lambda name: {"archs": f"sm_{name[-2:]}", "nvcc": "none"})
        assert cuda.refuse(dispatch.Request(torch.device("cpu"), torch.float16)) is None
    assert asked == ["emulated_sm80", "emulated_sm70"]
    assert "bfloat16 needs" in str(cuda.refuse(dispatch.Request(torch.device("cpu"), torch.bfloat16)))


@pytest.mark.parametrize("images", [2, 0])
def test_what_the_ops_are_given(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(cuda, "_ops", lambda name: (lambda *x: calls.append(x), lambda *x: calls.append(x)))
    features, weight, bias = torch.randn(images, 8, 9), torch.randn(4, 6), torch.randn(4)
    pixels, scale, shift = torch.randn(images, 6, 9), torch.randn(12)[::2], torch.randn(6)
    inputs = signature.Inputs(features, pixels, weight, bias, scale, shift)
    needs = (True, False, True, False, True, True)
    options = signature.Options(2, 0.5, 1e-6, torch.float64, needs=needs)
    pooled, maps, heat, norm = cuda.forward(inputs, options)
    assert [(x.shape, x.dtype) for x in (pooled, maps, heat, norm)] == [
        ((images, 2, 8), torch.float64), ((0,), torch.float64), ((images, 4, 9), torch.float32),
        ((images, 9), torch.float32),
    ]  # fmt: skip
    assert heat.stride() == (36, 1, 4)
    gradients = cuda.backward((pooled, None), inputs, (heat.contiguous(), norm), options)
    for gradient, x, need in zip(gradients, inputs, needs, strict=True):
        assert (gradient is not None and gradient.shape == x.shape) if need else gradient is None
    if not images:
        assert calls == []
        assert all(gradient.count_nonzero() == 0 for gradient in gradients if gradient is not None)
        return
    forward, backward = calls
    assert len(forward) == 13
    assert forward[4].is_contiguous()  # type: ignore[attr-defined]
    assert forward[6:9] == (2, 0.5, 1e-6)
    assert forward[10] is None
    assert [x is None for x in backward[12:]] == [not need for need in needs]
    assert backward[7].stride() == (36, 1, 4)  # type: ignore[attr-defined]


def test_emulating_what_cannot_be_emulated() -> None:
    with pytest.raises(ValueError, match="the GPU to emulate must be one of sm_80, sm_70; got 'sm_75'"):
        emulation.install("sm_75")
