"""LARS by hand, what is left out of decay and scaling, AdamW, and all optimizers under a gradient scaler."""

from __future__ import annotations

import copy
from fnmatch import fnmatch

import pytest
import timm
import torch
from torch import nn

from lewel.recipe.schema import Optim
from lewel.run import optim


def parameters() -> tuple[nn.Parameter, nn.Parameter]:
    matrix = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    vector = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    return matrix, vector


def named(*tensors: nn.Parameter) -> list[tuple[str, nn.Parameter]]:
    """As named_parameters() of a module gives them."""
    return [(f"{number}.weight", p) for number, p in enumerate(tensors)]


def two_steps(optimizer: torch.optim.Optimizer, matrix: nn.Parameter, vector: nn.Parameter, lrs: list[float]) -> None:
    for lr in lrs:
        matrix.grad = torch.full_like(matrix, 0.5)
        vector.grad = torch.full_like(vector, 2.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()


def test_lars_by_hand_with_the_learning_rate_inside_the_velocity():
    matrix, vector = parameters()
    settings = Optim(name="lars", weight_decay=0.1, decay_all=False)
    two_steps(optim.build(settings, named(matrix, vector)), matrix, vector, [0.2, 0.6])

    w, v = parameters()
    w, v = w.detach().clone(), v.detach().clone()
    w_velocity, v_velocity = torch.zeros_like(w), torch.zeros_like(v)
    for lr in (0.2, 0.6):
        g = torch.full_like(w, 0.5)
        local = 1e-3 * w.norm() / (g.norm() + 0.1 * w.norm())
        w_velocity = 0.9 * w_velocity + (g + 0.1 * w) * local * lr
        w = w - w_velocity
        v_velocity = 0.9 * v_velocity + 2.0 * lr  # ndim 1: no decay, no local rate
        v = v - v_velocity
    torch.testing.assert_close(matrix.detach(), w, rtol=1e-12, atol=0)
    torch.testing.assert_close(vector.detach(), v, rtol=1e-12, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_lars_takes_the_plain_rate_of_a_tensor_of_zeros_or_without_a_gradient(zero, decay):
    """A tensor of zeros has no decay either; without a gradient the decay is all there is, and it is not scaled."""
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weight" else torch.ones(2, 2))
    optimizer = optim.build(Optim(name="lars", weight_decay=decay, decay_all=False), named(weight))
    weight.grad = torch.ones(2, 2) if zero == "weight" else torch.zeros(2, 2)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.5
    optimizer.step()
    assert weight.detach().unique().tolist() == [-0.5 if zero == "weight" else 1.0 - 0.5 * decay]


@pytest.mark.parametrize("decay_all", [True, False], ids=["decay-all", "decay-matrices"])
def test_sgd_decays_biases_only_where_the_recipe_says(decay_all):
    matrix, vector = parameters()
    two_steps(optim.build(Optim(weight_decay=0.1, decay_all=decay_all), named(matrix, vector)), matrix, vector, [0.5])
    decay = 0.1 if decay_all else 0.0
    torch.testing.assert_close(vector.detach(), torch.tensor([1.0, -2.0]).double() * (1 - 0.5 * decay) - 1.0)
    torch.testing.assert_close(matrix.detach()[1, 1].item(), 4 - 0.5 * (0.5 + 0.1 * 4))


def test_frozen_parameters_are_not_optimized():
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    matrix, vector = parameters()
    groups = optim.build(Optim(), named(frozen, matrix, vector)).param_groups
    assert [p is frozen for group in groups for p in group["params"]] == [False, False]


OPTIMIZERS = {
    "sgd": Optim(weight_decay=0.1),
    "lars": Optim(name="lars", weight_decay=0.1, decay_all=False),
    "adamw": Optim(name="adamw", weight_decay=0.1, decay_all=False),
    "lars-without-momentum": Optim(name="lars", momentum=0.0, weight_decay=0.1, decay_all=False),
}


class Optimized:
    """Weights of every rank, those of convolutions channels_last as in the trainer, and the optimizer of settings."""

    def __init__(self, settings: Optim, dtype: torch.dtype = torch.float32) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = [(4, 3, 3, 3), (5, 4, 1, 1), (6, 5), (6,)]
        tensors = [torch.randn(shape, generator=draw, dtype=dtype) for shape in shapes]
        self.weights = [nn.Parameter(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x) for x in tensors]
        self.optimizer = optim.build(settings, named(*self.weights))

    def gradients(self, number: int) -> list[torch.Tensor]:
        """Of step number, in the layout of the weights, as autograd has them."""
        draw = torch.Generator().manual_seed(100 + number)
        return [torch.empty_like(p).copy_(torch.randn(p.shape, generator=draw)) for p in self.weights]

    def step(self, number: int, scaler: torch.amp.GradScaler | None = None, *, infinite: int | None = None) -> None:
        """A step, under scaler where given; the tensor of number infinite has an infinite gradient."""
        scale = scaler.scale(torch.ones(())) if scaler else torch.ones(())
        for i, (p, gradient) in enumerate(zip(self.weights, self.gradients(number), strict=True)):
            p.grad = gradient * scale
            if i == infinite:
                p.grad[1] = float("inf")
        for group in self.optimizer.param_groups:
            group["lr"] = 0.5 / (1 + number)
        if scaler:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()

    def state(self) -> list[torch.Tensor]:
        """Weights and velocities."""
        return [p.detach().clone() for p in self.weights] + [
            x.clone() for p in self.weights for x in self.optimizer.state[p].values() if isinstance(x, torch.Tensor)
        ]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_adamw_by_hand():
    """Loshchilov and Hutter's: the decay is beside the moments, and a vector has none."""
    matrix, vector = parameters()
    settings = Optim(name="adamw", momentum=0.8, weight_decay=0.1, decay_all=False)
    two_steps(optim.build(settings, named(matrix, vector)), matrix, vector, [0.2, 0.6])
    for found, start, g, decay in zip((matrix, vector), parameters(), (0.5, 2.0), (0.1, 0.0), strict=True):
        w, first, second = start.detach().clone(), 0.0, 0.0
        for step, lr in enumerate((0.2, 0.6), 1):
            first, second = 0.8 * first + 0.2 * g, 0.999 * second + 0.001 * g**2
            step_size = (first / (1 - 0.8**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
            w = w * (1 - lr * decay) - lr * step_size
        torch.testing.assert_close(found.detach(), w, rtol=1e-12, atol=0)


TOKENS = [
    "online.encoder.model.pos_embed", "online.encoder.model.cls_token", "model.reg_token", "encoder.pos_embedding",
    "layers.0.blocks.1.attn.relative_position_bias_table", "blocks.1.attn.rel_pos_h", "model.patch_pos",
    "stages.1.attn.attention_biases", "layers.3.blocks.0.attn.logit_scale", "class_token", "mask_token",
    "stages.3.0.self_attn.pos_embed.height_rel", "layers.0.blocks.0.attn.cpb_mlp.2.weight",
]  # fmt: skip
MATRICES = [
    "online.encoder.conv1.weight", "online.encoder.model.patch_embed.proj.weight", "blocks.0.attn.qkv.weight",
    "online.head.mlp.out.weight", "predictor.out.weight", "aligned_predictor.hidden.0.weight", "tokenizer.weight",
    "composition.weight",
]  # fmt: skip


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_tokens_and_positions_are_known_by_name_and_left_out_as_biases_are(name):
    tensors = {key: nn.Parameter(torch.ones(2, 2)) for key in TOKENS + MATRICES}
    matrices, rest = optim.build(Optim(name=name, decay_all=False), tensors.items()).param_groups
    assert [key for key, p in tensors.items() if any(p is q for q in rest["params"])] == TOKENS
    assert [key for key, p in tensors.items() if any(p is q for q in matrices["params"])] == MATRICES
    assert (matrices["weight_decay"], rest["weight_decay"], rest["adapt"]) == (5e-4, 0, False)


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_reg4_dinov2", "swinv2_tiny_window8_256", "beit_base_patch16_224", "levit_128s",
             "tnt_s_patch16_224", "xcit_nano_12_p16_224", "coatnet_nano_rw_224", "eva02_tiny_patch14_224"],
)  # fmt: skip
def test_what_timm_does_not_decay_is_left_out(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    left_out = {key for key, p in model.named_parameters() if not optim.is_matrix(key, p) and p.ndim > 1}
    theirs = {key for key, p in model.named_parameters() if p.ndim > 1
              and any(fnmatch(key, pattern) for pattern in model.no_weight_decay())}  # fmt: skip
    assert left_out == theirs != set()


@pytest.mark.parametrize("name", ["lars", "lars-without-momentum"])
def test_lars_is_the_loop_over_tensors_whatever_their_layout(name):
    settings = OPTIMIZERS[name]
    ours = Optimized(settings, torch.float64)
    assert not ours.weights[0].is_contiguous()
    weights = [p.detach().clone() for p in ours.weights]
    velocities = [torch.zeros_like(w) for w in weights]
    for number in range(3):
        lr = 0.5 / (1 + number)
        for w, v, g in zip(weights, velocities, ours.gradients(number), strict=True):
            d = g.clone()
            if w.ndim > 1:
                local = 1e-3 * w.norm() / (g.norm() + 0.1 * w.norm())
                d = (g + 0.1 * w) * local
            v.mul_(settings.momentum).add_(d * lr)
            w.sub_(v)
        ours.step(number)
    for p, w in zip(ours.weights, weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=0)


def test_sgd_from_velocities_of_zero_is_pytorchs_own():
    ours, theirs = Optimized(OPTIMIZERS["sgd"]), Optimized(OPTIMIZERS["sgd"])
    theirs.optimizer = torch.optim.SGD(theirs.weights, lr=0.0, momentum=0.9, weight_decay=0.1)
    for number in range(3):
        ours.step(number)
        theirs.step(number)
    for a, b in zip(ours.state(), theirs.state(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_a_scaler_a_finite_step_is_the_unscaled_one(name):
    scaled, plain = Optimized(OPTIMIZERS[name]), Optimized(OPTIMIZERS[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(3):
        scaled.step(number, scaler)
        plain.step(number)
    assert_same(scaled.state(), plain.state())


@pytest.mark.parametrize("infinite", [0, 3], ids=["in-a-convolution", "in-a-bias"])
@pytest.mark.parametrize("when", [0, 1], ids=["first-step", "second-step"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_under_a_scaler_an_infinite_gradient_anywhere_omits_the_step(name, when, infinite):
    """Nothing moves, no velocity appears out of nothing, and what follows is as if the step had not been."""
    scaled, plain = Optimized(OPTIMIZERS[name]), Optimized(OPTIMIZERS[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number in range(when):
        scaled.step(number, scaler)
        plain.step(number)
    before = [p.detach().clone() for p in scaled.weights]
    scaled.step(9, scaler, infinite=infinite)
    assert_same([p.detach() for p in scaled.weights], before)
    assert scaler.get_scale() == 2.0**9
    for number in range(when, 3):
        scaled.step(number, scaler)
        plain.step(number)
    assert_same(scaled.state(), plain.state())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_omitted_first_step_leaves_velocities_of_zero(name):
    scaled = Optimized(OPTIMIZERS[name])
    scaled.step(0, torch.amp.GradScaler("cpu"), infinite=2)
    assert all(not x.any() for x in scaled.state()[len(scaled.weights) :])


def test_lars_copies_its_counts_to_the_device_once(monkeypatch):
    """And keeps them to itself: a state dict, and so a checkpoint, has none; a copy, or loaded, makes its own."""
    ours, calls, tensor = Optimized(OPTIMIZERS["lars"]), [], torch.tensor
    monkeypatch.setattr(optim.torch, "tensor", lambda *a, **k: calls.append(a) or tensor(*a, **k))
    ours.step(0)
    ours.step(1)
    assert calls == [((108, 20, 30),)]
    assert "_counts" not in str(ours.optimizer.state_dict())
    for other in (copy.deepcopy(ours.optimizer), ours.optimizer):
        other.load_state_dict(ours.optimizer.state_dict())
        for p in (p for group in other.param_groups for p in group["params"]):
            p.grad = torch.ones_like(p)
        other.step()
    assert len(calls) == 3
