"""Pictures of a run: which maps are shown, and that every picture is written for every kind of run."""

from pathlib import Path

import pytest
import torch
from matplotlib import image as files

from lewel import figures
from lewel.data.augment import normalise
from lewel.watch import mass_in_boxes


def maps_of(*patterns: torch.Tensor) -> torch.Tensor:
    """Maps (1, K, h, w) in proportion to the patterns (h, w), each summing to 1."""
    maps = torch.stack(patterns)[None]
    return maps / maps.sum((2, 3), keepdim=True)


class TestMostTelling:
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    top = torch.tensor([[1.0, 1.0], [0.0, 0.0]])

    def test_maps_of_more_contrast_come_first(self):
        maps = maps_of(torch.ones(2, 2), 1 + 0.2 * self.left, 1 + 5 * self.top)
        assert figures.most_telling(maps, 2) == [2, 1]

    def test_a_map_like_one_taken_before_gives_way(self):
        maps = maps_of(1 + 5 * self.left, 1 + 4 * self.left, 1 + 0.2 * self.top)
        assert figures.most_telling(maps, 2) == [0, 2]

    def test_what_gave_way_fills_up(self):
        maps = maps_of(1 + 5 * self.left, 1 + 4 * self.left, 1 + 0.2 * self.top)
        assert figures.most_telling(maps, 3) == [0, 2, 1]


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
        shares, areas = mass_in_boxes(self.maps, torch.tensor([box]), 8)
        assert shares.shape == (1, 1)
        assert float(shares) == pytest.approx(inside)
        assert float(areas) == pytest.approx(area)


class TestPictures:
    images = normalise(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))

    def test_viewable_undoes_the_normalisation(self):
        pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(figures.viewable(normalise(pixels)), pixels, atol=1e-6)

    @pytest.mark.parametrize("boxes", [None, torch.tensor([[2.0, 3.0, 9.0, 14.0]] * 3)], ids=["no boxes", "boxes"])
    def test_maps_over_images(self, boxes, tmp_path):
        maps = (
            torch.rand(3, 8, 4, 4, generator=torch.Generator().manual_seed(2))
            .flatten(2)
            .softmax(2)
            .unflatten(2, (4, 4))
        )
        figures.alignment_maps(tmp_path / "made" / "maps.png", self.images, maps, boxes, columns=4)
        assert not is_blank(tmp_path / "made" / "maps.png")

    def test_flat_maps_do_not_divide_by_zero(self, tmp_path):
        figures.alignment_maps(tmp_path / "maps.png", self.images, torch.full((3, 2, 4, 4), 1 / 16), columns=2)
        assert not is_blank(tmp_path / "maps.png")

    @pytest.mark.parametrize("aligned", [True, False], ids=["with maps", "without maps"])
    def test_curves(self, aligned, tmp_path):
        step = {"kind": "step", "loss": 4.0, "loss_global": 4.0, "z_std": 0.9, "lr": 0.1, "momentum": 0.99}
        epoch = {"kind": "epoch", "knn": 40.0} | ({"map_entropy": 0.99, "map_spread": 0.02} if aligned else {})
        baselines = {"kind": "baselines", "step": 0, "knn_pixels": 20.0, "knn_untrained": 15.0}
        records = [baselines] + [{**record, "step": at} for at in (0, 10, 20) for record in (step, epoch)]
        figures.training_curves(tmp_path / "curves.png", records)
        assert not is_blank(tmp_path / "curves.png")


def is_blank(path: Path) -> bool:
    picture = files.imread(path)
    return min(picture.shape[:2]) < 100 or float(picture[..., :3].std()) < 0.01
