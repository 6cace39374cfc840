"""What is printed and drawn of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import assert_same

from lewel import data
from lewel.errors import LewelError
from lewel.evaluation import health
from lewel.evaluation.boxes import mass_in_boxes
from lewel.results import figures, maps, report
from lewel.run import folders


def test_summary_shows_the_result_beside_its_baselines(finished):
    text = report.summary(finished)
    for expected in (
        "raw pixels",
        "untrained",
        "linear probe, after 3 epochs",
        "std of normalised z",
        "images/s",
        "digit's box",
    ):
        assert expected in text


def test_summary_has_the_neighbours_that_the_log_has(finished, tmp_path):
    """Which the recipe of now need not name: a run may go on with others."""
    records = [
        {"kind": "baselines", "step": 0, "knn_pixels_5": 21.0, "knn_untrained_5": 12.0},
        {"kind": "epoch", "step": 9, "epoch": 3, "seconds": 1.0, "knn_7": 43.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = report.summary(dataclasses.replace(finished, folder=tmp_path))
    told = dict(re.split("  +", line)[:2] for line in text.splitlines() if line.startswith("kNN"))
    expected = {"raw pixels": ("5", "21.0"), "the network untrained": ("5", "12.0"), "after 3 epochs": ("7", "43.0")}
    assert told == {f"kNN-{k}, {name}": f"{value} %" for name, (k, value) in expected.items()}


def test_what_comes_next_can_be_pasted_into_a_shell(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "_draw_maps", lambda session, path: None)
    folder = tmp_path / "it's a $run"
    folder.mkdir()
    shutil.copy(finished.folder / "log.jsonl", folder)
    report.write(dataclasses.replace(finished, folder=folder))
    printed = capsys.readouterr().out
    commands = printed[printed.index("next: ") :].removeprefix("next: ").splitlines()
    assert len(commands) == 4
    assert [word for line in commands for word in shlex.split(line) if "run" in word] == [str(folder)] * 3


def test_one_epoch_is_no_epochs(finished, tmp_path):
    record = {"kind": "epoch", "step": 3, "epoch": 1, "seconds": 1.0, "knn": 43.0, "probe": 30.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    text = report.summary(dataclasses.replace(finished, folder=tmp_path, steps_done=3))
    assert "after 1 epoch " in text
    assert "1 epochs" not in text


def test_a_finished_run_is_loaded_with_its_weights(finished):
    loaded = folders.load(finished.folder)
    assert loaded.epochs_done == 3
    assert_same(loaded, finished)


def test_maps_are_drawn_over_image_files_without_the_data(tmp_path, finished, monkeypatch):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    monkeypatch.setattr(data, "build", None)
    maps.over_files(finished.folder, [tmp_path / "red.png"], tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").width > 100
    with pytest.raises(LewelError, match=r"cannot write the picture .*maps\.xyz: Format 'xyz' is not supported"):
        maps.over_files(finished.folder, [tmp_path / "red.png"], tmp_path / "maps.xyz")


def test_a_picture_that_is_none_is_a_sentence(tmp_path, finished):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(LewelError, match=r"cannot read .*text\.png as an image"):
        maps.over_files(finished.folder, [tmp_path / "text.png"], tmp_path / "maps.png")


def test_speed_is_images_over_the_seconds_of_training(finished):
    session = dataclasses.replace(finished, seconds=2.0)
    assert "72 images/s, 2 s" in report.summary(session)  # 3 epochs of 3 steps of 16 images


def test_the_best_map_is_measured_on_other_images_than_it_was_chosen_on(finished, monkeypatch):
    """Map 1 is best on the even images, and all its mass lies outside the boxes of the odd ones."""
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) / 2
    maps = torch.stack([torch.full((2, 2), 0.25), left]).repeat(16, 1, 1, 1)  # [N, K, h, w]
    maps[1::2, 1] = left.flip(1)
    boxes = torch.tensor([[0.0, 0.0, 16.0, 32.0]]).repeat(16, 1)  # the left half
    session = dataclasses.replace(finished, sets=dataclasses.replace(finished.sets, test_boxes=boxes))
    monkeypatch.setattr(health, "maps_of", lambda *_: (maps, None, None))
    assert mass_in_boxes(session)[:3] == pytest.approx((50, 0, 50))


def test_pictures_are_of_test_images_at_equal_distances(finished, tmp_path, monkeypatch):
    """A folder's are in the order of their classes."""
    shown = []
    monkeypatch.setattr(figures, "alignment_maps", lambda path, images, maps, boxes, **_: shown.extend((images, boxes)))
    shutil.copy(finished.folder / "log.jsonl", tmp_path)
    report.write(dataclasses.replace(finished, folder=tmp_path))
    assert torch.equal(shown[0], finished.sets.test[np.arange(0, 16, 2)][0])
    assert torch.equal(shown[1], finished.sets.test_boxes[::2])
