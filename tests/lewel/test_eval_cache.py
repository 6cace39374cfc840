"""Features are computed once, in parts that are whole or not there, and known by what they are of."""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fault import labelled, picture
from tiny_runs import TINY
from torch import Tensor, nn

from lewel import data, distributed
from lewel.data import one_view
from lewel.data.loader import BatchKey
from lewel.errors import LewelError
from lewel.evaluation import cache, neighbours, parts
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
    assert len(list(tmp_path.glob("eval/features-*/train-*.npy"))) == 15
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
    here = socket.gethostname()
    dead, living = folder / f".{here}.999999999.train-0000.npy", folder / f".{here}.{os.getppid()}.train-0001.npy"
    elsewhere, old = folder / ".node7.cluster.999999999.train-0000.npy", folder / ".node8.999999999.train-0000.npy"
    for path in (dead, living, elsewhere, old):
        path.touch()
    os.utime(old, (1, 1))
    features_of(subject, "train")
    assert [path.exists() for path in (dead, living, elsewhere, old)] == [False, True, True, False]


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
    path = tmp_path / "moved" / "test" / "bee" / "001.png"
    os.utime(path, ns=(1, 2))  # as one that was repainted in its middle
    assert Key.of(moved) not in (first, exchanged)
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


@pytest.mark.parametrize("kept_in", ["files", "memory"])
@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1.0, 1e8, 1e30])
def test_features_of_any_size_keep_their_bits(factor, kept_in, small_parts, tmp_path, monkeypatch):
    name = "custom" if kept_in == "memory" else TINY.data.name
    subject = opened(tmp_path, replace(TINY, data=replace(TINY.data, name=name)), data.build(TINY.data, 0))
    features = Subject.features
    monkeypatch.setattr(Subject, "features", lambda self, images: features(self, images) * factor)
    expected = torch.cat([subject.features(images) for images, _ in data.eval_batches(subject.images("train"), 5)])
    for _ in range(2):
        found = features_of(subject, "train")
        assert torch.allclose(
            found.floats(found.rows), expected, rtol=2**-10, atol=float(expected.abs().max()) * 2**-23
        )
        assert (found.scale == 1) == (factor == 1)
    assert found.scale == 2 ** round(np.log2(found.scale))


def test_parts_of_different_sizes_come_together(small_parts, tmp_path, monkeypatch):
    subject, features = opened(tmp_path), Subject.features
    monkeypatch.setattr(
        Subject, "features", lambda self, images: features(self, images) * 10.0 ** float(images[0].sum() % 9)
    )
    expected = torch.cat([subject.features(images) for images, _ in data.eval_batches(subject.images("train"), 5)])
    found = features_of(subject, "train")
    assert len({float(np.load(path)[0]) for path in tmp_path.glob("eval/*/train-*-scale.npy")}) > 1
    assert torch.allclose(found.floats(found.rows), expected, rtol=2**-9, atol=float(expected.abs().max()) * 2**-23)


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_what_cannot_be_read_is_left_out_and_counted(storage, small_parts, tmp_path, capsys):
    labelled(tmp_path / "set", 12, 3)
    for name in ("train/ant/003", "train/bee/007", "test/bee/001"):
        (tmp_path / "set" / f"{name}.png").write_bytes(b"no picture")
    config = replace(TINY.data, name="folder", root=str(tmp_path / "set"), storage=storage, max_unreadable=0.5)
    subject = opened(tmp_path, replace(TINY, data=config))
    for _ in range(2):  # computed, and read
        train, test = (features_of(subject, split) for split in ("train", "test"))
        assert train.indices.tolist() == [i for i in range(24) if i not in (3, 19)]
        assert train.labels.tolist() == [0] * 11 + [1] * 11
        assert (len(train.rows), len(test.rows)) == (22, 5)
    assert (subject.unreadable("train"), subject.unreadable("test")) == (2, 1)
    assert subject.labels("train").tolist() == [0] * 12 + [1] * 12
    assert capsys.readouterr().out.count("2 of 24 training images cannot be read and are left out") == 1
    assert neighbours.accuracies(subject, train, test, [30], 0.1, 24).keys() == {30}
    view = one_view.one_view(subject.sets.bank, config.augmentation, 0)[BatchKey(0, np.arange(24))]
    assert view.labels.tolist() == [-1 if i in (3, 19) else i // 12 for i in range(24)]


@pytest.mark.parametrize(("scale", "split", "place"), [(float("inf"), "train", 17), (float("nan"), "test", 3)])
def test_values_that_are_not_finite_name_the_image(scale, split, place, small_parts, tmp_path, monkeypatch):
    subject, features, seen = opened(tmp_path), Subject.features, [0]

    def huge(self: Subject, images: Tensor) -> Tensor:
        rows = features(self, images)
        here = range(seen[0], seen[0] + len(rows))
        if place in here:
            rows[place - here.start] *= scale
        seen[0] += len(rows)
        return rows

    monkeypatch.setattr(Subject, "features", huge)
    with pytest.raises(LewelError, match=rf"features of image {place} of the \w+ images .* not finite;"):
        features_of(subject, split)


def test_a_full_disk_is_a_sentence_and_the_parts_before_it_stay(small_parts, tmp_path, monkeypatch):
    save, written = np.save, []

    def full(file, values):
        written.append(file)
        if len(written) == 8:  # the second of three files of the third part
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


def test_features_of_a_module_from_python_are_kept_in_memory_alone(tmp_path, capsys):
    """For its code may change, and neither weights nor layers with it."""
    run = replace(TINY, encoder=replace(TINY.encoder, name="custom"))
    subjects = [replace(opened(tmp_path), run=run, encoder=nn.Conv2d(3, 4, 3, stride=s), kept={}) for s in (1, 2)]
    for subject in subjects:
        nn.init.zeros_(subject.encoder.weight)
        nn.init.zeros_(subject.encoder.bias)
    assert [cache.place(each) for each in subjects] == [None, None]
    assert torch.equal(features_of(subjects[0], "test").rows, torch.zeros(16, 4).half())
    assert not list(tmp_path.iterdir())
    assert "the encoder came from Python and cannot be known again" in capsys.readouterr().out
