"""From a recipe to the parts of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_runs import METHODS, TINY, losses_of, run_in
from torch import nn

from lewel.norm import synchronise
from lewel.session import prepare


def test_compiled_encoders_train_the_same_from_one_graph_a_network(tmp_path, monkeypatch):
    run = replace(TINY, method=METHODS["lewel_b-eman"], epochs=1)
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run_in(tmp_path / "compiled", replace(run, compile=True))
    plain = run_in(tmp_path / "plain", run)
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 2  # online and target; the evaluation compiles nothing
    assert not counters["graph_break"]
    assert set(compiled.method.state_dict()) == set(plain.method.state_dict())


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_convolutions_have_the_layout_of_the_recipe(channels_last, tmp_path):
    session = prepare(replace(TINY, channels_last=channels_last), tmp_path)
    for tensor in (session.to_device(torch.rand(2, 3, 8, 8)), session.method.online.encoder.layer1[0].conv1.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_synchronised_bn_keeps_names_weights_and_what_is_trained():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)))
    nn.init.normal_(module[1].weight)
    module[2].requires_grad_(False)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    synced = synchronise(module, torch.device("cpu"))
    assert {name: value.tolist() for name, value in synced.state_dict().items()} == {
        name: value.tolist() for name, value in state.items()
    }
    assert [p.requires_grad for p in synced.parameters()] == [True] * 4 + [False] * 2
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in synced.modules())
