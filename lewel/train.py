"""The loop: session in, run folder out (config.yaml, log.jsonl, checkpoints/)."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from lewel import checkpoint, distributed, evaluate, recipe, watch
from lewel.errors import LewelError
from lewel.log import Clock, RunLog, carry_over, read
from lewel.preemption import Preemption
from lewel.session import Session, in_parallel
from lewel.step import Outcome, Stepper, rates

CALMER = "try a lower --optim.lr or a longer --optim.warmup-epochs"


def train(session: Session, resume: Path | None) -> bool:
    """Trains from the start, or from the checkpoint resume, to the last step.

    False where SIGTERM came before: the run is saved and can be continued.
    """
    run, folder, leads = session.run, session.folder, session.world.leads
    if resume is not None:
        before = checkpoint.restore(resume, session)
    log_file = folder / "log.jsonl"
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        if resume is not None and resume.parent.name == "checkpoints":
            carry_over(resume.parent.parent / "log.jsonl", log_file)
    log = RunLog(log_file, total_steps=session.total_steps, first_step=session.steps_done, run=run, quiet=not leads)
    if leads:  # only now, for a folder with this file holds a run, and a board may have refused to start
        (folder / "config.yaml").write_text(recipe.to_yaml(run))
    try:
        if resume is None:
            _log_baselines(session, log)
        else:
            log.say(f"continuing after step {session.steps_done} from {resume}{before}")
        with Preemption() as preemption:
            return _Loop(session, log, preemption).run()
    finally:
        log.close()


class _Loop:
    """The steps of a session, with what is logged and saved between them."""

    def __init__(self, session: Session, log: RunLog, preemption: Preemption) -> None:
        self.session, self.log, self.preemption = session, log, preemption
        self.stepper = Stepper(session.method, in_parallel(session.method), session.optimizer, session.scaler)
        self.per_epoch = len(session.loader)
        self.since = time.monotonic()
        self.saved = -1  # step of the newest checkpoint
        # Loss of the epoch, inf or nan where one was: it is looked at on logged steps only, for a look waits.
        self.worst = torch.zeros((), device=session.device)

    def run(self) -> bool:
        """Whether it came to the end."""
        session = self.session
        while session.epochs_done < session.run.epochs:
            whole, done = self._epoch(session.epochs_done), session.epochs_done
            if whole and (done % session.run.knn_every == 0 or done == session.run.epochs):
                self._stop_clock()
                _log_epoch(session, self.log)
                self.since = time.monotonic()
            self._save()
            if session.epochs_done < session.run.epochs and distributed.anywhere(self.preemption.requested):
                self.log.say(f"stopped by SIGTERM after step {session.steps_done}; --resume auto continues from there")
                return False
        return True

    def _epoch(self, epoch: int) -> bool:
        """What is left of an epoch; False where it was left for SIGTERM."""
        session, run = self.session, self.session.run
        first = session.steps_done - epoch * self.per_epoch
        clock = Clock(run.data.batch_size // run.accumulate)
        batches = clock.waiting(session.loader.epoch(epoch, first))
        spreads = self._spreads_before(epoch)
        for batch in range(first, self.per_epoch):
            last = batch == self.per_epoch - 1
            lr, momentum = rates(run, session.steps_done, self.per_epoch)
            passes = (
                (session.to_device(views.first), session.to_device(views.second))
                for views in itertools.islice(batches, run.accumulate)
            )
            outcome = self.stepper.take(passes, run.accumulate, step=session.steps_done, lr=lr, momentum=momentum)
            self.worst = torch.maximum(self.worst, outcome.loss)
            session.steps_done += 1
            self.log.advance()
            logged = session.steps_done % run.log_every == 0 or session.steps_done == 1 or last
            if logged:
                numbers = self._numbers(outcome)
                spreads.append(numbers["z_std"])
                self.log.step({"step": session.steps_done, "lr": lr, "momentum": momentum, **numbers, **clock.lap()})
            # Several processes ask each other, so not at every step; it is seen within log_every of them.
            if not last and (logged or session.world.size == 1) and distributed.anywhere(self.preemption.requested):
                return False
            if not last and run.save_every and session.steps_done % run.save_every == 0:
                self._save()
        if max(spreads) < watch.COLLAPSED:
            line = f"the embedding has collapsed: z_std stayed below {watch.COLLAPSED} for an epoch"
            self.log.record("warning", {"step": session.steps_done, "z_std": max(spreads)}, line)
        return True

    def _spreads_before(self, epoch: int) -> list[float]:
        """z_std of the steps of this epoch that were logged before the run was continued."""
        if self.session.steps_done == epoch * self.per_epoch or not self.session.world.leads:
            return []
        records = read(self.session.folder / "log.jsonl")
        return [r["z_std"] for r in records if r["kind"] == "step" and r["step"] > epoch * self.per_epoch]

    def _numbers(self, outcome: Outcome) -> dict[str, float]:
        """The step's numbers, means over the processes, if the worst loss so far is a number."""
        values = {"loss": outcome.loss, **{f"loss_{name}": part for name, part in outcome.parts.items()}}
        replaced = torch.tensor(float(self.session.sets.replaced)).to(self.session.device, non_blocking=True)
        further = {"z_std": watch.spread_of(outcome.z), "worst": self.worst, "replaced": replaced}
        numbers = watch.read(values | further)
        worst, replaced_a_process = numbers.pop("worst"), numbers.pop("replaced")
        if not math.isfinite(worst):
            parts = {name: value for name, value in numbers.items() if name.startswith("loss_")}
            raise LewelError(f"the loss became {worst} ({parts}); {CALMER}")
        if replaced_a_process:
            numbers["replaced"] = round(replaced_a_process * self.session.world.size)
        return {**numbers, "peak_memory_mib": watch.peak_memory()}

    def _save(self) -> None:
        session = self.session
        if self.saved == session.steps_done:
            return
        self._stop_clock()
        _check_weights(session)
        if session.world.leads:
            checkpoint.save(session)
        self.saved, self.since = session.steps_done, time.monotonic()

    def _stop_clock(self) -> None:
        self.session.seconds += time.monotonic() - self.since
        self.since = time.monotonic()


def _check_weights(session: Session) -> None:
    """A last step may break weights whose loss was finite: they are never saved."""
    for name, value in session.method.state_dict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise LewelError(f"{name} is not finite after step {session.steps_done}; {CALMER}")


def _log_baselines(session: Session, log: RunLog) -> None:
    pixels, untrained = evaluate.knn_of_pixels(session), evaluate.knn_accuracy(session)
    log.record(
        "baselines",
        {"step": 0, "knn_pixels": pixels, "knn_untrained": untrained},
        f"before training: kNN {untrained:.1f} % untrained, {pixels:.1f} % on raw pixels",
    )


def _log_epoch(session: Session, log: RunLog) -> None:
    _check_weights(session)  # broken ones are not evaluated either
    values = {
        "step": session.steps_done,
        "epoch": session.epochs_done,
        "seconds": session.seconds,
        "knn": evaluate.knn_accuracy(session),
    }
    line = f"epoch {session.epochs_done}/{session.run.epochs}  kNN {values['knn']:.1f} %  {session.seconds:.0f} s"
    if session.run.method.aligned and session.world.leads:
        values |= evaluate.map_statistics(session)
        line += f"  maps: entropy {values['map_entropy']:.3f}, |R-GAP|/|GAP| {values['map_spread']:.3f}"
    log.record("epoch", values, line)
