"""Fine-tuning on a share of the labels: lists that do not fit, classes without an image, states to go on from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from fault import Ended, Fault, labelled
from saved_runs import saved
from tiny_runs import TINY

from lewel.evaluation import state
from lewel.methods import encoders
from lewel.recipe.schema import EncoderSettings

SEMI = "eval semi --weights w.pth --config tiny.yaml --data-root set --out run --epochs 1"
STATE = Path("run", "eval", "semi-1-w.state")
SHA256 = hashlib.sha256(b"ant_000.png\nbee_003.png\n").hexdigest()


def images(folder: Path) -> None:
    """Eight training images of ant and bee each, named by their class and a number, and weights."""
    labelled(folder / "set")
    for name in ("ant", "bee"):
        for path in (folder / "set" / "train" / name).iterdir():
            path.rename(path.with_name(f"{name}_{path.name}"))
    torch.save(encoders.build(TINY.encoder).state_dict(), folder / "w.pth")


def listing(*lines: str) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        images(folder)
        (folder / "list.txt").write_text("".join(f"{line}\n" for line in lines))

    return arrange


def embedded(folder: Path) -> None:
    saved(folder / "run", EncoderSettings("tiny", "small"))
    (folder / "list.txt").write_text("ant_000.png\n")


def stopped(folder: Path) -> None:
    images(folder)
    state.save(folder / STATE, {"settings": {"labels": 1, "epochs": 50}, "epoch": 3})


def damaged(folder: Path) -> None:
    stopped(folder)
    (folder / STATE).write_bytes((folder / STATE).read_bytes()[:200])


def nothing_is_written(ended: Ended) -> None:
    assert not (ended.folder / "run" / "eval").exists()


def the_state_stays(ended: Ended) -> None:
    assert [path.name for path in (ended.folder / "run" / "eval").iterdir()] == [STATE.name]
    assert (ended.folder / STATE).stat().st_size > 0


def _refused(name: str, arrange: Callable[[Path], None], command: str, *says: str, **more: object) -> Fault:
    settings = {"status": 2, "left": nothing_is_written, **more}
    return Fault(name, arrange, command, says, ("Traceback", "top-1"), **settings)  # type: ignore[arg-type]


ROWS = (
    _refused("list-of-absent-names", listing("ant_000.png", "bee_003.png", "n01440764_10026.JPEG"),
             f"{SEMI} --list list.txt", "--list list.txt lists 1 images that are not in set/train",
             "'n01440764_10026.JPEG' (there is no such file)"),
    _refused("list-that-is-empty", listing(), f"{SEMI} --list list.txt", "--list list.txt lists nothing"),
    _refused("list-that-is-not-there", listing(), f"{SEMI} --list lists.txt", "cannot read --list", "'lists.txt'"),
    _refused("list-for-the-embedded-set", embedded, "eval semi run --list list.txt",
             "--list list.txt names files, and the training images are in none; leave it out, and 1 % of every class"),
    _refused("list-of-the-other-percentage", listing("bee_003.png", "ant_000.png"), f"{SEMI} --list list.txt",
             "list.txt is SimCLR's list of 10 %, and --labels is 1; give --labels 10, or the list of 1 %",
             patches={"lewel.evaluation.lists.SIMCLR": {1: "0" * 16, 10: SHA256[:16]}}),
    _refused("list-without-a-class", listing("bee_003.png", "bee_004.png"), f"{SEMI} --list list.txt",
             "1 of 2 classes have no image among the 2 labelled ones: class 0 (such as set/train/ant/ant_000.png)"),
    _refused("batch-of-one-image", images, f"{SEMI} --batch-size 1", "batch normalisation needs 2 in each"),
    _refused("labels-of-5-percent", images, f"{SEMI} --labels 5", "--labels"),
    _refused("epochs-0", images, f"{SEMI} --epochs 0", "epochs must be a whole number of 1 or more, got 0"),
    _refused("stopped-and-not-resumed", stopped, SEMI, "holds an evaluation that was stopped after epoch 3; continue "
             f"it by --resume auto, or remove {STATE}", left=the_state_stays),
    _refused("stopped-with-other-settings", stopped, f"{SEMI} --resume auto", "with other settings (epochs: 50 -> 1;",
             "undo the change", left=the_state_stays),
    _refused("state-that-is-damaged", damaged, f"{SEMI} --resume auto", "is damaged", f"{STATE}",
             "remove it, and the evaluation begins anew", left=the_state_stays),
    Fault("list-of-ours", listing("bee_003.png", "set/train/ant/ant_000.png"), f"{SEMI} --list list.txt --labels 10",
          says=("10 % of the labels: 2 of 16 training images, SimCLR's 10 % list", "wrote run/eval/semi-10-w.json"),
          patches={"lewel.evaluation.lists.SIMCLR": {10: SHA256[:16]}}),
    Fault("dry-run", listing("bee_003.png", "ant_001.png"), f"{SEMI} --list list.txt --dry-run",
          says=("1 % of the labels: 2 of 16 training images, a list of 2 images", "run/eval/semi-1-w.json"),
          left=nothing_is_written),
)  # fmt: skip
