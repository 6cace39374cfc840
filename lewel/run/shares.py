"""How the images of a step are shared out among processes and passes, and what a change of that means for a run."""

from __future__ import annotations

from typing import NamedTuple

from lewel.recipe import objectives
from lewel.recipe.schema import Train


class Shares(NamedTuple):
    """How the images of a step are shared out: the recipe, the number of processes, and whether there is batch norm."""

    run: Train
    processes: int
    normed: bool

    @property
    def passes(self) -> int:
        """Passes of a step in all processes together."""
        return self.processes * self.run.accumulate

    @property
    def met(self) -> dict[str, str]:
        """How many images each part sees together, as text: batch norm, and what the objective names beside it."""
        own = self.run.data.batch_size // self.passes
        norm = f"{own * self.processes if self.run.method.batch_norm == 'sync' else own} images"
        met = {"batch norm": norm} | objectives.find(self.run.method.loss).images_met(self.run, self.processes)
        return met if self.normed else {who: seen for who, seen in met.items() if not who.startswith("batch norm")}


def refusal(before: Shares, now: Shares) -> str:
    """Why a run may not go on with another accumulate, which changes what something sees of a pass; "" if it may."""
    if before.run.accumulate == now.run.accumulate or before.passes == now.passes or before.met == now.met:
        return ""
    changed = [f"{who} would see {met} instead of {before.met[who]}" for who, met in now.met.items()]
    kept = before.run.accumulate if before.passes % now.processes else before.passes // now.processes
    return (
        f"was trained in {before.processes} processes of {before.run.accumulate} passes, and this run has "
        f"{now.processes} of {now.run.accumulate}: {', '.join(changed)}. Give --accumulate {kept}, or start anew in "
        "another folder (--out); only the number of processes may change what is seen"
    )


def said(before: Shares, now: Shares) -> str:
    """A sentence about what another number of processes or passes changes or leaves; "" where both are the same."""
    if (before.run.accumulate, before.processes) == (now.run.accumulate, now.processes):
        return ""
    seen = [
        f"{who} sees {met} {'as before' if met == before.met[who] else f'instead of {before.met[who]}'}"
        for who, met in now.met.items()
    ]
    shares = (
        f"in {now.processes} processes of {now.run.accumulate} passes, "
        f"before in {before.processes} of {before.run.accumulate}"
    )
    return f"; {shares}: {', '.join(seen or ['nothing sees more than one image'])}"
