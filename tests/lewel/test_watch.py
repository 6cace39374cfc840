"""Numbers of a run's health: spread of the embedding, memory, entropy and place of the alignment maps."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny_runs import METHODS, TINY, assert_equal

from lewel.evaluation import boxes, health
from lewel.methods.method import Method


def test_spread_of_embeddings_is_one_on_the_sphere_and_zero_when_collapsed():
    for width in (16, 64, 256):
        assert float(health.spread_of(torch.randn(4096, width))) == pytest.approx(1, abs=0.03)
    assert float(health.spread_of(torch.ones(64, 64) * torch.rand(64, 1))) == pytest.approx(0, abs=1e-6)


def test_spread_stays_where_the_embedding_is():
    """A meta tensor has no values: whoever asks for one, as a copy to the host would, fails."""
    spread = health.spread_of(torch.empty(8, 4, device="meta", requires_grad=True))
    assert (spread.device.type, spread.shape, spread.requires_grad) == ("meta", (), False)


def test_numbers_are_read_in_one_piece(monkeypatch):
    moves, to_list = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: moves.append(self.shape) or to_list(self))
    for move in ("item", "__float__", "cpu"):
        monkeypatch.setattr(torch.Tensor, move, None)
    values = {
        "loss": torch.tensor(2.5, requires_grad=True),
        "z_std": torch.tensor(0.5, dtype=torch.bfloat16),
        "worst": torch.tensor(float("inf")),
    }
    assert health.read(values) == {"loss": 2.5, "z_std": 0.5, "worst": float("inf")}
    assert moves == [(3,)]


def test_peak_memory_of_the_process_holds_what_was_allocated_and_freed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.ones(300 * 2**18)  # 300 MiB
    assert 300 < health.peak_memory() < 2**20


def test_peak_memory_on_a_gpu_is_that_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert health.peak_memory() == 3


def test_map_statistics_of_uniform_maps(monkeypatch):
    features = torch.rand(2, 4, 3, 3)
    uniform = torch.full((2, 8, 3, 3), 1 / 9)
    pooled = features.mean((2, 3)).unsqueeze(1).expand(-1, 2, -1)
    monkeypatch.setattr(health, "maps_of", lambda method, images: (uniform, pooled, features))
    assert health.map_statistics(None, None) == pytest.approx({"map_entropy": 1, "map_spread": 0}, abs=1e-6)


def test_map_statistics_by_hand(monkeypatch):
    """Two images of four positions and one channel, L = 1: one map in two positions, one in a single one."""
    features = torch.tensor([[1.0, 3, 5, 7], [2, 2, 2, 10]]).view(2, 1, 2, 2)
    maps = torch.tensor([[0.5, 0, 0, 0.5], [0, 0, 0, 1]]).view(2, 1, 2, 2)
    pooled = torch.tensor([4.0, 10]).view(2, 1, 1)
    monkeypatch.setattr(health, "maps_of", lambda method, images: (maps, pooled, features))
    # Entropies ln 2 and 0 over ln 4; distances 0 from GAP 4, 6 from GAP 4.
    assert health.map_statistics(None, None) == pytest.approx({"map_entropy": 0.25, "map_spread": 0.75}, abs=1e-6)


def test_maps_are_those_of_the_online_network_in_eval_mode():
    torch.manual_seed(0)
    method, images = Method(replace(TINY, method=METHODS["lewel_b-eman"])), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        for parameter in method.online.parameters():  # to tell it from the target
            parameter.mul_(1.1)
    before = copy.deepcopy(method.state_dict())
    maps, pooled, features = health.maps_of(method, images)
    assert all(module.training for module in method.online.modules())
    assert_equal(method.state_dict(), before)  # no batch statistics were taken
    method.eval()
    with torch.no_grad():
        expected = method.online.encoder(images)
        torch.testing.assert_close(features, expected)
        expected_maps, expected_pooled = method.online.head.maps(expected)
    torch.testing.assert_close(maps.flatten(2), expected_maps)
    torch.testing.assert_close(pooled, expected_pooled)


class TestMassInBoxes:
    """Maps of 2 x 2 cells over 8 x 8 pixels, by hand."""

    maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]])

    @pytest.mark.parametrize(
        ("box", "inside", "area"),
        [
            ((0.0, 0.0, 8.0, 8.0), 1.0, 1.0),
            ((4.0, 0.0, 8.0, 4.0), 0.2, 0.25),
            ((0.0, 4.0, 8.0, 8.0), 0.7, 0.5),
            ((2.0, 0.0, 6.0, 4.0), 0.5 * 0.1 + 0.5 * 0.2, 0.25),
            ((3.0, 3.0, 5.0, 5.0), 1 / 16, 1 / 16),
            ((6.0, 5.0, 7.0, 8.0), 0.4 * 3 / 16, 3 / 64),
        ],
        ids=["all", "a cell", "two cells", "two halves", "four corners", "part of a cell"],
    )
    def test_cells_count_by_the_share_covered(self, box, inside, area):
        shares, areas = boxes.shares(self.maps, torch.tensor([box]), 8)
        assert shares.shape == (1, 1)
        assert float(shares) == pytest.approx(inside)
        assert float(areas) == pytest.approx(area)
