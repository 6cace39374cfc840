"""Sets by name, from small ones in their real format: pixels, labels, splits, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_sets import PER_FILE, marked, write_cifar, write_imagenette, write_stl10
from torchvision import datasets
from torchvision.transforms.v2 import functional as tv

from lewel.data import build, eval_batches
from lewel.errors import LewelError
from lewel.recipe.schema import Data

CIFARS = pytest.mark.parametrize(
    ("name", "kind", "classes"), [("cifar10", datasets.CIFAR10, 10), ("cifar100", datasets.CIFAR100, 100)]
)


class TestCifar:
    @CIFARS
    def test_pixels_labels_and_splits(self, name, kind, classes, tmp_path, monkeypatch):
        write_cifar(kind, tmp_path, monkeypatch)
        sets = build(Data(name=name, root=str(tmp_path), image_size=32), seed=0)
        count = PER_FILE * len(kind.train_list)
        assert (len(sets.train), len(sets.bank), len(sets.test)) == (count, count, PER_FILE)
        assert sets.num_classes == classes
        for split, first in ((sets.bank, 0), (sets.test, count)):
            assert torch.equal(split.images, torch.from_numpy(marked(first, len(split), 32)))
            assert split.labels.tolist() == [i % 7 for i in range(first, first + len(split))]
        assert torch.equal(sets.train.images, sets.bank.images)

    def test_another_size_shows_the_whole_of_each_image(self, tmp_path, monkeypatch):
        write_cifar(datasets.CIFAR10, tmp_path, monkeypatch)
        test = build(Data(name="cifar10", root=str(tmp_path), image_size=48), seed=0).test
        expected = tv.resize(torch.from_numpy(marked(20, 4, 32)), [48, 48])
        assert torch.equal(test.images, expected)
        assert test.images[0, 2, 0, [0, -1]].tolist() == [0, 31]

    def test_root_may_be_the_unpacked_folder_itself(self, tmp_path, monkeypatch):
        write_cifar(datasets.CIFAR10, tmp_path, monkeypatch)
        assert len(build(Data(name="cifar10", root=str(tmp_path / "cifar-10-batches-py"), image_size=32), 0).test) == 4


class TestStl10:
    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        write_stl10(tmp_path, monkeypatch)
        return str(tmp_path)

    def test_trains_on_all_and_compares_with_the_labelled(self, root):
        sets = build(Data(name="stl10", root=root, image_size=96), seed=0)
        assert torch.equal(sets.train.images, torch.from_numpy(marked(0, 8, 96)))
        assert torch.equal(sets.bank.images, torch.from_numpy(marked(0, 3, 96)))
        assert torch.equal(sets.test.images, torch.from_numpy(marked(8, 2, 96)))
        assert sets.bank.labels.tolist() == [0, 1, 2]
        assert sets.test.labels.tolist() == [8, 9]
        assert sets.num_classes == 10

    def test_the_bank_is_no_second_copy(self, root):
        sets = build(Data(name="stl10", root=root, image_size=96), seed=0)
        assert sets.bank.images.data_ptr() == sets.train.images.data_ptr()

    def test_another_size(self, root):
        sets = build(Data(name="stl10", root=root, image_size=64), seed=0)
        assert torch.equal(sets.train.images, tv.resize(torch.from_numpy(marked(0, 8, 96)), [64, 64]))


class TestImagenette:
    @pytest.mark.parametrize("below", ["", "imagenette2-160", "imagenette2-320", "imagenette2"])
    @pytest.mark.parametrize("storage", ["auto", "memory"])
    def test_folders(self, below, storage, tmp_path):
        write_imagenette(tmp_path / below)
        sets = build(Data(name="imagenette", root=str(tmp_path), image_size=128, storage=storage), seed=0)
        [(images, labels)] = eval_batches(sets.test, 10)
        assert sets.num_classes == len(sets.train) == len(sets.bank) == 10
        assert labels.tolist() == list(range(10))
        red = (images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255
        assert torch.allclose(red, torch.arange(5, 105, 10.0), atol=1.5)  # JPEG

    def test_of_two_sizes_the_smaller(self, tmp_path):
        write_imagenette(tmp_path / "imagenette2-320", side=320)
        write_imagenette(tmp_path / "imagenette2-160")
        sets = build(Data(name="imagenette", root=str(tmp_path), image_size=128), seed=0)
        assert sets.train.split.load(0)[0].size == (160, 160)


class TestSentences:
    def refused(self, name: str, root: Path | str, *parts: str) -> None:
        with pytest.raises(LewelError) as caught:
            build(Data(name=name, root=str(root)), seed=0)
        for part in parts:
            assert part in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "folder"),
        [
            ("cifar10", "cifar-10-batches-py"),
            ("cifar100", "cifar-100-python"),
            ("stl10", "stl10_binary"),
            ("imagenette", "imagenette2-160"),
        ],
    )
    def test_not_there(self, name, folder, tmp_path):
        self.refused(name, "", "data.root is empty", folder, "--data.download")
        (tmp_path / "pictures").mkdir()
        self.refused(name, tmp_path / "pictrues", "there is no pictrues in", "did you mean pictures?", folder)
        self.refused(name, tmp_path, folder, "it holds pictures/", "--data.download fetches")

    def test_download_needs_a_place(self):
        with pytest.raises(LewelError, match=r"data\.root is empty"):
            build(Data(name="cifar10", download=True), seed=0)

    def test_damaged_files_are_counted_and_the_first_named(self, tmp_path, monkeypatch):
        write_cifar(datasets.CIFAR10, tmp_path, monkeypatch)
        (tmp_path / "cifar-10-batches-py" / "data_batch_2").unlink()
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"")
        self.refused("cifar10", tmp_path, "not the whole of cifar10: 2 files, the first data_batch_2")

    def test_damaged_list_of_classes(self, tmp_path, monkeypatch):
        write_cifar(datasets.CIFAR10, tmp_path, monkeypatch)
        (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(b"")
        self.refused("cifar10", tmp_path, "its list of classes is missing or damaged; remove it")
