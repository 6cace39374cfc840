"""B1-B3: the coupled head and its ablations against explicit loops over rows, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lewel.methods.heads import MLP, AlignedHead, CoupledHead, aligned_head
from lewel.methods.objectives.contrast import MoCoHead
from lewel.recipe.schema import Heads

N, C, D, K, G, H, W = 3, 8, 10, 6, 2, 2, 3
ABLATED = [{}, {"coupling": "separate"}, {"maps": "random"}, {"maps": "uniform"}]


def coupled_head() -> tuple[CoupledHead, Tensor]:
    torch.manual_seed(0)
    head = CoupledHead(C, Heads(hidden=D, num_maps=K, num_groups=G, tau=0.3), "reference").double()
    torch.nn.init.normal_(head.mlp.hidden[1].weight)
    torch.nn.init.normal_(head.mlp.hidden[1].bias)
    return head, torch.rand(N, C, H, W, dtype=torch.float64)


def ablated(**settings: str) -> tuple[AlignedHead, Tensor]:
    torch.manual_seed(0)
    head = aligned_head(C, Heads(hidden=D, num_maps=K, num_groups=G, tau=0.3, **settings), "reference").double()
    return head, torch.rand(N, C, H, W, dtype=torch.float64)


def rows_by_hand(head: CoupledHead, features: Tensor) -> Tensor:
    """Y (N, 1 + P, K) of B1-B3, one row at a time."""
    tokens = []
    for image in features:
        pixels = [image[:, y, x] for y in range(H) for x in range(W)]
        tokens += [sum(pixels) / len(pixels), *pixels]
    hidden = [head.mlp.hidden[0].weight @ token for token in tokens]  # B1
    mean = sum(hidden) / len(hidden)
    variance = sum((h - mean) ** 2 for h in hidden) / len(hidden)
    bn = head.mlp.hidden[1]
    normed = [((h - mean) / (variance + 1e-5).sqrt() * bn.weight + bn.bias).clamp_min(0) for h in hidden]  # B2
    return torch.stack([head.mlp.out.weight @ h for h in normed]).unflatten(0, (N, 1 + H * W))  # B3


def pooled_by_hand(features: Tensor, maps: Tensor) -> Tensor:
    """E5, one number at a time."""
    pooled = torch.zeros(N, K // G, C, dtype=torch.float64)
    for n in range(N):
        for aligned in range(K // G):
            for c in range(C):
                pooled[n, aligned, c] = maps[n, c // (C // G) * (K // G) + aligned] @ features[n, c].flatten()
    return pooled


def test_global_embedding_is_the_gap_row_of_a_joint_batch_norm():
    head, features = coupled_head()
    z, _ = head(features)
    torch.testing.assert_close(z, rows_by_hand(head, features)[:, 0], rtol=1e-12, atol=1e-12)


def test_maps_and_pooling_come_from_the_pixel_rows():
    head, features = coupled_head()
    heat = rows_by_hand(head, features)[:, 1:].transpose(1, 2)  # E1
    normalised = heat / heat.norm(dim=1, keepdim=True)  # E2
    maps = (normalised / 0.3).softmax(-1)  # E3, E4
    pooled = pooled_by_hand(features, maps)
    torch.testing.assert_close(head(features)[1], pooled, rtol=1e-12, atol=1e-12)
    got_maps, got_pooled = head.maps(features)
    torch.testing.assert_close(got_maps, maps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_pooled, pooled, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_formulas():
    """Through the embedding and the pooling, to the features, both layers and the batch norm between them."""
    head, features = coupled_head()
    features.requires_grad_()
    inputs = [features, *head.mlp.parameters()]
    weigh = [torch.randn(N, K, dtype=torch.float64), torch.randn(N, K // G, C, dtype=torch.float64)]

    rows = rows_by_hand(head, features)
    maps = (torch.nn.functional.normalize(rows[:, 1:].transpose(1, 2), dim=1) / 0.3).softmax(-1)
    groups = zip(maps.split(K // G, dim=1), features.flatten(2).split(C // G, dim=1), strict=True)
    pooled = torch.cat([some @ channels.transpose(1, 2) for some, channels in groups], dim=2)

    def gradients(z: Tensor, aligned: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((weigh[0] * z).sum() + (weigh[1] * aligned).sum(), inputs)

    for ours, by_hand in zip(gradients(*head(features)), gradients(rows[:, 0], pooled), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-11)


def test_running_statistics_count_every_row():
    head, features = coupled_head()
    head(features)
    tokens = torch.cat([features.mean((2, 3)).unsqueeze(1), features.flatten(2).transpose(1, 2)], 1).flatten(0, 1)
    hidden = tokens @ head.mlp.hidden[0].weight.T
    torch.testing.assert_close(head.mlp.hidden[1].running_var, 0.9 + 0.1 * hidden.var(0), rtol=1e-12, atol=1e-12)


def test_channels_last_features_give_the_same():
    head, features = coupled_head()
    for plain, strided in zip(head(features), head(features.to(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(strided, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", ABLATED, ids=lambda settings: "-".join(settings.values()) or "coupled")
def test_aligned_representations_are_float32_under_bf16_autocast(settings):
    """And as exact: of features in bfloat16, the maps pool no rounded sums."""
    head = ablated(**settings)[0].float()
    features = torch.rand(N, C, H, W).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        z, pooled = head(features)
        maps, pooled_by_maps = head.maps(features)
    assert z.dtype == torch.bfloat16
    assert pooled.dtype == pooled_by_maps.dtype == maps.dtype == torch.float32
    by_hand = pooled_by_hand(features.double(), maps.double())
    torch.testing.assert_close(pooled_by_maps.double(), by_hand, rtol=1e-6, atol=1e-6)
    if head.settings.maps != "random":  # drawn anew by every call
        torch.testing.assert_close(pooled, pooled_by_maps, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("settings", ABLATED[:2], ids=["coupled", "separate"])
def test_learned_maps_come_from_the_backend_that_is_asked_for(settings):
    head = aligned_head(C, Heads(hidden=D, num_maps=K, num_groups=G, **settings), "nobodys")
    for call in (head.forward, head.maps):
        with pytest.raises(ValueError, match="nobodys"):
            call(torch.rand(N, C, H, W))


def test_mlp_has_no_bias_and_fan_out_initialisation():
    torch.manual_seed(0)
    mlp = MLP(300, 400, 500)
    assert [name for name, _ in mlp.named_parameters()] == [
        "hidden.0.weight",
        "hidden.1.weight",
        "hidden.1.bias",
        "out.weight",
    ]
    assert abs(mlp.out.weight.std().item() - (2 / 500) ** 0.5) < 0.001


def test_moco_head_is_linear_relu_linear_with_biases():
    head = MoCoHead(C, D, K).double()
    rows = torch.randn(5, C, dtype=torch.float64)
    first, _, second = head
    expected = (rows @ first.weight.T + first.bias).clamp_min(0) @ second.weight.T + second.bias
    torch.testing.assert_close(head(rows), expected, rtol=1e-12, atol=1e-12)


def test_a_separate_head_makes_maps_with_an_mlp_of_its_own():
    head, features = ablated(coupling="separate")
    z, pooled = head(features)
    tokens = features.flatten(2).transpose(1, 2).flatten(0, 1)
    heat = head.map_mlp(tokens).unflatten(0, (N, H * W)).transpose(1, 2)
    maps = (torch.nn.functional.normalize(heat, dim=1) / 0.3).softmax(-1)
    torch.testing.assert_close(pooled, pooled_by_hand(features, maps), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z, head.mlp(features.mean((2, 3))), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.maps(features)[0], maps, rtol=1e-12, atol=1e-12)


def test_uniform_maps_make_every_aligned_representation_the_gap_token():
    head, features = ablated(maps="uniform")
    maps, pooled = head.maps(features)
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / (H * W)))
    torch.testing.assert_close(pooled, features.mean((2, 3))[:, None].expand(-1, K // G, -1))
    torch.testing.assert_close(head(features)[1], pooled)


def test_random_maps_are_drawn_anew_as_the_softmax_of_normalised_noise():
    head, features = ablated(maps="random")
    torch.manual_seed(5)
    maps, pooled = head.maps(features)
    torch.manual_seed(5)
    noise = torch.randn(N, K, H * W, dtype=torch.float64)
    expected = (noise / noise.norm(dim=1, keepdim=True) / 0.3).softmax(-1)
    torch.testing.assert_close(maps, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pooled, pooled_by_hand(features, maps), rtol=1e-12, atol=1e-12)
    assert not torch.equal(head.maps(features)[0], maps)
