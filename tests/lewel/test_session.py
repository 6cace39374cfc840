"""From a recipe to the parts of a run."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from timm.layers import BatchNormAct2d
from tiny_runs import METHODS, TINY, losses_of, run_in
from torch import nn

from lewel import distributed
from lewel.errors import LewelError
from lewel.methods import norm
from lewel.methods.norm import synchronise
from lewel.run.session import _check_shares, prepare


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
    assert compiled.probe.passes == plain.probe.passes == 3
    torch.testing.assert_close(compiled.probe.mean, plain.probe.mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("precision", "scaled"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_gradients_are_scaled_in_fp16_alone(precision, scaled, tmp_path):
    assert prepare(replace(TINY, precision=precision), tmp_path).scaler.is_enabled() == scaled


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


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_synchronised_bn_is_bn_over_the_images_of_all_processes(kind, training, monkeypatch):
    """Of three that see the same images, so that each sum over the processes is three times the own one."""
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(norm.differentiable, "all_reduce", lambda x: 3 * x)
    plain = kind(4, eps=0.01, momentum=0.3).double().train(training)
    for tensor in (*plain.parameters(), plain.running_mean, plain.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    synced = synchronise(nn.Sequential(kind(4, eps=0.01, momentum=0.3)), torch.device("cpu")).double().train(training)
    synced[0].load_state_dict(plain.state_dict())
    x = torch.randn(5, 4, *([3, 2] if kind is nn.BatchNorm2d else []), dtype=torch.float64, requires_grad=True)
    weigh = torch.randn_like(x)
    of_all = plain(torch.cat([x] * 3))
    torch.testing.assert_close(synced(x), of_all[:5])
    torch.testing.assert_close(synced[0].state_dict(), plain.state_dict())  # running statistics, and how many batches
    expected = torch.autograd.grad((of_all * torch.cat([weigh] * 3)).sum() / 3, [x, *plain.parameters()])
    found = torch.autograd.grad((synced(x) * weigh).sum(), [x, *synced.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("processes", [1, 3])
def test_synchronised_bn_keeps_the_activation_that_timm_has_in_its_bn(processes, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: processes)
    monkeypatch.setattr(norm.differentiable, "all_reduce", lambda x: processes * x)
    plain = nn.Sequential(BatchNormAct2d(4)).double()
    synced = synchronise(copy.deepcopy(plain), torch.device("cpu")).double()
    assert not isinstance(synced[0], BatchNormAct2d)
    assert list(synced.state_dict()) == list(plain.state_dict())
    x = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(synced(x), plain(x))
    assert synced(x).min() == 0


@pytest.mark.parametrize(
    ("knn_bank", "processes", "few"),
    [
        (1, 2, "1 images in the kNN bank for 2"),
        (15, 16, "15 images in the kNN bank for 16"),
        (0, 49, "48 images in the kNN bank for 49"),
        (100, 17, "16 test images for 17"),
        (0, 16, None),
        (16, 16, None),
    ],
)
def test_every_process_needs_an_image_of_the_bank_and_of_the_tests(knn_bank, processes, few, finished):
    run = replace(TINY, knn_bank=knn_bank)
    if few is None:
        _check_shares(run, finished.sets, processes)
    else:
        with pytest.raises(LewelError, match=f"there are only {few} processes"):
            _check_shares(run, finished.sets, processes)
        _check_shares(replace(run, knn_every=0), finished.sets, processes)  # who has no kNN shares nothing out
