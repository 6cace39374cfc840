"""Derivatives that torch.func and forward_ad take through the op, against the same of the plain PyTorch lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import OpCase, make, run_eager
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils._pytree import tree_leaves

from benchmarks.op.providers import eager_activated, eager_maps, eager_pool
from lewel_kernels import fused_align_aggregate, reference
from lewel_kernels.signature import Inputs, Options

pytestmark = pytest.mark.usefixtures("poisoned")

Op = Callable[..., tuple[Tensor, Tensor]]
CASE = OpCase("affine", N=2, C=4, D=3, K=4, G=2, space=(2, 3), bias=True, affine=True)
ALL = (0, 1, 2, 3, 4, 5)
TEMPERATURE = 0.3


def leaves(device: torch.device | str, seed: int = 0) -> tuple[Tensor, ...]:
    """features, weight, bias, pixels, scale and shift, in float64 and without a gradient."""
    inputs = make(CASE, device=device, seed=seed)
    named = (inputs.features, inputs.weight, inputs.bias, inputs.pixels, inputs.scale, inputs.shift)
    return tuple(x.detach() for x in named if x is not None)


def op(backend: str) -> Op:
    def call(features: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, scale: Tensor, shift: Tensor) -> Any:
        return fused_align_aggregate(
            features, weight, bias, pixels=pixels, pixels_affine=(scale, shift), num_groups=CASE.G,
            temperature=TEMPERATURE, return_maps=True, backend=backend,
        )  # fmt: skip

    return call


def eager(features: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, scale: Tensor, shift: Tensor) -> Any:
    maps = eager_maps(eager_activated(pixels, scale, shift), weight, bias, temperature=TEMPERATURE)
    return eager_pool(features, maps, num_groups=CASE.G), maps


def loss(f: Op) -> Callable[..., Tensor]:
    return lambda *inputs: sum(x.square().sum() for x in f(*inputs))  # type: ignore[return-value]


def weight_only(f: Op, inputs: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    return lambda weight: loss(f)(inputs[0], weight, *inputs[2:])


def pulled_back(f: Op, inputs: tuple[Tensor, ...], _: Any) -> Any:
    outputs, pull = vjp(f, *inputs)
    return pull(tuple(map(torch.ones_like, outputs)))


def pulled_back_twice(f: Op, inputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Any:
    """The inner transform has ended when the outer one differentiates what it has left behind."""

    def inner(weight: Tensor) -> Tensor:
        _, pull = vjp(lambda weight: loss(f)(inputs[0], weight, *inputs[2:]), weight)
        return pull(torch.ones((), dtype=weight.dtype, device=weight.device))[0]

    return vjp(inner, inputs[1])[1](tangents[1])


def mapped(f: Op, inputs: tuple[Tensor, ...], _: Any) -> Any:
    features, pixels = (torch.stack([x, 2 * x, x.flip(0)]) for x in (inputs[0], inputs[3]))
    dims = (0, None, None, 0, None, None)
    return vmap(grad(loss(f), ALL), in_dims=dims)(features, *inputs[1:3], pixels, *inputs[4:])


def mapped_weights(f: Op, inputs: tuple[Tensor, ...], _: Any) -> Any:
    return vmap(grad(weight_only(f, inputs)))(torch.stack([inputs[1], 2 * inputs[1]]))


def of_a_map(f: Op, inputs: tuple[Tensor, ...], _: Any) -> Any:
    features = torch.stack([inputs[0], 2 * inputs[0]])
    return grad(lambda x: sum(y.square().sum() for y in vmap(lambda z: f(z, *inputs[1:]))(x)))(features)


def with_a_graph_outside(f: Op, inputs: tuple[Tensor, ...], _: Any) -> Any:
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    first = grad(lambda x: loss(f)(x, *inputs[1:]))(inputs[0])
    return torch.autograd.grad(first.square().sum(), inputs)


TRANSFORMS: dict[str, Callable[[Op, tuple[Tensor, ...], tuple[Tensor, ...]], Any]] = {
    "grad": lambda f, x, _: grad(loss(f), ALL)(*x),
    "grad_of_what_is_behind_it": lambda f, x, _: grad(lambda h: (f(*x)[0] * h).sum())(
        torch.ones_like(x[0][0, :, 0, 0])
    ),
    "vjp": pulled_back,
    "jacrev": lambda f, x, _: jacrev(f, ALL)(*x),
    "jacfwd": lambda f, x, _: jacfwd(f, ALL)(*x),
    "jvp": lambda f, x, t: jvp(f, x, t),
    "linearize": lambda f, x, t: linearize(f, *x)[1](*t),
    "hessian": lambda f, x, _: hessian(loss(f), (0, 1, 4))(*x),
    "reverse_over_reverse": lambda f, x, _: jacrev(jacrev(loss(f), (1, 3)), (1, 3))(*x),
    "reverse_over_forward": lambda f, x, _: jacrev(jacfwd(loss(f), (1, 3)), (1, 3))(*x),
    "forward_over_forward": lambda f, x, _: jacfwd(jacfwd(loss(f), (1, 5)), (1, 5))(*x),
    "vjp_of_vjp": pulled_back_twice,
    "third_order": lambda f, x, _: grad(lambda w: grad(lambda w: grad(weight_only(f, x))(w).sum())(w).sum())(x[1]),
    "vmap_of_grad": mapped,
    "vmap_of_grad_of_weights": mapped_weights,
    "grad_of_vmap": of_a_map,
    "grad_within_autograd": with_a_graph_outside,
}


def assert_same(found: Any, expected: Any) -> None:
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, b.abs().max().item()))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")  # linearize, of constants that it traces
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_as_the_plain_lines(transform: str, backend: str, device: torch.device) -> None:
    inputs, tangents = leaves(device), leaves(device, seed=1)
    take = TRANSFORMS[transform]
    assert_same(take(op(backend), inputs, tangents), take(eager, inputs, tangents))


@pytest.mark.parametrize("argument", ["features", "weight", "bias", "pixels", "scale", "shift"])
def test_a_tangent_of_one_argument(argument: str, backend: str, device: torch.device) -> None:
    i = ("features", "weight", "bias", "pixels", "scale", "shift").index(argument)
    inputs, tangents = leaves(device), leaves(device, seed=1)

    def along(f: Op) -> Any:
        return jvp(lambda x: f(*inputs[:i], x, *inputs[i + 1 :]), inputs[i : i + 1], tangents[i : i + 1])

    assert_same(along(op(backend)), along(eager))


@pytest.mark.parametrize("shared", [False, True], ids=["pixels", "features_projected"])
def test_tangents_without_an_activation(shared: bool, backend: str, device: torch.device) -> None:
    case = OpCase("", N=2, C=4, D=None if shared else 3, K=4, G=2, space=(5,))
    inputs, others = (make(case, device=device, seed=seed) for seed in (0, 1))

    def run(f: Callable[..., Any]) -> Any:
        primals, tangents = ([x.detach() for x in i.leaves.values()] for i in (inputs, others))
        return jvp(f, tuple(primals), tuple(tangents))

    def fused(*x: Tensor) -> Any:
        named = dict(zip(inputs.leaves, x, strict=True))
        return fused_align_aggregate(**named, num_groups=2, temperature=TEMPERATURE, backend=backend)  # type: ignore

    def plain(*x: Tensor) -> Any:
        pixels = (x[0] if shared else x[1]).unsqueeze(-1)
        return eager_pool(x[0].unsqueeze(-1), eager_maps(pixels, x[-1], None, temperature=TEMPERATURE), num_groups=2)

    assert_same(run(fused), run(plain))


@pytest.mark.parametrize("grad_mode", [True, False], ids=["grad", "no_grad"])
def test_dual_numbers(grad_mode: bool, backend: str, device: torch.device) -> None:
    inputs, tangents = leaves(device), leaves(device, seed=1)
    with torch.set_grad_enabled(grad_mode), forward_ad.dual_level():
        duals = (forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True))
        found = [forward_ad.unpack_dual(x) for x in op(backend)(*duals)]
    primals, expected = jvp(eager, inputs, tangents)
    assert_same(([x.primal for x in found], [x.tangent for x in found]), (primals, expected))


def test_reverse_over_dual_numbers(backend: str, device: torch.device) -> None:
    inputs, tangents = leaves(device), leaves(device, seed=1)
    attached = [x.clone().requires_grad_() for x in inputs]
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(x, t) for x, t in zip(attached, tangents, strict=True))
        slopes = [forward_ad.unpack_dual(x).tangent for x in op(backend)(*duals)]
        found = torch.autograd.grad(sum(x.square().sum() for x in slopes), attached)  # type: ignore[arg-type]
    slope = lambda *x: sum(y.square().sum() for y in jvp(eager, x, tangents)[1])  # noqa: E731
    assert_same(found, grad(slope, ALL)(*inputs))


def test_dual_numbers_through_a_backward(backend: str, device: torch.device) -> None:
    """A Hessian times a vector, in the cheap way."""
    inputs, tangents = leaves(device), leaves(device, seed=1)
    attached = [x.clone().requires_grad_() for x in inputs]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(attached, tangents, strict=True)]
        first = torch.autograd.grad(loss(op(backend))(*duals), attached, create_graph=True)
        found = [forward_ad.unpack_dual(x).tangent for x in first]
    assert_same(found, jvp(lambda *x: grad(loss(eager), ALL)(*x), inputs, tangents)[1])


def test_dual_numbers_through_func_grad(backend: str, device: torch.device) -> None:
    inputs, tangents = leaves(device), leaves(device, seed=1)
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True))
        found = [forward_ad.unpack_dual(x).tangent for x in grad(loss(op(backend)), ALL)(*duals)]
    assert_same(found, jvp(lambda *x: grad(loss(eager), ALL)(*x), inputs, tangents)[1])


def test_below_eps_nothing_drops_out(backend: str, device: torch.device) -> None:
    """There the norm is the constant eps, and the tangent of a direction along the pixel stays."""
    inputs, tangents = list(leaves(device)), leaves(device, seed=1)
    inputs[4], inputs[5] = torch.zeros_like(inputs[4]), torch.zeros_like(inputs[5]) - 1
    inputs[2] = torch.full_like(inputs[2], 0.04)  # of a norm of .08 where all pixels are cut off

    def at(f: Callable[..., Any]) -> Any:
        return jvp(lambda bias: f(*inputs[:2], bias, *inputs[3:], eps=0.1), (inputs[2],), (tangents[2],))

    def fused(features: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, *affine: Tensor, eps: float) -> Any:
        return fused_align_aggregate(
            features, weight, bias, pixels=pixels, pixels_affine=affine, num_groups=2, eps=eps, return_maps=True,
            backend=backend,
        )  # type: ignore[call-overload]  # fmt: skip

    def plain(features: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, *affine: Tensor, eps: float) -> Any:
        maps = eager_maps(eager_activated(pixels, *affine), weight, bias, eps=eps)
        return eager_pool(features, maps, num_groups=2), maps

    assert_same(at(fused), at(plain))


def test_at_the_kink_of_the_relu_the_slope_is_zero(backend: str, device: torch.device) -> None:
    """As torch.relu has it, in both directions."""
    inputs, tangents = list(leaves(device)), leaves(device, seed=1)
    inputs[4], inputs[5] = torch.zeros_like(inputs[4]), torch.zeros_like(inputs[5])

    def at(f: Op) -> Any:
        return jvp(lambda shift: f(*inputs[:5], shift), (inputs[5],), (tangents[5],))

    found = at(op(backend))
    assert_same(found, at(eager))
    assert not any(x.any() for x in found[1])


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap_of_grad"])
def test_compiled(transform: str, backend: str, device: torch.device) -> None:
    inputs, tangents = leaves(device), leaves(device, seed=1)
    take = TRANSFORMS[transform]
    step = torch.compile(lambda *x: take(op(backend), x, tangents), fullgraph=True, backend="aot_eager")
    assert_same(step(*inputs), take(eager, inputs, tangents))


def test_the_demanded_backend_runs(backend: str, device: torch.device) -> None:
    """Not the reference in its stead."""
    inputs = leaves(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        grad(loss(op(backend)), ALL)(*inputs)
    names = {event.name for event in profile.events() if event.name.endswith("]")}
    assert {f"lewel_kernels::align_aggregate_{way}[{backend}]" for way in ("fwd", "bwd")} == {
        name for name in names if name.startswith("lewel_kernels")
    }


def test_the_rule_for_tangents_is_that_of_the_forward() -> None:
    """E12 against central differences of E0-E5, for every argument at once."""
    inputs, tangents = leaves("cpu"), leaves("cpu", seed=1)
    (x, w, b, p, s, t), (dx, dw, db, dp, ds, dt) = inputs, tangents
    order = (x.flatten(2), p.flatten(2), w, b, s, t), (dx.flatten(2), dp.flatten(2), dw, db, ds, dt)
    options = Options(2, TEMPERATURE, 1e-12, torch.float64, return_maps=True)
    found = reference.jvp(Inputs(*order[0]), order[1], options)

    def at(h: float) -> tuple[Tensor, ...]:
        moved = (a + h * d for a, d in zip(*order, strict=True))
        return reference.forward(Inputs(*moved), options)[:2]  # type: ignore[arg-type]

    for slope, ahead, behind in zip(found, at(1e-5), at(-1e-5), strict=True):
        torch.testing.assert_close(slope, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_temperature_for_each(backend: str, device: torch.device) -> None:
    x, weight = torch.randn(2, 8, 9, device=device), torch.randn(4, 8, device=device)
    temperatures = torch.tensor([0.1, 1.0, 3.0], device=device)
    run = lambda t: fused_align_aggregate(x, weight, temperature=t, backend=backend)  # noqa: E731
    torch.testing.assert_close(vmap(run)(temperatures), torch.stack([run(t) for t in temperatures.tolist()]))


@pytest.mark.parametrize("transform", [grad, lambda f: lambda t: jvp(f, (t,), (t,))], ids=["grad", "jvp"])
def test_a_derivative_by_the_temperature_is_refused(transform: Any) -> None:
    """Better than one that is zero without a word."""
    x, weight = torch.randn(2, 8, 9), torch.randn(4, 8)
    with pytest.raises(TypeError, match="temperature must be a number, to which no gradient flows"):
        transform(lambda t: fused_align_aggregate(x, weight, temperature=t).sum())(torch.tensor(1.0))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=lambda check: check.__name__)
def test_gradcheck_in_both_modes_and_in_batches(check: Any, backend: str, device: torch.device) -> None:
    """The batches of gradcheck are those of an older vmap than torch.func's."""
    case = OpCase("", N=1, C=2, D=2, K=2, G=2, space=(3,))
    inputs = [x.detach().requires_grad_() for x in make(case, device=device).leaves.values()]
    forward = {"check_forward_ad": True, "check_batched_forward_grad": True}
    modes = forward if check is gradcheck else {"check_fwd_over_rev": True}

    def op(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
        return fused_align_aggregate(
            features, weight, pixels=pixels, num_groups=2, temperature=TEMPERATURE, backend=backend
        )  # type: ignore[return-value]

    assert check(op, inputs, check_batched_grad=True, **modes)


def test_run_eager_is_these_lines() -> None:
    inputs = make(CASE)
    expected = run_eager(inputs, temperature=TEMPERATURE, return_maps=True)
    pooled, maps = eager(*leaves("cpu"))
    assert torch.equal(pooled, expected["pooled"].detach())
    assert torch.equal(maps, expected["maps"].detach())
