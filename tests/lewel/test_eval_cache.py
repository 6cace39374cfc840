"""Features are computed once, in parts that are whole or not there, and known by what they are of."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fault import labelled, picture
from tiny_runs import TINY
from torch import Tensor, nn

from lewel import data, distributed
from lewel.errors import LewelError
from lewel.evaluation import cache, parts
from lewel.evaluation.cache import features_of
from lewel.evaluation.subject import Subject
from lewel.methods import encoders
from lewel.recipe.schema import Train


def opened(folder: Path, run: Train = TINY, sets: data.Datasets | None = None, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    encoder = encoders.build(run.encoder).eval().requires_grad_(False)
    sets = sets or data.build(run.data, run.seed)
    return Subject(run, folder, "step-00000009", encoder, sets, distributed.join(), 3, 9, "some weights")


@pytest.fixture
def small_parts(monkeypatch):
    """Five parts of the 48 training images, the last one short."""
    monkeypatch.setattr(parts, "PART", 10)
    monkeypatch.setattr(cache, "PART", 10)
    monkeypatch.setattr(cache, "BATCH", 5)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Sizes of the batches that an encoder is called with."""
    sizes, features = [], Subject.features

    def counted(self: Subject, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return features(self, images)

    monkeypatch.setattr(Subject, "features", counted)
    return sizes


def directly(subject: Subject, split: str = "train") -> Tensor:
    return torch.cat([subject.features(images).half() for images, _ in data.eval_batches(subject.images(split), 5)])


def test_features_are_those_of_the_encoder_in_the_order_of_the_images(small_parts, tmp_path):
    subject = opened(tmp_path)
    expected = directly(subject)
    for _ in range(2):  # computed, and read
        found = features_of(subject, "train")
        assert found.rows.dtype == torch.float16
        assert torch.equal(found.rows, expected)
        assert torch.equal(found.labels, subject.sets.bank.labels)
    assert len(list(tmp_path.glob("eval/features-*/train-*.npy"))) == 10
    assert torch.equal(features_of(subject, "test").labels, subject.sets.test.labels)


def test_what_is_there_is_not_computed_again(small_parts, calls, tmp_path, capsys):
    features_of(opened(tmp_path), "train")
    assert sum(calls) == 48
    folder = cache.place(opened(tmp_path))
    (folder / "train-0001.npy").unlink()
    (folder / "train-0004-labels.npy").unlink()
    whole, calls[:] = features_of(opened(tmp_path), "train"), []
    assert "3 of 5 parts are in" in capsys.readouterr().out
    features_of(opened(tmp_path), "train")
    assert calls == []
    assert torch.equal(whole.rows, directly(opened(tmp_path)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def of_another_number(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def not_finite(path: Path) -> None:
    values = np.load(path)
    values[3, 2] = np.nan
    np.save(path, values)


def no_array(path: Path) -> None:
    path.write_text("nothing")


def doubles(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float64))


@pytest.mark.parametrize("spoil", [cut, of_another_number, not_finite, no_array, doubles], ids=lambda f: f.__name__)
def test_a_broken_part_is_named_and_computed_anew(spoil, small_parts, calls, tmp_path, capsys):
    subject = opened(tmp_path)
    whole = features_of(subject, "train")
    path = cache.place(subject) / "train-0002.npy"
    spoil(path)
    calls.clear()
    again = features_of(opened(tmp_path), "train")
    assert sum(calls) == 10
    assert torch.equal(again.rows, whole.rows)
    assert re.search(rf"{re.escape(str(path))} .*; this part is computed anew", capsys.readouterr().out)


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(small_parts, tmp_path):
    subject = opened(tmp_path)
    folder = cache.place(subject)
    folder.mkdir(parents=True)
    dead, living = folder / ".999999999.train-0000.npy", folder / f".{os.getppid()}.train-0001.npy"
    dead.touch()
    living.touch()
    features_of(subject, "train")
    assert not dead.exists()
    assert living.exists()


class Key:
    """By what features are known."""

    @staticmethod
    def of(run: Train = TINY, seed: int = 0) -> str:
        return str(cache.place(opened(Path(), run, seed=seed)))


CHANGES = {
    "weights": {"seed": 1},
    "precision": {"run": replace(TINY, precision="bf16")},
    "encoder": {"run": replace(TINY, encoder=replace(TINY.encoder, last_stride=1))},
    "image size": {"run": replace(TINY, data=replace(TINY.data, image_size=48))},
    "number of images": {"run": replace(TINY, data=replace(TINY.data, embedded_test=20))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_features_have_another_key(change):
    assert Key.of(**CHANGES[change]) != Key.of()


def test_what_changes_no_feature_changes_no_key():
    other = replace(TINY, epochs=9, seed=4, data=replace(TINY.data, batch_size=8, workers=1))
    assert Key.of(other) == Key.of()


def test_images_in_folders_are_known_by_their_names_and_contents(tmp_path):
    labelled(tmp_path / "set", 4, 2)
    run = replace(TINY, data=replace(TINY.data, name="folder", root=str(tmp_path / "set")))
    first = Key.of(run)
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = replace(run, data=replace(run.data, root=str(tmp_path / "moved")))
    assert Key.of(moved) == first
    picture(tmp_path / "moved" / "test" / "ant" / "000.png", 99)
    exchanged = Key.of(moved)
    assert exchanged != first
    picture(tmp_path / "moved" / "train" / "ant" / "new.png")
    assert Key.of(moved) not in (first, exchanged)


def test_a_folder_with_other_features_is_refused_and_stays(small_parts, tmp_path):
    features_of(opened(tmp_path, seed=1), "train")
    folder, other = cache.place(opened(tmp_path)), cache.place(opened(tmp_path, seed=1))
    other.rename(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(LewelError, match=r"has other features, as its key.json says \(weights\); remove the folder"):
        features_of(opened(tmp_path), "train")
    (folder / "key.json").write_text("{")
    with pytest.raises(LewelError, match="cannot be read; remove the folder"):
        features_of(opened(tmp_path), "train")
    assert sorted(folder.iterdir()) == before
    (folder / "key.json").unlink()
    with pytest.raises(LewelError, match=r"no key\.json that says what they are of; remove the folder"):
        features_of(opened(tmp_path), "train")


@pytest.mark.parametrize(("scale", "split", "place"), [(1e9, "train", 17), (1e9, "test", 3)])
def test_values_that_16_bits_cannot_hold_name_the_image(scale, split, place, small_parts, tmp_path, monkeypatch):
    subject, features, seen = opened(tmp_path), Subject.features, [0]

    def huge(self: Subject, images: Tensor) -> Tensor:
        rows = features(self, images)
        here = range(seen[0], seen[0] + len(rows))
        if place in here:
            rows[place - here.start] *= scale
        seen[0] += len(rows)
        return rows

    monkeypatch.setattr(Subject, "features", huge)
    with pytest.raises(LewelError, match=rf"features of image {place} of the \w+ images .* not finite in 16 bits"):
        features_of(subject, split)


def test_a_full_disk_is_a_sentence_and_the_parts_before_it_stay(small_parts, tmp_path, monkeypatch):
    save, written = np.save, []

    def full(file, values):
        written.append(file)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, values)

    monkeypatch.setattr(np, "save", full)
    subject = opened(tmp_path)
    with pytest.raises(LewelError, match=r"train-0002.npy: No space left on device; the parts before it are kept"):
        features_of(subject, "train")
    assert cache.there(subject, "train") == (2, 5)
    assert "2 parts of the features are kept in" in cache.kept(subject)


def test_a_place_that_cannot_be_written_to_is_a_sentence(tmp_path):
    (tmp_path / "eval").touch()
    with pytest.raises(LewelError, match=r"features cannot be written to .*; choose another place .* --out FOLDER"):
        features_of(opened(tmp_path), "train")


def test_a_part_that_another_machine_keeps_to_itself_is_a_sentence(small_parts, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE", 0.0)
    subject = opened(tmp_path)
    monkeypatch.setattr(parts.Part, "write", lambda *_: None)
    with pytest.raises(LewelError, match=r"process 0 does not see .*train-0000\.npy.* a folder that they share"):
        features_of(subject, "train")


def test_of_images_from_python_features_are_kept_in_memory_alone(small_parts, calls, tmp_path, capsys):
    run = replace(TINY, data=replace(TINY.data, name="custom"))
    subject = opened(tmp_path, run, data.build(TINY.data, 0))
    for _ in range(2):
        for split in ("train", "test"):
            assert torch.equal(features_of(subject, split).rows, directly(opened(tmp_path), split))
    assert sum(calls[: 4 + 10]) <= 64 + 64
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out.count("came from Python and cannot be known again") == 1


def test_progress_is_that_of_what_is_missing(small_parts, tmp_path):
    subject, told = opened(tmp_path), []
    features_of(subject, "train", lambda *call: told.append(call))
    what = "features of the training images"
    assert told[0] == (what, 0, 48)
    assert told[-1] == (what, 48, 48)
    (cache.place(subject) / "train-0004.npy").unlink()
    told.clear()
    features_of(opened(tmp_path), "train", lambda *call: told.append(call))
    assert told == [(what, 0, 8), (what, 5, 8), (what, 8, 8)]


def test_a_module_from_python_is_known_by_its_layers(tmp_path):
    run = replace(TINY, encoder=replace(TINY.encoder, name="custom"))
    subjects = [replace(opened(tmp_path), run=run, encoder=nn.Conv2d(3, 4, 3, stride=s), kept={}) for s in (1, 2)]
    for subject in subjects:
        nn.init.zeros_(subject.encoder.weight)
        nn.init.zeros_(subject.encoder.bias)
    assert cache.place(subjects[0]) != cache.place(subjects[1])
