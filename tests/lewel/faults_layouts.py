"""Where images are, and what of them has labels."""

from __future__ import annotations

from fault import TRAIN, Fault, labelled

ROWS = (
    Fault(
        name="labelled",
        arrange=lambda folder: labelled(folder / "set"),
        command=f"{TRAIN} --data.root set --out run",
        says=("kNN-200", "16 training images"),
    ),
)
