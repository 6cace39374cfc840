"""The op under the tools that people put around it: exporters, tracers, counters, shards, shapes without contents."""

from __future__ import annotations

import copy
import io
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from op_cases import OpCase, make, run_op
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.op.cases import Case, Shape, make_inputs
from benchmarks.op.cost import MODES, least
from benchmarks.op.measure import call_of
from benchmarks.op.providers import PROVIDERS
from lewel_kernels import BACKENDS, AlignAggregate, align_aggregate, dispatch, explain, fused_align_aggregate

ANY = [None, *BACKENDS]


class Head(nn.Module):
    """The op with pixels and maps, between other layers."""

    def __init__(self, backend: str | None, device: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.align = AlignAggregate(6, 8, temperature=0.3, bias=True, backend=backend, device=device)
        self.last = nn.Linear(16, 3, device=device)

    def forward(self, features: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        pooled, maps = self.align(features.relu(), pixels, True)
        return self.last(pooled), maps


def images(n: int, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return tuple(torch.randn(n, c, h, w, generator=generator).to(device) for c in (16, 6))  # type: ignore[return-value]


def in_a_process(code: str, **variables: str) -> tuple[str, str]:
    """What a fresh Python prints, on stdout and stderr."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | variables
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout, run.stderr


SIZES = [(2, 5, 3), (7, 1, 4), (3, 14, 14)]


# Exporters and tracers


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
def test_export_with_any_batch_and_size(strict: bool, backend: str, device: torch.device) -> None:
    head = Head(backend, device)
    n, h, w = Dim("n"), Dim("h"), Dim("w")
    sizes = {0: n, 2: h, 3: w}
    program = torch.export.export(head, images(4, 7, 6, device), dynamic_shapes=(sizes, sizes), strict=strict).module()
    for size in SIZES:
        torch.testing.assert_close(program(*images(*size, device)), head(*images(*size, device)))


def test_export_leaves_automatic_sizes_dynamic() -> None:
    automatic = {i: Dim.AUTO for i in (0, 2, 3)}
    head, x = AlignAggregate(12, 8), torch.randn(4, 12, 5, 3)
    program = torch.export.export(head, (x,), dynamic_shapes=(automatic,))
    (features,) = (node.meta["val"] for node in program.graph.nodes if node.name == "features")
    assert [isinstance(size, torch.SymInt) for size in features.shape] == [True, False, True, True]


@pytest.mark.parametrize("early", [False, True], ids=["", "pre_dispatch"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_op(mode: str, early: bool, backend: str, device: torch.device) -> None:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return fused_align_aggregate(x, weight, backend=backend)

    weight = torch.randn(8, 16, device=device)
    graph = make_fx(run, tracing_mode=mode, pre_dispatch=early)(images(4, 7, 6, device)[0], weight)
    targets = [node.target for node in graph.graph.nodes]
    assert targets.count(torch.ops.lewel_kernels.align_aggregate_fwd.default) == 1
    for size in SIZES if mode == "symbolic" else [(4, 7, 6)]:
        x, _ = images(*size, device)
        assert torch.equal(graph(x, weight), run(x, weight))


def test_symbolic_trace_makes_one_node() -> None:
    head = Head(None, torch.device("cpu"))
    graph = torch.fx.symbolic_trace(head)
    assert [node.target for node in graph.graph.nodes].count(fused_align_aggregate) == 1
    for found, expected in zip(graph(*images(2, 5, 3, "cpu")), head(*images(2, 5, 3, "cpu")), strict=True):  # type: ignore
        assert torch.equal(found, expected)
    code = copy.deepcopy(graph)
    code.recompile()
    assert "fused_align_aggregate" in code.code


class Pooling(nn.Module):
    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        return align_aggregate(features, maps, 4)


def test_pooling_alone_is_exported_and_traced() -> None:
    sizes = {0: Dim("n"), 2: Dim("h"), 3: Dim("w")}
    example = torch.randn(4, 16, 7, 6), torch.randn(4, 8, 7, 6)
    programs = {
        "exported": torch.export.export(Pooling(), example, dynamic_shapes=(sizes, sizes)).module(),
        "traced": torch.fx.symbolic_trace(Pooling()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit.* is deprecated")
        programs["scripted"] = torch.jit.trace(Pooling(), example)
    assert [node.target for node in programs["traced"].graph.nodes].count(align_aggregate) == 1  # type: ignore
    other = torch.randn(2, 16, 5, 3), torch.randn(2, 8, 5, 3)
    for name, program in programs.items():
        torch.testing.assert_close(program(*other), Pooling()(*other), msg=name)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_sizes_that_are_marked_dynamic_stay_so(compiler: str, backend: str, device: torch.device) -> None:
    head = Head(backend, device)
    step = torch.compile(head, fullgraph=True, backend=compiler)
    for size in SIZES[::2]:
        x = images(*size, device)
        for image, dim in itertools.product(x, (0, 2, 3)):
            torch._dynamo.mark_dynamic(image, dim)
        for found, expected in zip(step(*x), head(*x), strict=True):
            torch.testing.assert_close(found, expected)


class Affine(nn.Module):
    def forward(self, features: Tensor, pixels: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return fused_align_aggregate(features, weight, pixels=pixels, pixels_affine=(scale, shift))  # type: ignore


@pytest.mark.filterwarnings("ignore:Was not able to add assertion")  # that later inputs are the known ones
def test_symbolic_trace_of_scale_and_shift_alone() -> None:
    inputs = (torch.randn(2, 16, 9), torch.randn(2, 6, 9), torch.randn(8, 6), torch.randn(6), torch.randn(6))
    known = dict(zip(("features", "pixels", "weight"), inputs, strict=False))
    graph = torch.fx.symbolic_trace(Affine(), concrete_args=known)
    assert [node.target for node in graph.graph.nodes].count(fused_align_aggregate) == 1


def test_torchvision_extracts_features_behind_it() -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    head = AlignAggregate(16, 8)
    model = nn.Sequential(nn.Conv2d(16, 16, 1), head, nn.Linear(16, 3))
    x, _ = images(2, 5, 3, torch.device("cpu"))
    found = extraction.create_feature_extractor(model, {"1": "aligned", "2": "last"})(x)
    assert torch.equal(found["aligned"], head(model[0](x)))
    assert torch.equal(found["last"], model(x))


def test_jit_trace_is_silent_and_takes_other_sizes() -> None:
    head = Head(None, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit.* is deprecated")
        traced = torch.jit.trace(head, images(4, 7, 6, torch.device("cpu")))
        torch.jit.save(traced, file := io.BytesIO())
        file.seek(0)
        loaded = torch.jit.load(file)
    for size in SIZES:
        x = images(*size, torch.device("cpu"))
        torch.testing.assert_close(loaded(*x), head(*x))


@pytest.mark.filterwarnings(
    "ignore:(Exporting a model while|`isinstance.treespec|# |You are using the legacy|The feature will)"
)
@pytest.mark.parametrize("dynamo", [True, False], ids=["exported", "traced"])
def test_onnx_runs_what_was_exported(dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx", reason="what torch.onnx.export writes is run by the package onnx")
    pytest.importorskip("onnxscript", reason="torch.onnx.export takes the package onnxscript")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    head, example = Head(None, torch.device("cpu")).eval(), images(4, 7, 6, torch.device("cpu"))
    names, (n, h, w) = ["features", "pixels"], map(Dim, "nhw")
    if dynamo:
        sizes = {0: n, 2: h, 3: w}
        exported = torch.onnx.export(head, example, dynamo=True, dynamic_shapes=(sizes, sizes), verbose=False)
        assert exported is not None
        model = exported.model_proto
    else:
        axes = {name: {0: "n", 2: "h", 3: "w"} for name in names}
        torch.onnx.export(head, example, file := io.BytesIO(), dynamo=False, input_names=names, dynamic_axes=axes)
        model = onnx.load_from_string(file.getvalue())
    for size in SIZES:
        features, pixels = images(*size, torch.device("cpu"))
        found = evaluator(model).run(None, {"features": features.numpy(), "pixels": pixels.numpy()})
        for a, b in zip(found, head(features, pixels), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b.detach())


# A temperature that changes


def compilations(module: nn.Module, device: torch.device, temperatures: list[Any], mode: Any) -> int:
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(module, fullgraph=True, backend=counter)
    x, _ = images(3, 5, 3, device)
    with mode():
        for temperature in temperatures:
            module.temperature = temperature
            torch.testing.assert_close(step(x), module(x))
    return counter.frame_count


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
@pytest.mark.parametrize("kind", [float, int, torch.tensor])
def test_an_annealed_temperature_is_compiled_twice(kind: Any, mode: Any, backend: str, device: torch.device) -> None:
    module = AlignAggregate(16, 8, backend=backend, device=device)
    assert compilations(module, device, [kind(12 - i) for i in range(10)], mode) <= 2


def test_a_backward_knows_the_temperature_of_its_forward(backend: str, device: torch.device) -> None:
    module = AlignAggregate(16, 8, bias=True, backend=backend, device=device)
    step = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, _ = images(3, 5, 3, device)
    losses, expected = [], []
    for temperature in (0.5, 0.4, 0.3):
        module.temperature = temperature
        losses.append(step(x).square().sum())
        expected.append(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))
    for found, wanted in zip(losses, expected, strict=True):
        torch.testing.assert_close(torch.autograd.grad(found, list(module.parameters())), wanted)


@pytest.mark.parametrize("annealed", ["temperature", "eps", "both"])
def test_temperature_and_eps_as_arguments_are_compiled_twice(annealed: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(fused_align_aggregate, fullgraph=True, backend=counter)
    x, weight = torch.randn(2, 16, 9), torch.randn(8, 16)
    for i in range(10):
        options = {"temperature": 1 - i / 20, "eps": 1 + i / 5}
        options = options if annealed == "both" else {annealed: options[annealed]}
        torch.testing.assert_close(step(x, weight, **options), fused_align_aggregate(x, weight, **options))
    assert counter.frame_count <= 2


def test_an_annealed_eps_is_compiled_twice() -> None:
    module, counter = AlignAggregate(16, 8), CompileCounterWithBackend("aot_eager")
    step, x = torch.compile(module, fullgraph=True, backend=counter), torch.randn(2, 16, 9)
    for eps in range(1, 7):
        module.eps = eps
        torch.testing.assert_close(step(x), module(x))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["temperature", "eps"])
def test_what_is_set_on_a_module_is_checked(name: str) -> None:
    module = AlignAggregate(16, 8)
    with pytest.raises(ValueError, match=f"{name} must be"):
        setattr(module, name, -1.0)
    with pytest.raises(TypeError, match=f"{name} must be a number whose value is known; got a tensor on meta"):
        setattr(module, name, torch.tensor(1.0, device="meta"))


@pytest.mark.parametrize("mode", ["jit", "real", "fake", "symbolic"])
def test_a_tensor_of_the_temperature_is_traced(mode: str, backend: str, device: torch.device) -> None:
    """Not frozen to the value that it had."""
    x, _ = images(2, 5, 3, device)
    weight = torch.randn(8, 16, device=device)

    def run(x: Tensor, weight: Tensor, temperature: Tensor, eps: Tensor) -> Tensor:
        return fused_align_aggregate(x, weight, temperature=temperature, eps=eps, backend=backend)  # type: ignore

    example = (x, weight, torch.tensor(0.5), torch.tensor(0.5))
    traced = torch.jit.trace(run, example) if mode == "jit" else make_fx(run, tracing_mode=mode)(*example)
    others = torch.tensor(0.1), torch.tensor(2.0)
    assert torch.equal(traced(x, weight, *others), run(x, weight, *others))


def grad_of_grad(f: Any) -> Any:
    return torch.func.grad(lambda x: torch.func.grad(f)(x).sum())


@pytest.mark.parametrize("transform", [torch.func.jacfwd, grad_of_grad], ids=["jacfwd", "grad_of_grad"])
def test_an_annealed_temperature_has_every_derivative(transform: Any) -> None:
    x, weight = torch.randn(2, 8, 5, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)

    def derivative(temperature: Any) -> Tensor:
        return transform(lambda w: fused_align_aggregate(x, w, temperature=temperature).square().sum())(weight)

    compiled = torch.compile(derivative, fullgraph=True, backend="aot_eager")
    for temperature in (0.5, 0.4, 0.3, torch.tensor(0.2)):
        torch.testing.assert_close(compiled(temperature), derivative(float(temperature)))


# Shapes without contents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ANY)
def test_meta_tensors_have_the_shapes_of_real_ones(name: str | None, dtype: torch.dtype) -> None:
    case = OpCase("meta", N=2, C=16, D=6, K=8, G=4, space=(5, 3), bias=True, affine=True)
    real, meta = (make(case, dtype=dtype, device=device) for device in ("cpu", "meta"))
    expected = run_op(real, "reference", return_maps=True)
    found = run_op(meta, name, return_maps=True)  # type: ignore[arg-type]
    assert found.keys() == expected.keys()
    for key, x in found.items():
        assert x.is_meta, key
        assert (x.shape, x.dtype, x.stride()) == (expected[key].shape, expected[key].dtype, expected[key].stride()), key


def test_a_model_is_built_and_run_on_meta() -> None:
    with torch.device("meta"):
        head = AlignAggregate(12, 8, backend="cpu")
        assert head(torch.empty(2, 12, 5, 5)).shape == (2, 2, 12)


@pytest.mark.parametrize("where", ["meta", "cpu"])
def test_another_default_device_moves_no_result(where: str, backend: str, device: torch.device) -> None:
    module, (x, _) = AlignAggregate(16, 8, backend=backend, device=device), images(2, 5, 3, device)
    expected = module(x)
    with torch.device(where):
        assert torch.equal(module(x), expected)


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("kind", ["cpu", "cuda", "meta"])
def test_fake_tensors_inside_and_outside_of_their_mode(kind: str, name: str | None) -> None:
    runs_there = name is None or dispatch.load(name).device_type in (None, kind) or kind == "meta"
    with FakeTensorMode() as mode:
        x, weight = torch.empty(2, 12, 5, 5, device=kind), torch.empty(8, 12, device=kind)
    for inside in (True, False):
        with mode if inside else torch.enable_grad():  # type: ignore[attr-defined]
            if runs_there:
                found = fused_align_aggregate(x, weight, backend=name)
                assert (type(found).__name__, found.shape, found.device.type) == ("FakeTensor", (2, 2, 12), kind)
            else:
                with pytest.raises(dispatch.BackendUnavailable, match="it runs on"):
                    fused_align_aggregate(x, weight, backend=name)


def test_real_tensors_in_the_mode_of_fake_ones_become_fake(backend: str, device: torch.device) -> None:
    x, _ = images(2, 5, 3, device)
    weight = torch.randn(8, 16, device=device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(fused_align_aggregate(x, weight, backend=backend)).__name__ == "FakeTensor"


@pytest.mark.parametrize("name", ANY)
def test_explain_of_meta_tensors_is_what_runs(name: str | None) -> None:
    tensors = torch.empty(2, 16, 9, device="meta"), torch.empty(8, 16, device="meta")
    assert explain(*tensors, backend=name).backend == (name or "reference")
    temperature = torch.tensor(0.5, device="meta")
    assert fused_align_aggregate(*tensors, temperature=temperature, backend=name).shape == (2, 2, 16)  # type: ignore


def test_fake_tensors_of_a_gpu_that_is_not_there() -> None:
    """In a process whose GPU backends are not those of tests: triton and cuda are asked, and say nothing but shapes."""
    if torch.cuda.is_available():
        pytest.skip("PyTorch sees a GPU")
    code = (
        "import torch, lewel_kernels as k\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with FakeTensorMode():\n"
        "    x, w = torch.empty(2, 16, 9, device='cuda'), torch.empty(8, 16, device='cuda')\n"
        "    for name in (None, 'triton', 'cuda', 'reference'):\n"
        "        assert k.fused_align_aggregate(x, w, backend=name).shape == (2, 2, 16)\n"
        "        assert k.explain(x, w, backend=name).backend == (name or 'reference')\n"
        "    try:\n"
        "        k.fused_align_aggregate(x, w, backend='cpu')\n"
        "    except k.BackendUnavailable as error:\n"
        "        assert 'it runs on cpu tensors' in str(error)\n"
        "    else:\n"
        "        raise AssertionError('cpu ran')\n"
    )
    in_a_process(code, TRITON_INTERPRET="")


def test_imported_in_inference_mode_it_can_be_trained_later() -> None:
    code = (
        "import torch\n"
        "with torch.inference_mode():\n"
        "    import lewel_kernels\n"
        "lewel_kernels.AlignAggregate(8, 8, backend='reference')(torch.randn(2, 8, 3, 3)).sum().backward()\n"
    )
    in_a_process(code)


# Printing


@pytest.mark.parametrize("shape", [(0,), (128,), ()], ids=str)
def test_a_module_without_its_weight_prints(shape: tuple[int, ...]) -> None:
    """As FSDP and ZeRO-3 leave it between calls."""
    module = AlignAggregate(16, 8)
    module.weight.data = torch.empty(shape)
    assert repr(module).startswith("AlignAggregate(16, 8, num_groups=4, temperature=1.0, bias=False, backend=")


def test_a_module_whose_parameters_are_gone_prints() -> None:
    module = AlignAggregate(16, 8, bias=True)
    del module.weight, module.bias
    assert repr(module).startswith("AlignAggregate(16, 8, num_groups=4, temperature=1.0, bias=True, backend=")


def test_a_wrong_variable_is_printed_and_raises_nothing() -> None:
    code = "import lewel_kernels\nprint(lewel_kernels.AlignAggregate(16, 8))"
    assert "LEWEL_BACKEND must be one of" in in_a_process(code, LEWEL_BACKEND="nope")[0]


def test_printing_builds_nothing(tmp_path: Path) -> None:
    code = "import lewel_kernels, torch\nprint(torch.nn.Sequential(lewel_kernels.AlignAggregate(16, 8)))"
    stdout, stderr = in_a_process(code, LEWEL_CACHE_DIR=str(tmp_path))
    assert "AlignAggregate(16, 8" in stdout
    assert "compiling" not in stderr
    assert not list(tmp_path.iterdir())


# Counting


@pytest.mark.parametrize("mode", MODES)
def test_flops_are_the_least(mode: str, backend: str, device: torch.device) -> None:
    case = Case(Shape("", N=3, C=16, D=8, K=8, H=3, W=5), "channels_last", "fp32", str(device))
    inputs = make_inputs(case)
    with FlopCounterMode(display=False) as count:
        call_of(case, PROVIDERS[backend](), inputs, mode)()
    assert count.get_total_flops() == least(case, mode).flops


def test_flops_of_what_is_not_needed_do_not_count(backend: str, device: torch.device) -> None:
    x, weight = torch.randn(2, 16, 9, device=device), torch.randn(8, 16, device=device, requires_grad=True)
    projection, pooling = 2 * 2 * 9 * 16 * 8, 2 * 2 * 9 * 16 * 2
    with FlopCounterMode(display=False) as count:
        fused_align_aggregate(x, weight, backend=backend).sum().backward()
    assert count.get_total_flops() == 2 * (projection + pooling)  # E1 and E5; E7 and dW of E10


@pytest.mark.parametrize("parameter", ["bias", "scale", "shift"])
def test_flops_of_a_gradient_of_one_parameter(parameter: str, backend: str, device: torch.device) -> None:
    inputs = make(OpCase("", N=2, C=16, D=16, K=8, G=4, space=(9,), bias=True, affine=True), device=device)
    for name, x in inputs.leaves.items():
        x.requires_grad_(name == parameter)
    projection, pooling = 2 * 2 * 9 * 16 * 8, 2 * 2 * 9 * 16 * 2
    with FlopCounterMode(display=False) as count:
        run_op(inputs, backend)
    # E1 and E5, E7, and for scale and shift dX of E10.
    assert count.get_total_flops() == projection + 2 * pooling + (parameter != "bias") * projection


def test_flops_of_a_backward_alone() -> None:
    code = (
        "import torch\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "from lewel_kernels import fused_align_aggregate\n"
        "x, weight = torch.randn(2, 16, 9, requires_grad=True), torch.randn(8, 16)\n"
        "y = fused_align_aggregate(x, weight, backend='reference')\n"
        "with FlopCounterMode(display=False) as count:\n"
        "    y.sum().backward()\n"
        "assert count.get_total_flops() == 2 * 2 * 9 * 16 * (8 + 2 + 2), count.get_total_flops()\n"
    )
    in_a_process(code)


def test_the_package_tells_a_counter_that_is_older() -> None:
    """The table of formulas is copied when the counter is made; and importing the package imports no counter."""
    code = (
        "import torch, sys, lewel_kernels as k\n"
        "assert 'torch.utils.flop_counter' not in sys.modules\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as count:\n"
        "    k.fused_align_aggregate(torch.randn(2, 16, 9), torch.randn(8, 16), backend='reference')\n"
        "assert count.get_total_flops() == 2 * 2 * 9 * 16 * (8 + 2), count.get_total_flops()\n"
    )
    in_a_process(code)


# Sharding


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Of one process, which has all of every tensor."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("cast", [True, False], ids=["cast", "cast_forward_inputs_False"])
def test_fsdp2_casts_scale_and_shift_or_is_told_not_to(cast: bool, mesh: Any) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    head = AlignAggregate(16, 8)
    fully_shard(head, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, cast_forward_inputs=cast))
    features, affine = torch.randn(2, 16, 7, 7), (torch.ones(16), torch.zeros(16))
    if cast:
        with pytest.raises(TypeError, match=r"scale .* must be torch\.float32, .*FSDP.*cast_forward_inputs=False"):
            head(features, features, pixels_affine=affine)
    else:
        features = features.bfloat16()
        assert head(features, features, pixels_affine=affine).dtype == torch.bfloat16


CASE = OpCase("sharded", N=4, C=8, D=6, K=4, G=2, space=(3, 3), bias=True, affine=True)


def shard(backend: str, mesh: Any, share_images: bool, return_maps: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Results and gradients of the op on tensors of the mesh, whole again, and where they lay."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    inputs = make(CASE)
    placed = Shard(0) if share_images else Replicate()
    for name, x in inputs.leaves.items():
        placements = [placed if name in ("features", "pixels") else Replicate()]
        setattr(inputs, name, distribute_tensor(x.detach(), mesh, placements).requires_grad_())
    for name in ("grad_pooled", "grad_maps"):
        setattr(inputs, name, distribute_tensor(getattr(inputs, name), mesh, [placed]))
    found = run_op(inputs, backend, return_maps=return_maps)
    return {k: x.full_tensor() for k, x in found.items()}, {k: x.placements for k, x in found.items()}  # type: ignore


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
def test_images_may_be_shared_out(return_maps: bool, mesh: Any) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    found, placements = shard("reference", mesh, True, return_maps)
    for name, x in run_op(make(CASE), "reference", return_maps=return_maps).items():
        torch.testing.assert_close(found[name], x)
        images = name in ("pooled", "maps", "d_features", "d_pixels")
        assert placements[name] == ((Shard(0) if images else Partial()),), name
    _, placements = shard("reference", mesh, False, return_maps)
    assert set(placements.values()) == {(Replicate(),)}


def sharding_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    try:
        found, _ = shard("reference", dist.init_device_mesh("cpu", (2,)), True, True)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_shares_of_two_ranks_are_one_process(tmp_path: Path) -> None:
    mp.spawn(sharding_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    expected = run_op(make(CASE), "reference", return_maps=True)
    for rank in range(2):
        for name, x in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(x, expected[name], msg=name)
