"""Files that list what is used of a folder: classes (ImageNet-100) and training images (the 1 % and 10 % lists)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lewel.data import Datasets, build, listing
from lewel.data.walk import PassedOver
from lewel.errors import LewelError
from lewel.recipe.schema import Data

CLASSES = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, four training and two test images each, named as in ImageNet; red is 40 times class plus image."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                file = f"{name}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{2 * label + i}.JPEG"
                Image.new("RGB", (20, 20), (40 * label + i, 0, 0)).save(tmp_path / split / name / file, format="png")
    return tmp_path


def lists(root: Path, **files: str) -> Datasets:
    """The sets of root under lists of these contents."""
    for setting, text in files.items():
        (root / f"{setting}.txt").write_text(text)
    named = {setting: str(root / f"{setting}.txt") for setting in files}
    return build(Data(name="folder", root=str(root), image_size=16, **named), seed=0)


def seen(images: Datasets, split: str = "bank") -> list[tuple[int, int]]:
    """(red, label) of every image of a split."""
    pixels, labels = getattr(images, split)[np.arange(len(getattr(images, split)))]
    red = ((pixels[:, 0, 8, 8] * 0.229 + 0.485) * 255).round().int()
    return list(zip(red.tolist(), labels.tolist(), strict=True))


class TestClasses:
    def test_restrict_both_splits_in_the_order_of_their_names(self, root):
        sets = lists(root, classes="# ImageNet-2\nn01484850   # great white shark\n\nn01440764\n")
        assert sets.num_classes == 2
        assert seen(sets) == [(red, label) for label, first in enumerate((0, 80)) for red in range(first, first + 4)]
        assert seen(sets, "test") == [(0, 0), (1, 0), (80, 1), (81, 1)]
        assert len(sets.train) == 8

    def test_a_name_may_hold_the_sign_of_a_comment(self, root):
        for split in ("train", "val"):
            (root / split / "n01440764").rename(root / split / "n01440#764")
        assert lists(root, classes="n01440#764  # tench").num_classes == 1

    def test_other_class_folders_may_be_empty_or_in_one_split_only(self, root):
        (root / "train" / "n09999999").mkdir()
        assert lists(root, classes="n01440764").num_classes == 1

    def test_a_listed_class_must_be_in_both_splits(self, root):
        (root / "val" / "n01443537").rename(root / "val" / "n09999999")
        with pytest.raises(LewelError, match=r"must hold the same class folders, but 1 are .* 'n01443537'"):
            lists(root, classes="n01440764\nn01443537")

    def test_unknown_ones_are_counted_and_the_first_answered_with_the_nearest(self, root):
        sentence = r"classes\.txt lists 2 classes that have no folder .*'n01443573'; did you mean n01443537\?"
        with pytest.raises(LewelError, match=sentence):
            lists(root, classes="n01440764\nn01443573\nshark")


class TestTrainList:
    @pytest.mark.parametrize(
        "line",
        [
            pytest.param("n01443537/n01443537_2.JPEG", id="path"),
            pytest.param("n01443537_2.JPEG", id="name"),
            pytest.param("  n01443537_2.JPEG  # koi", id="comment"),
            pytest.param("./n01443537/n01443537_2.JPEG\nn01443537_2.JPEG", id="twice"),
        ],
    )
    def test_one_image(self, line, root):
        sets = lists(root, train_list=line)
        assert seen(sets) == [(42, 1)]
        assert len(sets.train) == 1
        assert (len(sets.test), sets.num_classes) == (6, 3)

    def test_images_are_in_the_order_of_their_paths(self, root):
        sets = lists(root, train_list="n01484850_3.JPEG\nn01440764_2.JPEG\nn01440764/n01440764_0.JPEG\n")
        assert seen(sets) == [(0, 0), (2, 0), (83, 2)]

    def test_a_name_without_its_class_is_found_where_it_is_alone(self, root):
        (root / "train" / CLASSES[1] / "n01443537_1.JPEG").rename(root / "train" / CLASSES[1] / "red_fish.JPEG")
        assert seen(lists(root, train_list="red_fish.JPEG")) == [(41, 1)]

    def test_a_name_is_of_the_class_before_its_first_underscore(self, root):
        (root / "train" / CLASSES[0] / "n01443537_1.JPEG").write_bytes(b"a stray copy")
        assert seen(lists(root, train_list="n01443537_1.JPEG")) == [(41, 1)]

    def test_a_name_that_is_not_alone_is_refused(self, root):
        for name in CLASSES[:2]:
            (root / "train" / name / f"{name}_1.JPEG").rename(root / "train" / name / "1.JPEG")
        with pytest.raises(LewelError, match=r"lists 1\.JPEG, the name of 2 images, .* write its path below"):
            lists(root, train_list="1.JPEG")
        assert seen(lists(root, train_list=f"{CLASSES[1]}/1.JPEG")) == [(41, 1)]

    def test_missing_ones_are_counted_and_the_first_named(self, root):
        (root / "train" / CLASSES[0] / "notes.txt").write_text("no image")
        listed = "n01440764_0.JPEG\nn01440764/n01440764_7.JPEG\nn01440764_8.JPEG\nn01440764/notes.txt"
        with pytest.raises(
            LewelError, match=r"lists 3 images that are not in .*train, .* 'n01440764/n01440764_7\.JPEG'"
        ):
            lists(root, train_list=listed)


class TestForms:
    """Lists as data sets and pandas ship them, of images and of training images alike."""

    @pytest.fixture(params=["data.root", "data.train_list"])
    def listed(self, root, request):
        """What a file of these lines lists, as paths from train/, and what it tells of them."""
        folder, train = root / "lists", root / "train"
        folder.mkdir()
        (train / "p").mkdir()
        for name in ("#sun.png", "a b, c.png", "0.png", "1.png", "2.png"):
            Image.new("RGB", (8, 8)).save(train / "p" / name)
        (folder / "p").symlink_to(train / "p")

        def read(*lines: str) -> tuple[list[str], list[str]]:
            (folder / "list.txt").write_text("\n".join(lines))
            passed = PassedOver()
            if request.param == "data.root":
                found = listing.images(str(folder / "list.txt"), passed)
            else:
                among = [str(path) for path in train.glob("*/*") if path.is_file()]
                found = sorted(listing.chosen(str(folder / "list.txt"), among, [str(train)], passed))
            return [path.rpartition("/")[2] for path in found], passed.lines()

        return read

    @pytest.mark.parametrize(
        "line",
        ['"p/{}.png",{}', "{1} p/{0}.png", "{1},p/{0}.png", "{1}\tp/{0}.png\tx", "p/{}", "p/{} -{}", "p\\{}.png",
         '{1};"p\\{0}.png"', "{1},p/{0}", 'p/{}.png "{}"'],
    )  # fmt: skip
    def test_in_any_of_which_a_path_is(self, line, listed):
        assert listed(*(line.format(i, i + 7) for i in range(3)))[0] == ["0.png", "1.png", "2.png"]

    def test_a_head_is_told_of(self, listed):
        found, told = listed("id,path", "7,p/0.png", '8,"p/a b, c.png"')
        assert found == ["0.png", "a b, c.png"]
        assert "the first line of a list, which names its columns: 1, id,path" in told

    def test_a_first_line_that_is_no_head_is_not_there(self, listed):
        with pytest.raises(LewelError, match=r"'p/image\.png,7' \(there is no such file\)"):
            listed("p/image.png,7", "p/1.png,8")

    def test_a_line_is_a_comment_only_where_no_such_file_is(self, listed):
        assert listed("# p/2.png", "#7 p/2.png", "p/#sun.png 7", "p/1.png # p/2.png")[0] == ["#sun.png", "1.png"]
        assert listed("7 p/1.png", "8 p/0.png", "# p/2.png")[0] == ["0.png", "1.png"]
        with pytest.raises(LewelError, match="lists nothing"):
            listed("# p/2.png")

    @pytest.mark.parametrize("lines", [('{"path": "p/0.png"}', '{"path": "p/1.png"}'), ("[", '"p/0.png"]')])
    def test_json_is_refused_by_name(self, lines, listed):
        with pytest.raises(LewelError, match="is JSON, which is not read; expected one image a line"):
            listed(*lines)

    def test_why_a_line_names_none_is_true(self, listed, root):
        os.mkfifo(root / "train" / "p" / "pipe.png")
        (root / "train" / "p" / "circle.png").symlink_to("circle.png")
        with pytest.raises(
            LewelError,
            match=r"'p/pipe\.png 7' \(a pipe, .*'p/circle.png' \(Too many levels .*'p' \(a folder\) and 1 more",
        ):
            listed("p/1.png", "p/pipe.png 7", "p/circle.png", "p", "p q")

    def test_a_name_that_begins_like_a_comment(self, root):
        for name in ("#a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(root / name)
        (root / "list.txt").write_text("#a.png 7\nb.png 7\n#b.png")
        found = listing.images(str(root / "list.txt"), PassedOver())
        assert [os.path.basename(path) for path in found] == ["#a.png", "b.png"]

    def test_a_class_that_begins_like_a_comment(self, root):
        (root / "list.txt").write_text("#a\n#b\nc # d\ne # f")
        assert listing.classes(str(root / "list.txt"), ["#a", "c # d", "e"], "set") == {"#a", "c # d", "e"}

    def test_an_image_beside_those_that_are_used(self, root):
        (root / "list.txt").write_text("val/n01440764/ILSVRC2012_val_0.JPEG 0")
        with pytest.raises(LewelError, match="not below it"):
            listing.chosen(str(root / "list.txt"), [str(root / "train" / "x.png")], [str(root / "train")], PassedOver())

    def test_of_many_columns_only_the_first_lines_take_long(self, root, monkeypatch):
        images = [str(root / "train" / f"{i:06}.jpg") for i in range(1000)]
        (root / "list.txt").write_text("\n".join(f"{i:06}.jpg" + 40 * " -1" for i in range(1000)))
        monkeypatch.setattr(listing, "readings", None)
        assert len(listing.chosen(str(root / "list.txt"), images, [str(root / "train")], PassedOver())) == 1000


class TestBoth:
    def test_the_images_of_the_listed_classes(self, root):
        images = "n01484850_0.JPEG\nn01443537_1.JPEG\nn01484850_1.JPEG"
        sets = lists(root, classes="n01484850\nn01440764", train_list=images)
        assert seen(sets) == [(80, 1), (81, 1)]
        assert (len(sets.test), sets.num_classes) == (4, 2)

    def test_nothing_in_common(self, root):
        with pytest.raises(LewelError, match=r"train_list\.txt lists no image of the classes in use \(n01440764"):
            lists(root, classes="n01440764", train_list="n01484850_0.JPEG")


@pytest.mark.parametrize("setting", ["classes", "train_list"])
class TestFiles:
    def test_missing(self, setting, tmp_path, root):
        config = Data(name="folder", root=str(root), **{setting: str(tmp_path / "nowhere.txt")})
        with pytest.raises(LewelError, match=rf"cannot read data\.{setting}: .*No such file.*nowhere\.txt"):
            build(config, seed=0)

    def test_empty(self, setting, root):
        with pytest.raises(LewelError, match=rf"data\.{setting} .* lists nothing"):
            lists(root, **{setting: "# nothing yet\n\n"})


def test_lists_hold_in_memory_too(root):
    (root / "list.txt").write_text("n01443537_2.JPEG")
    config = Data(name="folder", root=str(root), image_size=16, storage="memory", train_list=str(root / "list.txt"))
    sets = build(config, seed=0)
    assert torch.equal(sets.train.images[0, 0], torch.full((16, 16), 42, dtype=torch.uint8))
    assert len(sets.train) == len(sets.bank) == 1
