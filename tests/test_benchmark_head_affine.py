"""The coupled head with its batch norm inside the op is the trainer's: like is compared with like."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training.head_affine import AffineHead
from lewel.methods.heads import CoupledHead
from lewel.recipe.schema import Heads


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_outputs_gradients_and_running_statistics_are_the_eager_ones(training):
    torch.manual_seed(0)
    settings = Heads(hidden=24, num_maps=8, num_groups=2)
    eager, affine = (kind(16, settings, "reference").double().train(training) for kind in (CoupledHead, AffineHead))
    for tensor in (*eager.parameters(), eager.mlp.hidden[1].running_mean, eager.mlp.hidden[1].running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    affine.load_state_dict(eager.state_dict())
    features = torch.randn(5, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    weigh = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 4, 16, dtype=torch.float64)
    found = []
    for head in (eager, affine):
        z, pooled = head(features)
        gradients = torch.autograd.grad(
            (z * weigh[0]).sum() + (pooled * weigh[1]).sum(), [features, *head.parameters()]
        )
        norm = head.mlp.hidden[1]
        found.append([z, pooled, *gradients, norm.running_mean, norm.running_var])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
