"""The section of docs/performance.md about GPUs: every table that their results allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

from benchmarks import recording
from benchmarks.documents import tables, training
from benchmarks.op.cost import MODES

# What is told of a GPU: the suite, a heading, and the table.
PARTS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    *((f"right-{name}", f"Right, {name}", partial(tables.right, backend=name)) for name in ("triton", "cuda")),
    *(
        (suite, f"Suite {suite}, {mode}", partial(tables.speed, suite=suite, mode=mode))
        for suite, mode in product(("paper", "first"), MODES)
    ),
    ("paper", "Suite paper, memory", partial(tables.memory, suite="paper")),
    *(
        (suite, f"Suite {suite}, {MODES[1]}", partial(tables.speed, suite=suite, mode=MODES[1]))
        for suite in ("sweep", "quick")
    ),
    ("overhead", "Overhead of a call", tables.overhead),
    ("prologue", "Batch norm and ReLU before the op", tables.prologue),
    ("step", "A training step", training.step),
    ("parts", "Where the time of a run goes", training.parts),
    ("loss", "The aligned InfoNCE", training.loss),
)


def gpus() -> str:
    """Every table that the results of each GPU allow; also of GPUs that roofline.py has no data sheet of."""
    sections = []
    for device in recording.devices():
        latest = {suite: records for suite, _, _ in PARTS if (records := recording.latest(device, suite))}
        about = [record for records in latest.values() for record in records]
        if not about or about[0]["instructions"] is not None:  # those of a processor
            continue
        sections.append(f"### {about[0]['device']}\n")
        sections += [f"#### {title}\n\n{table(device)}" for suite, title, table in PARTS if suite in latest]
    return "\n".join(sections) or "Nothing was run on any GPU yet.\n"
