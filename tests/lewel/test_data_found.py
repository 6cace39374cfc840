"""Which images are found, in which order, with which labels, and what is said of it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fault import labelled, picture, pictures
from PIL import Image

from lewel.data import build, eval_batches
from lewel.data.division import splits_among
from lewel.data.found import look
from lewel.data.walk import EXTENSIONS, NOT_READ, PassedOver, images_below, shown
from lewel.errors import LewelError
from lewel.recipe.schema import Data


def sets_of(*roots: Path, **settings):
    return build(Data(name="folder", root=tuple(map(str, roots)), image_size=16, **settings), seed=0)


def paths_of(split) -> list[str]:
    return [os.fsdecode(path) for path in split.paths]


def below(folder: Path) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in images_below(str(folder), PassedOver())]


def passed(folder: Path) -> dict[str, int]:
    told = PassedOver()
    images_below(str(folder), told)
    return dict(told.counts)


def shut(folder: Path, monkeypatch) -> None:
    """Nobody may list folder from here on."""
    scandir = os.scandir

    def refuse(asked):
        if str(asked) == str(folder):
            raise PermissionError(13, "Permission denied")
        return scandir(asked)

    monkeypatch.setattr(os, "scandir", refuse)


class TestWalk:
    def test_order_is_that_of_sorted_paths_whatever_the_system_says(self, tmp_path, monkeypatch):
        names = ("a/1.png", "a-b/1.png", "a.png", "a/b/1.png", "a/b.png", "B/1.png", "a b/1.png", "z/10.png", "z/9.png")
        for name in names:
            picture(tmp_path / name)
        expected = [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.png"))]
        assert below(tmp_path) == expected
        scandir = os.scandir

        class Backwards:
            def __init__(self, folder):
                with scandir(folder) as entries:
                    self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

            def __enter__(self) -> Sequence[os.DirEntry[str]]:
                return self.entries

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(os, "scandir", Backwards)
        assert below(tmp_path) == expected

    def test_a_folder_has_its_own_path_where_a_link_comes_first(self, tmp_path):
        picture(tmp_path / "set" / "b" / "0.png")
        (tmp_path / "set" / "a").symlink_to("b")
        assert below(tmp_path / "set") == ["b/0.png"]
        assert passed(tmp_path / "set") == {"folders that are read under another path already": 1}

    def test_a_folder_that_two_links_lead_to_is_read_once(self, tmp_path):
        picture(tmp_path / "elsewhere" / "deep" / "0.png")
        for name, to in (("b", "elsewhere"), ("a", "elsewhere/deep")):
            (tmp_path / "set").mkdir(exist_ok=True)
            (tmp_path / "set" / name).symlink_to(tmp_path / to)
        assert below(tmp_path / "set") == ["a/0.png"]

    def test_links_that_lead_back_from_outside_add_nothing(self, tmp_path):
        picture(tmp_path / "root" / "train" / "ant" / "0.png")
        picture(tmp_path / "root" / "test" / "ant" / "0.png")
        picture(tmp_path / "outside" / "0.png")
        (tmp_path / "root" / "train" / "ant" / "out").symlink_to(tmp_path / "outside")
        (tmp_path / "outside" / "back").symlink_to(tmp_path / "root")
        assert below(tmp_path / "root" / "train") == ["ant/0.png", "ant/out/0.png"]
        assert passed(tmp_path / "root" / "train") == {"links that lead back to a folder they lie in": 1}

    def test_a_folder_that_cannot_be_listed_is_told_of(self, tmp_path, monkeypatch):
        for name in ("open", "shut"):
            picture(tmp_path / name / "0.png")
        shut(tmp_path / "shut", monkeypatch)
        assert below(tmp_path) == ["open/0.png"]
        assert passed(tmp_path) == {"folders that cannot be listed (Permission denied)": 1}

    def test_names_that_are_no_text_are_read_and_can_be_printed(self, tmp_path):
        name = os.fsdecode(b"caf\xe9")
        picture(tmp_path / name / "0.png")
        (tmp_path / name / "line\nbreak.txt").write_text("")
        sets = sets_of(tmp_path)
        assert len(sets.train) == 1
        for line in sets.found.lines():
            line.encode()
            assert "\n" not in line
        assert shown(name) == "caf?"

    def test_no_file_is_looked_at(self, tmp_path, monkeypatch):
        pictures(tmp_path / "a", 30)
        calls = []
        stat = os.stat
        monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or stat(*a, **k))
        assert len(below(tmp_path)) == 30
        assert len(calls) <= 4

    @pytest.mark.parametrize("ending", EXTENSIONS)
    def test_every_ending_can_be_read(self, ending, tmp_path):
        Image.new("RGB", (20, 20)).save(tmp_path / f"0{ending.upper()}")
        assert len(sets_of(tmp_path).bank[np.arange(1)][0]) == 1


class TestLabels:
    def test_unlabelled_ones_come_last_and_into_no_bank(self, tmp_path):
        labelled(tmp_path, train=3)
        pictures(tmp_path / "train", 5)
        sets = sets_of(tmp_path)
        assert sets.train.split.labels.tolist() == [0] * 3 + [1] * 3 + [-1] * 5
        [(_, labels)] = eval_batches(sets.bank, 20)
        assert labels.tolist() == [0] * 3 + [1] * 3

    @pytest.mark.parametrize("storage", ["files", "memory"])
    @pytest.mark.filterwarnings("ignore:cannot read")
    def test_no_unlabelled_one_takes_the_place_of_one_with_a_label(self, storage, tmp_path):
        labelled(tmp_path, train=4)
        pictures(tmp_path / "train", 40)
        (tmp_path / "train" / "bee" / "003.png").write_bytes(b"")
        sets = sets_of(tmp_path, storage=storage)
        labels = torch.cat([labels for _, labels in eval_batches(sets.bank, 20)])
        assert len(labels) == len(sets.bank)
        assert labels.min() >= 0

    def test_of_two_labelled_places_agree(self, tmp_path):
        for name in ("one", "two"):
            labelled(tmp_path / name, train=3)
        sets = sets_of(tmp_path / "one", tmp_path / "two")
        assert (len(sets.train), len(sets.bank), len(sets.test), sets.num_classes) == (12, 12, 8, 2)
        assert sets.train.split.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3

    def test_of_two_places_with_other_classes_these_are_joined_by_name(self, tmp_path):
        for name in ("one", "two"):
            labelled(tmp_path / name, train=3)
        for split in ("train", "test"):
            (tmp_path / "two" / split / "bee").rename(tmp_path / "two" / split / "cat")
        sets = sets_of(tmp_path / "one", tmp_path / "two")
        assert (len(sets.bank), len(sets.test), sets.num_classes) == (12, 8, 3)
        assert sets.train.split.labels.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [2] * 3
        assert sets.test.split.labels.tolist() == [0, 0, 1, 1, 0, 0, 2, 2]
        picture(tmp_path / "two" / "test" / "bee" / "0.png")
        with pytest.raises(LewelError, match=r"must hold the same class folders, .* 'bee' in .*two/test; --data.eval"):
            sets_of(tmp_path / "one", tmp_path / "two")

    def test_classes_of_training_images_are_not_compared_where_others_are_named(self, tmp_path):
        labelled(tmp_path / "set", train=5)
        before = paths_of(sets_of(tmp_path / "set").train.split)
        (tmp_path / "set" / "test" / "bee").rename(tmp_path / "set" / "test" / "cat")
        sets = sets_of(tmp_path / "set", eval=str(tmp_path / "set" / "train"))
        assert (len(sets.bank), len(sets.test), sets.num_classes) == (8, 2, 2)
        assert paths_of(sets.train.split) == before

    def test_the_test_folder_with_most_of_the_classes_is_used(self, tmp_path):
        labelled(tmp_path)
        (tmp_path / "test").rename(tmp_path / "val")
        picture(tmp_path / "test" / "ant" / "0.png")
        assert len(sets_of(tmp_path).test) == 4

    @pytest.mark.parametrize("name", ["Ant", "cat"])
    def test_a_test_folder_that_does_not_fit_is_told_of(self, name, tmp_path):
        labelled(tmp_path)
        picture(tmp_path / "val" / name / "0.png")
        (tmp_path / "test").rename(tmp_path / "apart")
        said = "\n".join(sets_of(tmp_path).found.lines())
        assert "none of the class folders of train/" in said
        assert ("(upper and lower case differ)" in said) == (name == "Ant")

    def test_a_test_folder_that_cannot_be_listed_is_told_of(self, tmp_path, monkeypatch):
        labelled(tmp_path)
        shut(tmp_path / "test", monkeypatch)
        assert f"{tmp_path}/test is one of the folders that cannot be listed (Perm" in sets_of(tmp_path).found.labels

        said = sets_of(tmp_path / "train", eval=str(tmp_path)).found.labels
        assert "every 5th of a class there); test/ in" in said

    def test_class_folders_of_labels_that_cannot_be_listed_are_told_of(self, tmp_path, monkeypatch):
        labelled(tmp_path / "set")
        pictures(tmp_path / "flat", 4)
        for name in ("ant", "bee"):
            shut(tmp_path / "set" / "train" / name, monkeypatch)
        with pytest.raises(LewelError, match=r"it holds ant/, bee/; .*ant is one of the folders that cannot be listed"):
            sets_of(tmp_path / "flat", eval=str(tmp_path / "set"))

    def test_no_test_folder_is_missed_where_none_could_be_seen(self, tmp_path, monkeypatch):
        labelled(tmp_path)
        shut(tmp_path, monkeypatch)
        monkeypatch.setattr(os, "access", lambda path, _: path != str(tmp_path))
        assert f"kNN is off: {tmp_path} cannot be listed. " in sets_of(tmp_path).found.labels

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_a_class_folder_that_cannot_be_listed_is_told_of(self, split, tmp_path, monkeypatch):
        labelled(tmp_path)
        shut(tmp_path / split / "bee", monkeypatch)
        with pytest.raises(LewelError, match=rf"come from .* {tmp_path}/{split}/bee: .* cannot be listed \(Permission"):
            sets_of(tmp_path)

    @pytest.mark.parametrize("also", [True, False])
    def test_a_name_in_another_unicode_form_is_told_of(self, also, tmp_path):
        for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
            picture(tmp_path / split / name / "0.png")
            for other in ("ant",) * also:
                picture(tmp_path / split / other / "0.png")
        said = "(the same letters in another Unicode form)"
        if also:
            with pytest.raises(LewelError, match=re.escape(said)):
                sets_of(tmp_path)
        else:
            assert said in sets_of(tmp_path).found.labels

    def test_a_link_to_the_training_images_is_no_test_split(self, tmp_path):
        pictures(tmp_path / "train" / "ant", 3)
        (tmp_path / "val").symlink_to("train")
        sets = sets_of(tmp_path)
        assert sets.num_classes == 0
        assert f"val/ in {tmp_path} is train/ itself, by a link" in sets.found.labels

    def test_an_image_below_two_places_counts_once_and_keeps_its_label(self, tmp_path):
        labelled(tmp_path / "set", train=3)
        first = sets_of(tmp_path / "set", tmp_path)
        assert first.train.split.labels.tolist() == [0] * 3 + [1] * 3 + [-1] * 4  # the test images
        other = sets_of(tmp_path, tmp_path / "set")
        assert paths_of(other.train.split) == paths_of(first.train.split)

    def test_a_class_without_images_in_either_split_is_none(self, tmp_path):
        labelled(tmp_path)
        for split in ("train", "test"):
            (tmp_path / split / "cat").mkdir()
        sets = sets_of(tmp_path)
        assert sets.num_classes == 2
        assert "folders without images: 2" in "\n".join(sets.found.lines())

    @pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
    def test_the_first_test_folder_that_fits_is_used(self, name, tmp_path):
        labelled(tmp_path)
        os.renames(tmp_path / "test", tmp_path / name)
        for other in ("test", "val", "valid", "validation"):
            if not (tmp_path / other).exists():
                pictures(tmp_path / other / "images", 1)
        assert sets_of(tmp_path).test.split.split == tmp_path / name

    @pytest.mark.parametrize(("train", "test"), [("training", "valid"), ("Training", "Test"), ("Train", "testing")])
    def test_the_folders_may_be_spelt_otherwise(self, train, test, tmp_path):
        labelled(tmp_path)
        for ours, theirs in (("train", train), ("test", test)):
            os.renames(tmp_path / ours, tmp_path / theirs)
        sets = sets_of(tmp_path)
        assert (len(sets.train), sets.train.split.split) == (16, tmp_path / train)
        assert sets.test.split.split == tmp_path / test
        assert not sets.found.beside

    def test_classes_may_begin_like_splits(self, tmp_path):
        for name in ("test tube", "training shoes", "val-d'or", "cat"):
            pictures(tmp_path / name, 5)
        sets = sets_of(tmp_path, eval=str(tmp_path))
        assert (len(sets.train), sets.num_classes, sets.found.beside) == (20, 4, [])

    def test_flat_folders_beside_train_are_left_aside(self, tmp_path):
        for name in ("train", "masks", "depth"):
            pictures(tmp_path / name, 5)
        sets = sets_of(tmp_path)
        assert (len(sets.train), sets.train.split.split) == (5, tmp_path / "train")

    def test_a_class_of_that_name_is_one_where_no_test_images_lie_beside_it(self, tmp_path):
        for name in ("swimming", "training"):
            pictures(tmp_path / name, 5)
        assert len(sets_of(tmp_path).train) == 10

    @pytest.mark.parametrize(
        ("names", "splits"),
        [
            ("train2017 val2017 unlabeled2017", "train2017 val2017"),
            ("train.X1 val.X", "train.X1 val.X"),
            ("Training_Set test-set", "Training_Set test-set"),
            ("train_images validation_images trainer valley", "train_images validation_images"),
            ("test tube beaker", "test"),
            ("test_tube test_drive beaker", ""),
            ("train_track train_station", ""),
        ],
    )
    def test_names_of_splits_are_no_classes(self, names, splits):
        assert splits_among(set(names.split())) == set(splits.split())

    def test_every_fifth_of_a_class_is_a_test_image(self, tmp_path):
        pictures(tmp_path / "flat", 4)
        for name, count in (("ant", 11), ("bee", 4), ("cat", 5)):
            pictures(tmp_path / "known" / name, count)
        sets = sets_of(tmp_path / "flat", eval=str(tmp_path / "known"))
        assert [path.removeprefix(f"{tmp_path}/known/") for path in paths_of(sets.test.split)] == [
            "ant/004.png", "ant/009.png", "cat/004.png",
        ]  # fmt: skip
        assert sets.test.split.labels.tolist() == [0, 0, 2]
        assert (len(sets.train), len(sets.bank), sets.num_classes) == (4, 17, 3)

    def test_eval_comes_before_the_labels_of_root(self, tmp_path):
        labelled(tmp_path / "set")
        for name in ("x", "y", "z"):
            pictures(tmp_path / "known" / name, 5)
        sets = sets_of(tmp_path / "set", eval=str(tmp_path / "known"))
        assert (len(sets.train), len(sets.bank), len(sets.test), sets.num_classes) == (16, 12, 3, 3)

    @pytest.mark.parametrize(("count", "sentence"), [(4, "no class has 5 images"), (0, "has no labels")])
    def test_too_few_for_a_test_image_are_refused(self, count, sentence, tmp_path):
        pictures(tmp_path / "flat", 4)
        (tmp_path / "known").mkdir()
        pictures(tmp_path / "known" / "ant", count)
        with pytest.raises(LewelError, match=sentence):
            sets_of(tmp_path / "flat", eval=str(tmp_path / "known"))


class TestSaid:
    def test_images_beside_a_folder(self, tmp_path):
        pictures(tmp_path, 6)
        pictures(tmp_path / "u", 10)
        assert "; 10 in one folder, u, 6 beside it;" in sets_of(tmp_path).found.lines()[0]

    def test_links_to_files_are_images_of_their_own(self, tmp_path):
        pictures(tmp_path, 3)
        for i in range(2):
            (tmp_path / f"link{i}.png").symlink_to(f"00{i}.png")
        sets = sets_of(tmp_path)
        assert len(sets.train) == 5
        assert "  links to files among the images, each an image of its own: 2" in sets.found.lines()

    def test_what_is_passed_over_in_two_places_counts_once(self, tmp_path):
        labelled(tmp_path)
        for name in ("a.txt", "b.txt", ".hidden"):
            (tmp_path / "train" / name).write_text("")
        passed = sets_of(tmp_path, tmp_path / "train", tmp_path).found.passed
        assert passed.counts["hidden files and folders"] == 1
        assert (passed.counts[NOT_READ], passed.kinds) == (2, {".txt": 2})

    def test_a_set_below_is_named(self, tmp_path):
        labelled(tmp_path / "data")
        said = "\n".join(sets_of(tmp_path).found.beside)
        assert f"data/ holds train/ and test/ or val/, to use these: --data.root {tmp_path}/data" in said

    def test_a_bank_of_one_class(self, tmp_path):
        labelled(tmp_path / "set")
        (tmp_path / "list").write_text("ant/000.png\nant/001.png")
        found = sets_of(tmp_path / "set", train_list=str(tmp_path / "list")).found
        assert found.one_class
        assert "kNN: 2 images of one class in the bank" in found.labels


class TestLists:
    @pytest.mark.parametrize("name", ["a b.png", "a, b.png", "a #1.png", "äöü.png", "no suffix"])
    def test_a_path_may_hold_whatever_a_label_is_told_by(self, name, tmp_path):
        pictures(tmp_path / "deep", 2)
        (tmp_path / "deep" / "000.png").rename(tmp_path / "deep" / name)
        for line in (f"deep/{name}", f"deep/{name} 3", f"deep/{name},3", f"deep/{name}\t3\tmore"):
            (tmp_path / "list").write_text(line)
            assert paths_of(sets_of(tmp_path / "list").train.split) == [str(tmp_path / "deep" / name)]

    def test_of_utf_16(self, tmp_path):
        pictures(tmp_path, 2)
        (tmp_path / "list").write_text("000.png\n001.png", encoding="utf-16")
        assert len(sets_of(tmp_path / "list").train) == 2

    @pytest.mark.parametrize("behind", [" 001.png", "\t7\t001.png", ",gone.jpg", " 001.png 3"])
    def test_a_second_image_in_a_line_is_refused_by_name(self, behind, tmp_path):
        pictures(tmp_path / "set", 2)
        (tmp_path / "set" / "list").write_text(f"000.png{behind}")
        for settings in ({"root": tmp_path / "set" / "list"}, {"root": tmp_path / "set", "train_list": "list"}):
            named = {key: str(tmp_path / "set" / value) for key, value in settings.items()}
            with pytest.raises(LewelError, match=r"0{3}\.png.* \((001|gone)\.(png|jpg) follows in the same line\)"):
                build(Data(name="folder", image_size=16, **named), seed=0)

    @pytest.mark.parametrize("setting", ["root", "train_list", "classes"])
    def test_a_long_line_is_quoted_in_part(self, setting, tmp_path):
        labelled(tmp_path)
        (tmp_path / "list").write_text(str([f"images/{i}.png" for i in range(20_000)]))
        named = {"root": str(tmp_path), setting: str(tmp_path / "list")}
        with pytest.raises(LewelError, match=r"images/1\.png") as error:
            build(Data(name="folder", image_size=16, **named), seed=0)
        assert len(str(error.value)) < 1000

    def test_beside_a_folder(self, tmp_path):
        pictures(tmp_path / "set", 4)
        pictures(tmp_path / "more", 3)
        (tmp_path / "list").write_text("set/000.png\nmore/000.png\nmore/001.png")
        assert len(sets_of(tmp_path / "list", tmp_path / "set").train) == 6


class TestLook:
    def test_sizes_and_what_is_made_of_images(self, tmp_path):
        small, large = Image.new("RGB", (8, 8)), Image.new("RGBA", (30, 20))
        small.save(tmp_path / "0.png")
        large.save(tmp_path / "1.png")
        exif = small.getexif()
        exif[0x0112] = 3
        small.save(tmp_path / "2.jpg", exif=exif)
        small.save(tmp_path / "3.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), (1, 2, 3))])
        (tmp_path / "4.png").write_bytes(b"none")
        sizes, notes = look([str(path) for path in sorted(tmp_path.iterdir())], turned=True)
        assert sizes == "8x8 to 30x20 pixels"
        assert notes == [
            "of 5 that were looked at, 1 are turned as EXIF says",
            "of 5 that were looked at, 1 have transparency, which is dropped",
            "of 5 that were looked at, 1 hold several pictures, of which the first is used",
            "of 5 that were looked at, 1 cannot be read",
        ]

    def test_a_tiff_is_turned_by_its_decoder(self, tmp_path):
        Image.new("RGB", (8, 4)).save(tmp_path / "0.tif", tiffinfo={0x0112: 6})
        assert look([str(tmp_path / "0.tif")], turned=False)[1] == []

    def test_only_a_few_are_opened(self, tmp_path):
        pictures(tmp_path, 200)
        sets = sets_of(tmp_path)
        assert len(sets.found.sample) == len(set(sets.found.sample)) == 64
        assert "40x32 pixels in 64 looked at" in sets.found.lines()[0]
