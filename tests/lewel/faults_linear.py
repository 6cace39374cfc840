"""Linear evaluation: settings that cannot be, images that no rate can be chosen on, an evaluation that was stopped."""

from __future__ import annotations

from pathlib import Path

from fault import Ended, Fault, labelled, picture
from saved_runs import saved

from lewel.recipe.schema import EncoderSettings


def run(folder: Path) -> None:
    saved(folder / "run", EncoderSettings("tiny", "imagenet"))


def damaged(folder: Path) -> None:
    run(folder)
    (folder / "run" / "eval").mkdir()
    for path in (folder / "run" / "checkpoints").iterdir():
        (folder / "run" / "eval" / f"linear-a-{path.stem}.unfinished.pt").write_bytes(b"nothing")


def alone(folder: Path) -> None:
    """One training image in each class."""
    run(folder)
    labelled(folder / "set", train=1, test=2)
    picture(folder / "set" / "train" / "ant" / "000.png")


def nothing_written(ended: Ended) -> None:
    assert not (ended.folder / "run" / "eval").exists()


def still_there(ended: Ended) -> None:
    (path,) = (ended.folder / "run" / "eval").iterdir()
    assert path.read_bytes() == b"nothing"


FEW = "--rates 0.1 1 --seeds 2 --epochs 2 --held-out 0.3"
ROWS = (
    Fault("a-rate-of-zero", run, "eval linear run --rates 0.1 0", status=2, left=nothing_written,
          says=("rates must be positive numbers, learning rates per 256 images, got 0.0",)),
    Fault("all-held-out", run, "eval linear run --held-out 1", status=2, left=nothing_written,
          says=("held_out must be above 0 and at most 0.5",)),
    Fault("no-seeds", run, "eval linear run --seeds 0", status=2, left=nothing_written,
          says=("seeds must be a whole number of 1 or more, got 0",)),
    Fault("dry", run, "eval linear run --protocol b --dry-run", left=nothing_written,
          says=("48 to learn from and 16 to test by", "linear-b-step-")),
    Fault("a-damaged-state", damaged, "eval linear run --protocol a --resume auto", status=2, left=still_there,
          says=("is damaged, or no state of an evaluation", "remove it")),
    Fault("a-class-of-one-image", alone, f"eval linear run --data-root set {FEW}", status=2, left=nothing_written,
          says=("alone in its class", "give at least two of a class")),
    Fault("of-a-run", run, f"eval linear run {FEW}",
          says=("run: linear ", "cached features, not the protocol; expect .5 to 1 below it: mean of 2 seeds",
                "best epoch: ", "no published value", "wrote run/eval/linear-cached-step-")),
)  # fmt: skip
