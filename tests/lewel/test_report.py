"""What is printed and drawn of a run."""

from __future__ import annotations

import pytest
from PIL import Image
from tiny_runs import assert_same

from lewel import data, report
from lewel.errors import LewelError


def test_summary_shows_the_result_beside_its_baselines(finished):
    text = report.summary(finished)
    for expected in ("raw pixels", "untrained", "after 3 epochs", "std of normalised z", "images/s", "digit's box"):
        assert expected in text


def test_a_finished_run_is_loaded_with_its_weights(finished):
    loaded = report.load(finished.folder)
    assert loaded.epochs_done == 3
    assert_same(loaded, finished)


def test_maps_are_drawn_over_image_files_without_the_data(tmp_path, finished, monkeypatch):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    monkeypatch.setattr(data, "build", None)
    report.draw_maps(finished.folder, [tmp_path / "red.png"], tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").width > 100
    with pytest.raises(LewelError, match=r"cannot write the picture .*maps\.xyz: Format 'xyz' is not supported"):
        report.draw_maps(finished.folder, [tmp_path / "red.png"], tmp_path / "maps.xyz")


def test_a_picture_that_is_none_is_a_sentence(tmp_path, finished):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(LewelError, match=r"cannot read .*text\.png as an image"):
        report.draw_maps(finished.folder, [tmp_path / "text.png"], tmp_path / "maps.png")
