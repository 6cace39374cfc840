"""Images in folders: layout, errors as sentences, unreadable files."""

import hashlib
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lewel.data import TrainLoader, build, eval_batches, fingerprint, pictures
from lewel.data.folder import Folder, Replaced
from lewel.data.loader import BatchKey
from lewel.data.per_sample import View, fit, to_tensor
from lewel.errors import LewelError
from lewel.recipe.schema import Augmentation, Data


def write_image(path: Path, colour: int, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 255 - colour, 90)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, five training and two test images each; image i of a split has the colour 10 i."""
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("bee", "ant")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", 10 * (i + (1 - label) * count))
    return tmp_path


def config(root: Path, in_memory: bool = False) -> Data:
    return Data(name="folder", root=str(root), image_size=32, storage="memory" if in_memory else "files")


def whole_bank(root: Path, in_memory: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(eval_batches(build(config(root, in_memory), seed=0).bank, batch_size=10))


class TestLayout:
    def test_classes_sizes_and_order(self, root):
        sets = build(config(root), seed=0)
        assert sets.num_classes == 2
        assert (len(sets.train), len(sets.bank), len(sets.test)) == (10, 10, 4)
        (images, labels), *rest = eval_batches(sets.bank, batch_size=10)
        assert not rest
        assert labels.tolist() == [0] * 5 + [1] * 5
        red = (images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255
        assert torch.allclose(red, torch.arange(0, 100, 10.0), atol=0.01)

    def test_val_serves_as_test(self, root):
        (root / "test").rename(root / "val")
        assert len(build(config(root), seed=0).test) == 4

    def test_in_memory_is_the_same_to_evaluate(self, root):
        from_files, in_memory = (build(config(root, held), seed=0).test for held in (False, True))
        for ours, theirs in zip(eval_batches(in_memory, 3), eval_batches(from_files, 3), strict=True):
            assert torch.allclose(ours[0], theirs[0], atol=1e-6)
            assert torch.equal(ours[1], theirs[1])

    @pytest.mark.parametrize(
        ("given", "resized"),
        [
            ((32, 32), (32, 32)), ((64, 32), (64, 32)), ((20, 16), (40, 32)), ((74, 37), (74, 37)),
            ((31, 300), (32, 310)), ((300, 200), (56, 37)), ((200, 300), (37, 56)),
        ],
    )  # fmt: skip
    def test_fit_keeps_the_centre(self, given, resized):
        """Red tells the column of the file that an evaluated pixel shows, green the row; of an odd rest, left and top
        lose less."""
        ramps = [np.linspace(0, 255, side) for side in given]
        image = np.stack(np.broadcast_arrays(ramps[0], ramps[1][:, None], 0), axis=2).round().astype(np.uint8)
        fitted = np.asarray(fit(Image.fromarray(image), 32)).astype(float)
        assert fitted.shape == (32, 32, 3)
        for seen, side, whole in zip((fitted[16, :, 0], fitted[:, 16, 1]), given, resized, strict=True):
            place = (np.arange(32) + (whole - 32) // 2 + 0.5) * side / whole - 0.5
            inner = slice(3, 29)  # at the border of the file the filter is cut off
            assert np.abs(seen - place * 255 / (side - 1))[inner].max() < 1.5

    def test_fit_shrinks_by_a_triangle_twice_as_wide_as_a_pixel(self):
        """PIL's bilinear filter with its support scaled: whiskers of one white line, in a file twice as large."""
        for line in (30, 31, 32):
            image = np.zeros((64, 64), dtype=np.uint8)
            image[:, line] = 240
            fitted = np.asarray(fit(Image.fromarray(image), 28))[14].astype(float)  # 64 -> 32 -> the centre
            distance = np.abs((line + 0.5) / 2 - (np.arange(2, 30) + 0.5))  # in pixels of the result
            assert np.abs(fitted - 240 * np.clip(1 - distance, 0, 1) / 2).max() <= 1

    def test_images_in_memory_and_in_files_are_shrunk_alike(self, tmp_path):
        for split in ("train", "test"):
            path = tmp_path / split / "noise" / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(path)
        expected = fit(Image.open(path), 32)
        for held in (False, True):
            [(images, _)] = eval_batches(build(config(tmp_path, held), seed=0).test, 1)
            assert torch.allclose(images[0], to_tensor(expected), atol=1e-6)

    def test_links_to_folders_and_files_are_followed(self, root, tmp_path_factory):
        """A class that lies elsewhere, a folder of more images inside a class, and a single image."""
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        for name in ("class/0.png", "more/1.png", "more/deeper/2.png", "3.png"):
            write_image(elsewhere / name, 200)
        for split in ("train", "test"):
            (root / split / "cat").symlink_to(elsewhere / "class")
        (root / "train" / "ant" / "linked").symlink_to(elsewhere / "more")
        (root / "train" / "bee" / "linked.png").symlink_to(elsewhere / "3.png")
        sets = build(config(root), seed=0)
        (images, labels), *_ = eval_batches(sets.bank, batch_size=20)
        assert labels.tolist() == [0] * 7 + [1] * 6 + [2]
        red = ((images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 255).round().tolist()
        assert [red[i] for i in (5, 6, 12, 13)] == [200] * 4
        assert len(sets.test) == 5

    def test_test_comes_before_val(self, root):
        write_image(root / "val" / "ant" / "0.png", 0)
        assert build(config(root), seed=0).test.split.split == root / "test"

    def test_files_of_every_known_ending_are_images(self, root):
        for number, ending in enumerate(("jpg", "jpeg", "JPEG", "png", "bmp", "gif", "ppm", "tif", "tiff", "webp")):
            write_image(root / "test" / "ant" / f"more-{number}.{ending}", 100)
        for ending in ("txt", "npy", "json"):
            (root / "test" / "ant" / f"none.{ending}").write_text("no image")
        assert len(build(config(root), seed=0).test) == 4 + 10

    def test_hidden_files_and_folders_are_no_images_and_no_classes(self, root):
        """Such as those that desktops and notebooks leave behind."""
        for split in ("train", "test"):
            write_image(root / split / "ant" / "._0.png", 0)
            write_image(root / split / ".ipynb_checkpoints" / "0.png", 0)
        sets = build(config(root), seed=0)
        assert (len(sets.train), len(sets.test), sets.num_classes) == (10, 4, 2)

    @pytest.mark.parametrize("in_memory", [False, True], ids=["files", "memory"])
    @pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
    def test_images_of_every_mode_have_three_colours(self, mode, in_memory, tmp_path):
        for split in ("train", "test"):
            path = tmp_path / split / "only" / ("0.tiff" if mode == "CMYK" else "0.png")
            path.parent.mkdir(parents=True)
            Image.new(mode, (40, 32), 0).save(path)
        sets = build(config(tmp_path, in_memory), seed=0)
        [(images, _)] = eval_batches(sets.bank, 1)
        assert images.shape == sets.train[BatchKey(0, np.array([0]))].first.shape == (1, 3, 32, 32)

    def test_views_of_files_are_the_reference_for_each_view(self, root):
        augmentation = Augmentation(crop_scale=(0.5, 1.0))
        sets = build(replace(config(root), augmentation=augmentation), seed=4)
        got = sets.train[BatchKey(epoch=1, indices=np.array([7, 2]))]
        for view, images in enumerate((got.first, got.second)):
            one = View(augmentation, 32, view)
            expected = [one(sets.train.split.load(i)[0], seed=4, epoch=1, index=i) for i in (7, 2)]
            assert torch.equal(images, torch.stack(expected))
        assert got.indices.tolist() == [7, 2]


class TestSentences:
    def refused(self, root: Path | str, *parts: str) -> None:
        with pytest.raises(LewelError) as caught:
            build(Data(name="folder", root=str(root), image_size=32), seed=0)
        for part in parts:
            assert part in str(caught.value)

    def test_no_root(self):
        self.refused("", "--data.root", "train/ and test/")

    def test_mistyped_root_names_the_nearest(self, root):
        (root / "pictures").mkdir()
        self.refused(root / "pictrues", "there is no pictrues in", "did you mean pictures?")

    def test_mistyped_parent(self, tmp_path):
        self.refused(tmp_path / "nowhere" / "at" / "all", f"there is no nowhere in {tmp_path}")

    def test_root_is_a_file(self, tmp_path):
        (tmp_path / "set.zip").write_text("")
        self.refused(tmp_path / "set.zip", "set.zip is a file")

    def test_empty_root(self, tmp_path):
        self.refused(tmp_path, f"there are no images in data.root {tmp_path}", "it is empty")

    def test_class_folder_without_images(self, root):
        (root / "train" / "cat").mkdir()
        (root / "train" / "cat" / "readme.txt").write_text("none yet")
        write_image(root / "test" / "cat" / "0.png", 0)
        self.refused(root, str(root / "train" / "cat"), "holds no images", ".jpg")

    def test_splits_of_different_classes(self, root):
        write_image(root / "train" / "cat" / "0.png", 0)
        self.refused(root, "must hold the same class folders", "'cat'")


class TestUnreadable:
    @pytest.fixture
    def broken(self, root: Path) -> Path:
        """Number 2 of the training images is cut off, number 3 is no image at all."""
        path = root / "train" / "ant" / "2.png"
        path.write_bytes(path.read_bytes()[:60])
        (root / "train" / "ant" / "3.png").write_text("not an image")
        return path

    @pytest.mark.parametrize("in_memory", [False, True])
    def test_named_counted_and_replaced_by_another(self, root, broken, in_memory):
        with pytest.warns(UserWarning, match="takes its place") as caught:
            [(images, labels)] = whole_bank(root, in_memory)
        warned = [str(warning.message) for warning in caught]
        assert len(warned) == 2
        assert all(any(f"{path}: " in line for line in warned) for path in (broken, broken.with_name("3.png")))
        red = ((images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 25.5).round().int().tolist()
        sound = set(range(10)) - {2, 3}
        assert red[:2] + red[4:] == sorted(sound)
        assert {red[2], red[3]} <= sound
        assert labels.tolist() == [int(shown >= 5) for shown in red]

    def test_said_in_a_line_that_a_name_does_not_break(self, tmp_path):
        path = tmp_path / "a\n\x1b[31mb.png"
        path.touch()
        write_image(tmp_path / "c.png", 3)
        split = Folder([path, tmp_path / "c.png"], [0, 0], tmp_path, Data(max_unreadable=1))
        with pytest.warns(Replaced) as caught:
            split.load(0)
        message = str(caught[0].message)
        assert message.startswith(f"cannot read {tmp_path}/a??[31mb.png: ")
        assert warnings.formatwarning(message, Replaced, "folder.py", 1) == f"lewel: {message}\n"
        assert "folder.py:1: UserWarning" in warnings.formatwarning("other", UserWarning, "folder.py", 1)

    def test_replacements_are_scattered_and_the_same_every_time(self, tmp_path):
        """300 empty files in a row must not become one picture."""
        for i in range(1000):
            (tmp_path / f"{i:03}.png").touch()
            if not 300 <= i < 600:
                write_image(tmp_path / f"{i:03}.png", i % 256, (1, 1))
        paths, limit = sorted(tmp_path.iterdir()), Data(max_unreadable=0.5)
        shown = []
        for _ in range(2):
            split = Folder(paths, range(1000), tmp_path, limit)
            with pytest.warns(UserWarning, match="cannot read") as caught:
                shown.append([split.load(i)[1] for i in range(1000)])
            assert (len(caught), split.replaced) == (11, 300)
        assert shown[0] == shown[1]
        assert np.bincount(shown[0]).max() < 8
        assert np.abs(np.bincount(shown[0], minlength=1000).reshape(10, 100).sum(1)[[0, 9]] - 143).max() < 30

    @pytest.mark.parametrize("in_memory", [False, True], ids=["files", "memory"])
    def test_one_with_a_label_takes_the_place_of_one_with_a_label(self, root, in_memory):
        for i in range(40):
            write_image(root / "train" / f"{i}.png", 200)  # without a label: beside the class folders
        for name in ("1.png", "2.png"):
            (root / "train" / "bee" / name).write_bytes(b"")
        with pytest.warns(Replaced):
            [(images, labels)] = whole_bank(root, in_memory)
        red = ((images[:, 0].mean((1, 2)) * 0.229 + 0.485) * 25.5).round().int()
        assert len(images) == 10
        assert red.max() < 10
        assert labels.tolist() == [int(shown >= 5) for shown in red]
        assert red[6] != red[7]  # scattered: the next in the row would be the same
        for path in (root / "train").glob("*/*.png"):
            path.write_bytes(b"")
        with pytest.warns(Replaced), pytest.raises(LewelError, match="none of the 10 images with labels, which kNN"):
            whole_bank(root, in_memory)

    @pytest.mark.parametrize("count", [1, 2, 7, 12, 64])
    def test_every_file_is_tried_once_before_none_can_be_read(self, count, tmp_path):
        for labelled in (count, count // 2, 0):
            labels = [i if i < labelled else -1 for i in range(count)]
            split = Folder([tmp_path / f"{i}.png" for i in range(count)], labels, tmp_path, Data())
            for index in range(count):
                tried = list(split._from(index))
                assert sorted(tried) == list(range(count))
                assert tried[0] == index
                assert sorted(tried[: labelled if index < labelled else count - labelled])[0] == (
                    0 if index < labelled else labelled
                )

    def test_too_many_end_the_reading_soon(self, tmp_path, monkeypatch):
        """A disk that is gone fails at once a million times, and slowly."""
        tried = []

        def read(path: Path, _: Data) -> None:
            tried.append(path)
            raise pictures.UnreadableImage("Stale file handle")

        monkeypatch.setattr(pictures, "read", read)
        split = Folder(
            [tmp_path / f"{i}.png" for i in range(10_000)], range(10_000), tmp_path, Data(max_unreadable=0.01)
        )
        with pytest.warns(UserWarning, match="Stale file handle"), pytest.raises(LewelError, match="101 of the 10000"):
            split.load(5)
        assert len(tried) == 101

    def test_our_own_mistakes_are_no_unreadable_files(self, root, monkeypatch):
        monkeypatch.setattr(pictures, "_by_own_range", lambda *_, **__: 1 / 0)
        Image.new("I;16", (40, 32)).save(root / "train" / "ant" / "0.png")
        with pytest.raises(ZeroDivisionError):
            build(config(root), seed=0).bank[np.array([0])]

    def test_a_file_is_warned_of_and_counted_once(self, root, broken):
        bank = build(config(root), seed=0).bank
        with pytest.warns(UserWarning, match="takes its place") as caught:
            bank[np.array([3, 3, 3])]
        assert len(caught) == bank.split.replaced <= 2  # where number 2 is what was tried in its place

    def test_workers_share_the_count_and_name_a_file_once(self, root, broken, monkeypatch, capfd):
        """In two epochs, and in evaluations between them whose workers are new."""
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: os.write(2, f"{message}\n".encode()))
        sets = build(config(root), seed=0)
        loader = TrainLoader(sets.train, batch_size=2, workers=2)
        for epoch in range(2):
            list(loader.epoch(epoch))
            list(eval_batches(sets.bank, 2, workers=2))
        warned = capfd.readouterr().err.splitlines()
        named = [line.removeprefix("cannot read ").partition(": ")[0] for line in warned]
        assert sorted(named) == [str(broken), str(broken.with_name("3.png"))]
        assert sets.replaced == 2

    def test_the_count_is_of_all_splits(self, root):
        for path in ("train/ant/3.png", "test/bee/0.png"):
            (root / path).write_text("not an image")
        sets = build(config(root), seed=0)
        assert sets.replaced == 0
        with pytest.warns(UserWarning, match="takes its place"):
            sets.bank[np.array([3])], sets.train[BatchKey(0, np.array([3]))], sets.test[np.array([2])]
        assert sets.replaced == 2

    @pytest.mark.parametrize("workers", [0, 1])
    def test_nothing_readable(self, root, workers, monkeypatch):
        for path in (root / "train").glob("*/*.png"):
            path.write_text("not an image")
        monkeypatch.setattr(warnings, "showwarning", lambda *_: None)
        sets = build(config(root), seed=0)
        sentence = rf"^none of the 10 images in {root}/train can be read; repair or restore them$"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for batches in (eval_batches(sets.bank, 2, workers), TrainLoader(sets.train, 2, workers).epoch(0)):
                with pytest.raises(LewelError, match=sentence):
                    next(batches)


class TestKnownAgain:
    """What a checkpoint remembers of the training images."""

    def folder(self, root: Path) -> Folder:
        known = build(config(root), seed=0).known_by
        assert known is not None
        return known

    def test_the_same_ones_wherever_they_lie(self, root):
        before = self.folder(root).remembered()
        assert self.folder(root).difference(before) == ""
        assert self.folder(root.rename(root.with_name("moved"))).difference(before) == ""

    def test_those_in_the_folder_that_a_command_runs_in(self, root, monkeypatch):
        for i in range(3):
            write_image(root / "set" / "photos" / f"{i}.png", i)
        monkeypatch.chdir(root / "set")
        before = self.folder(Path()).remembered()
        monkeypatch.chdir(root)
        there = self.folder(Path("set"))
        assert there.difference(before) == ""
        earlier = hashlib.blake2b(b"0.png\x001.png\x002.png", digest_size=16).hexdigest()  # as a version before did
        assert there.difference(before | {"names": earlier}) == ""
        before = there.remembered()
        monkeypatch.chdir(root / "set")
        assert self.folder(Path()).difference(before) == ""

    def test_exchanged_and_renamed_ones(self, root):
        before = self.folder(root).remembered()
        write_image(root / "train" / "bee" / "1.png", 99)
        assert self.folder(root).difference(before) == (
            f"1 hold something else under the same name, the first {root}/train/bee/1.png"
        )
        (root / "train" / "bee" / "1.png").rename(root / "train" / "bee" / "one.png")
        assert "have other names" in self.folder(root).difference(before)

    def test_what_could_not_be_read_may_be_mended(self, root):
        path = root / "train" / "ant" / "0.png"
        whole = path.read_bytes()
        path.write_bytes(whole[:60])
        folder = self.folder(root)
        unmet = folder.remembered()
        with pytest.warns(UserWarning, match="cannot read"):
            folder.load(0)
        met = folder.remembered()
        path.write_bytes(whole)
        assert self.folder(root).difference(met) == ""
        assert str(path) in self.folder(root).difference(unmet)  # nobody knew that there was something to mend

    @pytest.mark.parametrize("form", ["relative", "absolute", "images and list moved", "from elsewhere"])
    def test_images_that_a_list_names_however_it_does(self, root, form, monkeypatch):
        def listed(place: Path, images: Path, absolute: bool = False) -> Folder:
            place.parent.mkdir(exist_ok=True)
            paths = (images / "train" / name / f"{i}.png" for name in ("ant", "bee") for i in range(5))
            lines = (str(path) if absolute else os.path.relpath(path, place.parent) for path in paths)
            place.write_text("\n".join(lines))
            return self.folder(place)

        before = listed(root / "list.txt", root).remembered()
        if form == "images and list moved":
            root = root.rename(root.with_name(f"{root.name}-moved"))
        if form == "from elsewhere":
            monkeypatch.chdir(root)
            assert listed(Path("lists/list.txt"), Path()).difference(before) == ""
        else:
            again = listed(root / "lists" / "list.txt", root, absolute=form == "absolute")
            assert again.difference(before) == ""
            (root / "train" / "ant" / "1.png").rename(root / "train" / "ant" / "10.png")
            (root / "lists" / "list.txt").write_text(
                (root / "lists" / "list.txt").read_text().replace("ant/1.", "ant/10.")
            )
            assert "have other names" in self.folder(root / "lists" / "list.txt").difference(before)

    def test_many_files_are_waited_for_together(self, root, monkeypatch):
        """Of a disk in the network; one after another they would never come together at the barrier."""
        together = threading.Barrier(2)
        monkeypatch.setattr(fingerprint, "_file", lambda _: bytes([together.wait(timeout=20) % 1]) * 8)
        assert len(self.folder(root).remembered()["files"]) == 10

    def test_of_a_large_set_some_files_are_looked_at(self, root, monkeypatch):
        monkeypatch.setattr(fingerprint, "FILES", 5)
        before = self.folder(root).remembered()
        assert before["files"].shape == (5, 8)
        write_image(root / "train" / "ant" / "1.png", 99)
        assert self.folder(root).difference(before) == ""
        write_image(root / "train" / "ant" / "2.png", 99)
        assert self.folder(root).difference(before).startswith("1 of 5 looked at hold something else")

    def test_sets_by_name_need_none(self):
        assert build(Data(image_size=32, embedded_train=16, embedded_test=4), seed=0).known_by is None


class TestWorkers:
    @pytest.mark.parametrize("in_memory", [False, True], ids=["files", "memory"])
    def test_any_number_of_workers_gives_the_same_bits(self, root, in_memory):
        train = build(config(root, in_memory), seed=4).train
        alone, shared = (list(TrainLoader(train, 3, workers).epoch(1)) for workers in (0, 2))
        assert len(alone) == len(shared) == 3
        for one, other in zip(alone, shared, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    @pytest.mark.parametrize("in_memory", [False, True], ids=["files", "memory"])
    def test_any_number_of_processes_gives_the_same_bits(self, root, in_memory):
        train = build(config(root, in_memory), seed=4).train
        alone = list(TrainLoader(train, 4).epoch(1))
        shares = [list(TrainLoader(train, 4, rank=rank, world=2).epoch(1)) for rank in range(2)]
        assert len(alone) == len(shares[0]) == len(shares[1]) == 2
        for one, *parts in zip(alone, *shares, strict=True):
            assert all(torch.equal(a, torch.cat(b)) for a, b in zip(one, zip(*parts, strict=True), strict=True))
