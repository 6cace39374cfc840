"""Labelled images in one view: the first of the two that training draws, with the labels of their images."""

from __future__ import annotations

from dataclasses import replace

import fault
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY
from torch.utils.data import Subset

from lewel.data import TrainLoader, build, files, in_memory, one_view, own
from lewel.data.loader import BatchKey
from lewel.errors import LewelError
from lewel.recipe import presets
from lewel.recipe.schema import Augmentation, Data

COLOURS = Augmentation()  # with draws of every kind
SEED = 3


class Own:
    """Twelve images from Python, of three classes."""

    classes = ("a", "b", "c")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int):
        return Image.new("RGB", (40, 36), (20 * index, 90, 255 - 20 * index)), index % 3


@pytest.fixture(scope="module", params=["memory", "files", "files-in-memory", "own"])
def sets(request, tmp_path_factory):
    config = Data(image_size=32, embedded_train=24, embedded_test=8, augmentation=COLOURS)
    if request.param == "memory":
        return build(config, SEED)
    if request.param == "own":
        return own.build(Own(), Own(), config, SEED)
    root = tmp_path_factory.mktemp("images")
    fault.labelled(root)
    storage = "memory" if request.param == "files-in-memory" else "files"
    return build(replace(config, name="folder", root=str(root), storage=storage), SEED)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for one, other in zip(ours, theirs, strict=True)
               for a, b in zip(one, other, strict=True))  # fmt: skip


def test_the_view_is_the_first_of_the_two_that_training_draws(sets):
    key = BatchKey(2, np.array([5, 0, 11]))
    view = one_view.one_view(sets.bank, COLOURS, SEED)[key]
    assert view.images.shape == (3, 3, 32, 32)
    assert torch.equal(view.images, sets.train[key].first)
    assert not torch.equal(view.images, sets.train[key].second)
    assert not torch.equal(view.images, one_view.one_view(sets.bank, COLOURS, SEED + 1)[key].images)


def test_labels_and_indices_belong_to_the_images(sets):
    key = BatchKey(0, np.array([5, 0, 11]))
    view = one_view.one_view(sets.bank, COLOURS, SEED)[key]
    assert view.labels.dtype == view.indices.dtype == torch.int64
    assert view.indices.tolist() == [5, 0, 11]
    assert torch.equal(view.labels, sets.bank[key.indices][1])
    assert torch.equal(view.labels, torch.from_numpy(one_view.labels_of(sets.bank))[key.indices])


def test_a_chosen_image_has_the_view_it_has_among_all(sets):
    chosen = np.array([7, 2, 9, 4])
    part, whole = (one_view.one_view(sets.bank, COLOURS, SEED, which) for which in (chosen, None))
    assert len(part) == 4
    assert same([part[BatchKey(1, np.array([3, 1]))]], [whole[BatchKey(1, np.array([4, 2]))]])


def test_workers_and_processes_change_no_bit(sets):
    images = one_view.one_view(sets.bank, COLOURS, SEED, np.arange(1, 11))
    alone = list(TrainLoader(images, 4).epoch(1))
    assert len(alone) == 2
    assert same(TrainLoader(images, 4, workers=2).epoch(1), alone)
    shares = [list(TrainLoader(images, 4, rank=rank, world=2).epoch(1)) for rank in range(2)]
    assert same([one_view.Labelled(*map(torch.cat, zip(*parts, strict=True)))
                 for parts in zip(*shares, strict=True)], alone)  # fmt: skip


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_one_view_is_drawn_and_no_more(kind, tmp_path, monkeypatch):
    fault.labelled(tmp_path)
    where = {} if kind == "memory" else {"name": "folder", "root": str(tmp_path)}
    sets = build(Data(image_size=32, embedded_train=24, embedded_test=8, **where), SEED)
    images, drawn = one_view.one_view(sets.bank, COLOURS, SEED), []
    module, name = (in_memory.batched, "draw") if kind == "memory" else (files.per_sample.View, "__call__")
    whole = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given: drawn.append(given) or whole(*given))
    images[BatchKey(0, np.arange(4))]
    assert len(drawn) == (1 if kind == "memory" else 4)


def test_an_image_that_cannot_be_read_has_no_label(tmp_path):
    fault.labelled(tmp_path, train=2)
    for name in ("000", "001"):
        (tmp_path / "train" / "ant" / f"{name}.png").write_text("no picture")
    run = Data("folder", str(tmp_path), image_size=8, max_unreadable=1.0)
    bank = build(run, SEED).bank
    with pytest.warns(match="cannot read"):
        batch = one_view.one_view(bank, one_view.augmentation(replace(TINY, data=run)), SEED)[BatchKey(0, np.arange(4))]
    assert batch.labels.tolist() == [-1, -1, 1, 1]
    assert batch.indices.tolist() == [0, 1, 2, 3]


def test_the_augmentation_is_a_crop_and_the_recipe_s_own_flip():
    for name, flip in (("imagenet/lewel_b_eman_100", 0.5), ("embedded/lewel_m", 0.0)):
        made = one_view.augmentation(presets.get(name))
        assert (made.crop_scale, made.flip) == ((0.08, 1.0), flip)
        assert (made.jitter_p, made.gray, made.blur, made.solarize) == (0, 0, (0, 0), (0, 0))


def test_labels_from_python_are_what_the_items_say():
    class Announced(Own):
        targets = (0, 1, 2) * 4

        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    class Wrong(Announced):
        targets = (0,) * 12

    for dataset in (Announced(), Subset(Announced(), [3, 4, 8]), Wrong(), Own()):
        read: list[int] = []
        expected = [dataset[index][1] for index in range(len(dataset))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(own, "LOOKED_AT", 2)
            read.clear()
            assert own.Pairs(dataset).labels.tolist() == expected
        assert len(read) == (0 if type(dataset) is Own else 14 if isinstance(dataset, Wrong) else 2)


def test_a_bank_of_somebody_s_own_is_refused_in_a_sentence():
    with pytest.raises(LewelError, match="the labelled training images are a Own, which gives them cropped and"):
        one_view.one_view(Own(), COLOURS, SEED)
    with pytest.raises(LewelError, match="give it an attribute labels"):
        one_view.labels_of(Own())
