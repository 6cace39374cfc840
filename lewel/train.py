"""The loop: session in, run folder out (config.yaml, log.jsonl, checkpoints/)."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from lewel import data, distributed, ranges
from lewel.data import shared
from lewel.errors import DataError, LewelError
from lewel.evaluation import features, health, online
from lewel.recipe import plain
from lewel.run import checkpoint, exhausted, resuming
from lewel.run.preemption import Preemption
from lewel.run.session import Session, in_parallel
from lewel.run.step import Outcome, Stepper, rates
from lewel.watching.clock import Clock
from lewel.watching.log import RunLog, carry_over, read, write_text

SMALLEST_SCALE = 1e-4  # of a loss in fp16: with it nothing but inf and nan overflows
CALMER = "try a lower --optim.lr or a longer --optim.warmup-epochs"


def train(session: Session, resume: Path | None) -> bool:
    """Trains from the start, or from the checkpoint resume, to the last step, and then returns True.

    Returns False if a signal came before (SIGTERM, SIGUSR1 or SIGHUP): the run is saved and can be continued. Ctrl-C
    saves too, and ends in a KeyboardInterrupt.
    """
    run, folder, leads = session.run, session.folder, session.world.leads
    if session.sets.train.device.type == "cpu":  # else workers make no views
        shared.check(run, session.world.size, features.BATCH)
    if resume is not None:
        before = resuming.restore(resume, session)
    log_file = folder / "log.jsonl"
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        if resume is not None and resume.parent.name == "checkpoints":
            carry_over(resume.parent.parent / "log.jsonl", log_file)
    log = RunLog(log_file, total_steps=session.total_steps, first_step=session.steps_done, run=run, quiet=not leads)
    try:
        session.sets.fill(log.progress)
        if leads:  # only now, for a folder with this file holds a run; a board or the images may have ended it before
            write_text(folder / "config.yaml", plain.to_yaml(run))
        if resume is None:
            if run.knn_every:
                online.log_baselines(session, log)
        else:
            log.say(f"continuing after step {session.steps_done} from {resume}{before}")
        if leads and session.sets.known_by is not None:
            session.sets.known_by.remembered()  # looks into files, for which the first checkpoint may have no time
        with Preemption() as preemption:
            return Loop(session, log, preemption).run()
    finally:
        log.close()
        shared.give_back_deaths()


class Loop:
    """The steps of a session, with what is logged and saved between them."""

    def __init__(self, session: Session, log: RunLog, preemption: Preemption) -> None:
        self.session, self.log, self.preemption = session, log, preemption
        call = in_parallel(session.method)
        self.stepper = Stepper(session.method, call, session.optimizer, session.scaler, session.probe)
        self.per_epoch = len(session.loader)
        self.since = time.monotonic()
        self.stopping, self.stopped = False, distributed.Anywhere()
        self.evaluated = online.is_evaluated(session)
        # Loss of the epoch, inf or nan where one was: it is looked at on logged steps only, for a look waits.
        self.worst = torch.zeros((), device=session.device)
        self.within_step = False  # a pass of it has been taken, and the optimizer has not stepped
        self.told = 0  # number of unreadable files when the processes last told each other which these are

    def run(self) -> bool:
        """Trains until the last step or a signal; returns whether it came to the end.

        Where the data end the run, it saves the last whole step before it raises the DataError about it.
        """
        session, checkpoints = self.session, self.session.folder / "checkpoints"
        try:
            with exhausted.sentences(session.folder, session.device, self._at):
                return self._run()
        except DataError as error:
            saved = (checkpoints / checkpoint.name_of(session.steps_done)).exists()
            if session.world.leads and session.steps_done and not self.within_step and not saved:
                self._save()
            newest = checkpoint.found(checkpoints)[-1:]
            then = f"{newest[0]} is saved: --resume auto goes on from there" if newest else "no step is saved yet"
            raise DataError(f"{error}. {then}") from None

    def _at(self) -> str:
        """A clause about what the run is doing, for a sentence about memory."""
        if self.preemption.evaluates:
            return (
                f"while the features after step {self.session.steps_done} were compared; a smaller --knn-bank takes "
                "less, --knn-every 0 none"
            )
        return exhausted.in_a_step(self.session)

    def _run(self) -> bool:
        session, run = self.session, self.session.run
        while True:
            done = session.epochs_done
            whole = session.steps_done == done * self.per_epoch > 0
            if self.stopping and not (whole and done == run.epochs):
                by = self.preemption.by or "a signal to another process"
                stopped = f"stopped by {by} after step {session.steps_done}"
                if by == "SIGINT":  # whoever started the run shall not take it for finished, and is told how it goes on
                    self.log.say(stopped)
                    raise KeyboardInterrupt
                self.log.say(f"{stopped}; --resume auto continues from there")
                return False
            if whole and not self.evaluated and (done == run.epochs or not run.knn_every or not done % run.knn_every):
                self.preemption.evaluates = True
                online.log_epoch(session, self.log)
                self.preemption.evaluates = False
                self.stopping = self.stopped.ask(bool(self.preemption.by))
                if self.stopping and done < run.epochs:
                    self.evaluated = True
                    continue
            if done == run.epochs:
                return True
            self.since, self.evaluated = time.monotonic(), False
            self.epoch(done)
            self._save()  # before the evaluation, for which a scheduler may not wait

    def epoch(self, epoch: int) -> None:
        """Takes the steps that are left of an epoch, or those up to a signal."""
        session, run = self.session, self.session.run
        first = session.steps_done - epoch * self.per_epoch
        clock = Clock(run.data.batch_size // run.accumulate)
        batches = clock.waiting(session.loader.epoch(epoch, first))
        spreads = self._spreads_before(epoch)
        for batch in range(first, self.per_epoch):
            last = batch == self.per_epoch - 1
            rate = rates(run, session.steps_done, self.per_epoch)
            passes = self._passes(itertools.islice(batches, run.accumulate))
            outcome = self.stepper.take(passes, run.accumulate, step=session.steps_done, **rate._asdict())
            self._tell_of_probe()
            if not session.scaler.is_enabled():  # which leaves out a step that overflowed
                self.worst = torch.maximum(self.worst, outcome.loss)
            session.steps_done, self.within_step = session.steps_done + 1, False
            with record_function(ranges.LOG):
                self.log.advance()
                if session.steps_done % run.log_every == 0 or session.steps_done == 1 or last:
                    numbers = self._numbers(outcome)
                    spreads.append(numbers["z_std"])
                    follows = {"momentum": rate.momentum} if session.method.target is not None else {}
                    self.log.step({"step": session.steps_done, "lr": rate.lr, **follows, **numbers, **clock.lap()})
            self.stopping = self.stopped.ask(bool(self.preemption.by))
            if self.stopping and not last:
                return
            if not last and run.save_every and session.steps_done % run.save_every == 0:
                self._save()
                clock.lap()
        highest = max(filter(math.isfinite, spreads), default=math.inf)  # a step that fp16 overflowed in says nothing
        if highest < health.COLLAPSED:
            line = f"the embedding has collapsed: z_std stayed below {health.COLLAPSED} for an epoch"
            self.log.record("warning", {"step": session.steps_done, "z_std": highest}, line)

    def _tell_of_probe(self) -> None:
        """Says, once a step has shown it, that there is no linear probe, or that it begins anew."""
        session = self.session
        if session.probe is not None and self.stepper.probe is None:
            session.probe = None
            self.log.say(
                f"no linear probe is trained, for the objective {session.run.method.loss} calls online neither with "
                "the first view nor with a batch that begins with it; lewel eval linear measures what the run reaches"
            )
        elif session.probe_anew:
            self.log.say(f"the linear probe begins anew, for {session.probe_anew}")
        session.probe_anew = ""

    def _passes(self, batches: Iterable[data.Views]) -> Iterator[Any]:
        """The views of a step, and the labels where a probe learns from them, on the device."""
        session = self.session
        for views in batches:
            labels = () if session.probe is None else (session.labels_of(views),)
            self.within_step = True
            yield session.to_device(views.first), session.to_device(views.second), *labels

    def _spreads_before(self, epoch: int) -> list[float]:
        """z_std of the steps of this epoch that were logged before the run was continued."""
        if self.session.steps_done == epoch * self.per_epoch or not self.session.world.leads:
            return []
        records = read(self.session.folder / "log.jsonl")
        return [r["z_std"] for r in records if r["kind"] == "step" and r["step"] > epoch * self.per_epoch]

    def _numbers(self, outcome: Outcome) -> dict[str, float]:
        """A step's numbers for the log, means over processes. Raises LewelError where training has diverged."""
        values = {"loss": outcome.loss, **{f"loss_{name}": part for name, part in outcome.parts.items()}}
        replaced = torch.tensor(float(self.session.sets.replaced)).to(self.session.device, non_blocking=True)
        further = {"z_std": health.spread_of(outcome.z), "worst": self.worst, "replaced": replaced}
        if self.session.scaler.is_enabled():
            further["scale"] = torch.as_tensor(self.session.scaler._get_scale_async())
        numbers = health.read(values | further)
        worst, replaced_a_process = numbers.pop("worst"), numbers.pop("replaced")
        if not math.isfinite(worst):
            parts = {name: value for name, value in numbers.items() if name.startswith("loss_")}
            raise LewelError(f"the loss became {worst} ({parts}); {CALMER}")
        if numbers.get("scale", 1) < SMALLEST_SCALE:
            raise LewelError(
                f"fp16 overflows at every step, though the loss is scaled by no more than {numbers['scale']:g}; "
                f"{CALMER}, or --precision bf16"
            )
        if replaced_a_process:
            numbers["replaced"] = self._replaced(replaced_a_process)
        return {**numbers, "peak_memory_mib": health.peak_memory()}

    def _replaced(self, a_process: float) -> int:
        """The number of files that some process could not read. Raises Unreadable if it is too many of a split.

        a_process is their mean number, the same in all processes, which therefore tell each other together.
        """
        if a_process != self.told:
            try:
                self.told = self.session.sets.tell(self.session.device, compared=bool(self.session.run.knn_every))
            except data.Unreadable:  # in all processes, and the first to end would end the one that saves
                distributed.from_leader(self._save)
                raise
        return self.told

    @ranges.ranged(ranges.SAVE)
    def _save(self) -> None:
        self.session.seconds += time.monotonic() - self.since
        _check_weights(self.session)
        if self.session.world.leads:
            checkpoint.save(self.session)
        self.since = time.monotonic()


def _check_weights(session: Session) -> None:
    """Raises LewelError for weights that are not finite: a last step may break them though its loss was finite."""
    values = {k: v for k, v in session.method.state_dict().items() if isinstance(v, Tensor)}
    finite = torch.stack([value.isfinite().all() for value in values.values()])
    if not finite.all():
        name = next(name for name, fine in zip(values, finite.tolist(), strict=True) if not fine)
        raise LewelError(f"{name} is not finite after step {session.steps_done}; {CALMER}")
