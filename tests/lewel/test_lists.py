"""Which images keep their labels: lists by name, SimCLR's by their hash, and a share of every class without one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fault
import numpy as np
import pytest

from lewel.data import build
from lewel.errors import LewelError
from lewel.evaluation import lists
from lewel.recipe.schema import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight training images of ant and bee each, named as ImageNet's are: with their class before a "_"."""
    fault.labelled(tmp_path)
    for name in ("ant", "bee"):
        for path in (tmp_path / "train" / name).iterdir():
            path.rename(path.with_name(f"{name}_{path.name}"))
    return tmp_path


def sets_of(root: Path, storage: str = "files", **settings: str):
    return build(Data("folder", str(root), image_size=8, storage=storage, **settings), 0)


def written(folder: Path, *lines: str) -> str:
    path = folder / "list.txt"
    path.write_text("\n".join(lines))
    return str(path)


def test_the_hash_is_that_of_the_sorted_names_each_with_a_newline():
    by_hand = hashlib.sha256(b"B_1.JPEG\na_1.JPEG\na_10.JPEG\na_2.JPEG\n\xc3\xa9.JPEG\n").hexdigest()
    assert lists.sha256_of(["é.JPEG", "a_2.JPEG", "B_1.JPEG", "a_10.JPEG", "a_1.JPEG"]) == by_hand
    assert lists.sha256_of(["e/é.JPEG", "a/a_2.JPEG", "b/B_1.JPEG", "a_10.JPEG", "a_1.JPEG"]) == by_hand
    assert lists.sha256_of(["a_1.JPEG"]) != lists.sha256_of(["a_1.JPEG", "a_1.JPEG"])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old-mac"])
@pytest.mark.parametrize("last", [True, False], ids=["ended", "not-ended"])
def test_line_ends_and_empty_lines_change_no_hash(end, last, root):
    (root / "list.txt").write_bytes(end.join(["bee_000.png", "", "ant_003.png"]).encode() + end.encode() * last)
    share = lists.listed(str(root / "list.txt"), 1, sets_of(root))
    assert share.sha256 == hashlib.sha256(b"ant_003.png\nbee_000.png\n").hexdigest()
    assert (share.chosen.tolist(), share.said, share.simclr) == ([3, 8], "a list of 2 images", False)


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_a_list_of_simclr_s_is_recognised(root, storage, monkeypatch):
    """In whatever order, by bare names or paths, with labels behind them, and wherever the images lie."""
    sha256 = hashlib.sha256(b"ant_003.png\nbee_000.png\n").hexdigest()
    monkeypatch.setattr(lists, "SIMCLR", {1: "0" * 16, 10: sha256[:16]})
    bare, paths = ("bee_000.png", "ant_003.png"), ("train/ant/ant_003.png", str(root / "train/bee/bee_000.png"))
    labelled = ("ant/ant_003.png 0", "bee/bee_000.png 1", "ant/ant_003.png 0")
    for names in (bare, paths, labelled, ("ant_003.png,0", "bee_000.png,1"), ("# both", *bare)):
        share = lists.listed(written(root, *names), 10, sets_of(root, storage))
        assert (share.chosen.tolist(), share.sha256, share.simclr) == ([3, 8], sha256, True)
        assert share.said.split(" (passed over")[0] == "SimCLR's 10 % list"
    with pytest.raises(LewelError, match="is SimCLR's list of 10 %, and --labels is 1; give --labels 10, or the list"):
        lists.listed(written(root, "bee_000.png", "ant_003.png"), 1, sets_of(root))


def test_the_known_hashes_are_those_of_the_two_lists():
    assert lists.SIMCLR == {1: "c03b85c3942f663c", 10: "d9bc1445836f11cb"}


@pytest.mark.parametrize("storage", ["files", "memory"])
def test_positions_are_those_of_the_bank(root, storage, tmp_path):
    """The images of data.eval, or those that have labels among others that have none."""
    other = root / "other"
    fault.pictures(other / "flat", 3)
    sets = sets_of(other, storage, eval=str(root))
    share = lists.listed(written(root, "bee_001.png"), 1, sets)
    assert share.chosen.tolist() == [9]
    assert sets.bank[share.chosen][1].tolist() == [1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        pytest.param(
            ["ant_000.png", "cat.png"], r"--list .* lists 1 images that are not in .*, the first 'cat.png'", id="absent"
        ),
        pytest.param(["# nothing", ""], "--list .* lists nothing; expected one name a line", id="empty"),
    ],
)
def test_a_list_that_cannot_be_used_is_a_sentence(root, names, said):
    with pytest.raises(LewelError, match=said):
        lists.listed(written(root, *names), 1, sets_of(root))


def test_images_in_no_files_have_no_list(tmp_path):
    sets = build(Data(image_size=32, embedded_train=20, embedded_test=10), 0)
    with pytest.raises(LewelError, match=r"names files, and the training images are in none; leave it out, and 1 %"):
        lists.listed(written(tmp_path, "a.png"), 1, sets)


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [200, 100, 30, 3]))


def test_a_share_is_of_every_class_and_one_at_least():
    for percent, counts, said in ((1, [2, 1, 1, 1], "1 to 2"), (10, [20, 10, 3, 1], "1 to 20")):
        share = lists.balanced(LABELS, percent, 0)
        assert np.bincount(LABELS[share.chosen]).tolist() == counts
        assert len(set(share.chosen.tolist())) == len(share.chosen)
        assert (np.diff(share.chosen) > 0).all()
        assert share.said == f"{said} of every class, drawn by seed 0"
    assert lists.balanced(np.arange(3), 1, 0).said.startswith("1 of every class")


def test_one_percent_is_among_ten_and_the_seed_fixes_both():
    draws = {seed: [lists.balanced(LABELS, percent, seed).chosen.tolist() for percent in (1, 10)] for seed in range(4)}
    for seed, (one, ten) in draws.items():
        assert set(one) < set(ten)
        assert lists.balanced(LABELS, 10, seed).chosen.tolist() == ten
    assert len({tuple(ten) for _, ten in draws.values()}) == 4


def test_a_class_without_a_chosen_image_is_named(root):
    sets = sets_of(root)
    labels = np.repeat([0, 1], 8)
    lists.check_classes(lists.balanced(labels, 1, 0), labels, sets)
    with pytest.raises(LewelError, match=r"1 of 2 classes have no image among the 1 labelled ones: class 0 \(such as "
                                         r".*ant_000.png\); no classifier"):  # fmt: skip
        lists.check_classes(lists.listed(written(root, "bee_001.png"), 1, sets), labels, sets)
