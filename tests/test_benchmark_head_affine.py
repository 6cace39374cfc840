"""The coupled head with its batch norm inside the op is the trainer's: like is compared with like."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import __main__, heap, recording
from benchmarks.documents import training as tables
from benchmarks.training import head_affine
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


def test_memory_and_times_are_recorded_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    monkeypatch.setattr(head_affine, "PRESETS", ("embedded/lewel_m",))
    monkeypatch.setattr(head_affine, "PROCESSES", 2)
    monkeypatch.setattr(head_affine, "WIDTH", 64)
    with pytest.raises(SystemExit) as exit:
        __main__.main(["head-affine", "--images", "2", "--seconds", "0.01"])
    assert not exit.value.code
    (device,) = recording.devices()
    eager, affine, *timed = recording.latest(device, "head-affine")
    assert eager["case"] == affine["case"] == {"preset": "embedded/lewel_m", "processes": 2, "precision": "bf16"}
    assert eager["step_bytes"] > affine["step_bytes"] > 1 << 20
    assert [(r["case"]["precision"], r["variant"]) for r in timed] == [
        (precision, head) for precision in ("fp32", "bf16") for head in ("eager", "pixels_affine")
    ]
    assert all(0 < r["p20"] <= r["p50"] <= r["p80"] and r["samples"] >= 5 for r in timed)
    text = tables.head_affine(device)
    assert "A step of one of 2 processes in bf16" in text
    less = 100 * (1 - affine["step_bytes"] / eager["step_bytes"])
    assert f"| {less:.1f} % |" in text
    assert f"| fp32 | 2 | {timed[0]['p50']:.1f} | {timed[1]['p50']:.1f} | {timed[1]['speedup']:.2f} |" in text
