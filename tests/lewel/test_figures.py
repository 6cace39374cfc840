"""Pictures of a run: which maps are shown, and that every picture is written for every kind of run."""

from pathlib import Path

import pytest
import torch
from full_disk import refusal
from matplotlib import image as files
from matplotlib.figure import Figure

from lewel.data.batched import normalise
from lewel.results import figures


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


class TestPictures:
    images = normalise(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))

    def test_viewable_undoes_the_normalisation(self):
        pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(figures.viewable(normalise(pixels.clone())), pixels, atol=1e-6)

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

    @pytest.mark.parametrize("suffix", ["jpg", "pdf", "svg"])
    def test_every_kind_of_file_has_the_grid(self, suffix, tmp_path):
        figures.alignment_maps(tmp_path / f"maps.{suffix}", self.images, torch.rand(3, 8, 4, 4), title="a title")
        assert (tmp_path / f"maps.{suffix}").stat().st_size > 10_000

    def test_more_rows_than_a_picture_holds_go_on_in_the_next_with_the_same_maps(self, tmp_path, monkeypatch):
        monkeypatch.setattr(figures, "ROWS", 2)
        maps = torch.rand(3, 8, 4, 4, generator=torch.Generator().manual_seed(2))
        written = figures.alignment_maps(tmp_path / "maps.png", self.images, maps)
        assert [path.name for path in written] == ["maps.png", "maps-2.png"]
        monkeypatch.setattr(figures, "ROWS", 3)
        (whole,) = figures.alignment_maps(tmp_path / "whole.png", self.images, maps)
        pitch = 16 * 8 + figures.GAP
        last, all_rows = (files.imread(path) for path in (written[1], whole))
        assert (last[-pitch:] == all_rows[-pitch:]).all()

    def test_a_cell_is_the_image_and_its_map_between_its_own_extremes(self):
        image, maps = torch.full((3, 66, 66), 0.5), torch.eye(2)[None] + 3
        cells = figures.cells_of(image, maps, torch.tensor([16.0, 8.0, 48.0, 60.0]))
        assert cells.shape == (2, 132, 132, 3)
        hot, cold = (torch.tensor(figures.matplotlib.colormaps[figures.HEAT](x)[:3]) for x in (1.0, 0.0))
        for corner, heat in (((2, 2), hot), ((-3, 2), cold)):
            expected = (255 * (0.38 * 0.5 + 0.62 * heat)).round()
            assert abs(torch.from_numpy(cells[1][corner]) - expected).max() <= 1
        assert (cells[0, 60, 60] == 128).all()
        for cell in cells:  # black, white, black around column 32
            assert [cell[60, x, 0] for x in (30, 31, 32, 33)] == [0, 255, 255, 0]
            assert [cell[y, 60, 0] for y in (118, 119, 120, 121)] == [0, 255, 255, 0]


def test_a_picture_that_cannot_be_written_whole_leaves_the_one_that_is_there(tmp_path):
    path = tmp_path / "curves.png"
    path.write_bytes(b"before")
    sentence = refusal(lambda: figures.save(Figure(), path), 1000)
    assert sentence == f"cannot write the picture {path}: File too large"
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def is_blank(path: Path) -> bool:
    picture = files.imread(path)
    return min(picture.shape[:2]) < 100 or float(picture[..., :3].std()) < 0.01
