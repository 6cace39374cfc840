"""A checkpoint put into a session: what a run that is continued may change, and what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lewel import distributed
from lewel.methods.probe import Probe
from lewel.recipe import plain
from lewel.recipe.free import FREE_TO_CHANGE
from lewel.recipe.schema import Train
from lewel.run import checkpoint, shares
from lewel.run.checkpoint import CheckpointError
from lewel.run.session import Session
from lewel.run.shares import Shares
from lewel.run.step import rates

LISTS = ("data.classes", "data.train_list")  # free where the images that they choose are known again

# What this version reads otherwise than the one before, which remembered nothing of the images but their number.
COUNTED_SINCE = (
    ". An earlier version wrote it, which did not count images beside class folders, nor .jfif, .jpe, .pgm, .pbm and "
    ".pnm: those that are more may be such, and then may be moved away"
)
OTHER_PICTURES = (
    "; an earlier version wrote it, which showed pictures of 16 bits and floats otherwise, and put others in the place "
    "of files that cannot be read: where the images are such, the steps from here on are not those it would have taken"
)


def restore(path: Path, session: Session) -> str:
    """Puts a checkpoint into a session of the same recipe, and takes later ones out of its folder.

    Returns what the log should add about it, or "". Raises CheckpointError for another recipe; for another number of
    training images, which would change order and schedule; for other images; and for an accumulate that
    lewel.run.shares refuses. Another number of processes alone only changes the batches of BN and of the aligned
    InfoNCE.
    """
    state, run, images = checkpoint.read(path), session.run, len(session.sets.train)
    old = checkpoint.config_of(state, path)
    if old.method.name != run.method.name:
        raise CheckpointError(
            f"{path} holds {old.method.name} but this run is {run.method.name}; "
            f"resume it with the recipe it was trained with, or start {run.method.name} in another folder (--out)"
        )
    folder, remembered = session.sets.known_by, state.get("known_by")
    known = folder is not None and remembered is not None
    changed = plain.differences(old, run, ignore=(*FREE_TO_CHANGE, *LISTS * known))
    if changed:
        raise CheckpointError(
            f"{path} was trained with another recipe ({'; '.join(changed)}); "
            "a resumed run continues exactly, so undo the change or start anew in another folder (--out)"
        )
    unknown = folder is not None and remembered is None  # an earlier version wrote it
    if state["images"] != images:
        raise CheckpointError(
            f"{path} was trained on {state['images']} images but there are {images} now; "
            "a resumed run continues exactly, so restore the images or start anew in another folder (--out)"
            + COUNTED_SINCE
            * unknown
        )
    if old.epochs != run.epochs:
        _check_epochs(old, run, state["step"], len(session.loader), path)
    if folder is not None and remembered is not None:
        differ = distributed.from_leader(lambda: folder.difference(remembered))
        if differ:
            raise CheckpointError(
                f"{path} was trained on other images: {differ}; a resumed run continues exactly, so restore the images "
                "or start anew in another folder (--out), with --init from these weights"
            )
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in session.method.modules())
    before, now = Shares(old, state["processes"], normed), Shares(run, session.world.size, normed)
    if refused := shares.refusal(before, now):
        raise CheckpointError(f"{path} {refused}")
    checkpoint.load_weights(session.method, state, path)
    try:
        session.optimizer.load_state_dict(state["optimizer"])
        session.scaler.load_state_dict(state["scaler"])
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"the optimizer in {path} does not fit its recipe ({checkpoint.reason(error)})") from None
    _lay_out(session.optimizer)
    restore_probe(session, state)
    session.steps_done, session.seconds = state["step"], state["seconds"]
    said = checkpoint.remove_after(session.folder / "checkpoints", state["step"]) if session.world.leads else ""
    said += _compared_said(old, run) + shares.said(before, now)
    return said + (_rounding_said(run) if state["format"] == checkpoint.BEFORE else "") + OTHER_PICTURES * unknown


def _check_epochs(old: Train, run: Train, step: int, steps_per_epoch: int, path: Path) -> None:
    """Raises CheckpointError unless the steps before step would have been the same with the new number of epochs."""
    if step > run.epochs * steps_per_epoch:
        raise CheckpointError(
            f"{path} has been trained for {step // steps_per_epoch} epochs, which are more than --epochs {run.epochs}"
        )
    if any(rates(old, before, steps_per_epoch) != rates(run, before, steps_per_epoch) for before in range(step)):
        raise CheckpointError(
            f"{path} was trained with another recipe (epochs: {old.epochs} -> {run.epochs}), for the learning rate or "
            f"the momentum of its first {step} steps would have been others: half a cosine over all epochs. "
            "Undo the change or start anew in another folder (--out); a run that may grow needs --optim.schedule "
            "constant and --method.momentum-schedule constant from its start"
        )


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimizer's momenta the memory format of their weights, which a fused optimizer takes for granted."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.stride() != weight.stride() and value.shape == weight.shape:
                state[name] = torch.empty_like(weight).copy_(value)


def restore_probe(session: Session, state: dict[str, Any]) -> None:
    """Puts the checkpoint's linear probe into a session that trains one; session.probe_anew where none fits."""
    probe, kept = session.probe, state.get("probe")
    if probe is None:
        return
    if kept is None:
        session.probe_anew = "that checkpoint has none"
        return
    try:
        probe.load_state_dict(kept)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        session.probe = Probe(probe.channels, probe.classes).to(session.device)
        session.probe_anew = "that of the checkpoint is of other classes"


def _compared_said(old: Train, run: Train) -> str:
    """A clause about kNN where its images lie elsewhere than before, and may be others."""
    before, now = (config.data.eval or " ".join(config.data.roots) for config in (old, run))
    if not (old.knn_every and run.knn_every) or run.data.name != "folder" or before == now:
        return ""
    return f"; kNN compares the images of {now} from here on, before it compared those of {before}"


def _rounding_said(run: Train) -> str:
    """A sentence about a run of the version before, where this one rounds differently."""
    if not run.method.aligned or run.precision not in ("bf16", "fp16"):
        return ""
    return (
        f"; an earlier version wrote it, which in {run.precision} rounded the semantic projector and the predictor of "
        "the aligned embeddings otherwise: the steps from here on are not bit by bit those it would have taken"
    )
