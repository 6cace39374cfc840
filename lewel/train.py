"""The loop: recipe in, run folder out (config.yaml, log.jsonl, checkpoints/, pictures)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lewel import checkpoint, data, knn, optim, recipe, schedules, watch
from lewel.config import Train
from lewel.errors import LewelError
from lewel.log import Clock, RunLog, carry_over
from lewel.method import Method, Step

CALMER = "try a lower --optim.lr or a longer --optim.warmup-epochs"


@dataclass
class Session:
    """The parts of a run, made from its recipe."""

    run: Train
    folder: Path
    sets: data.Datasets
    loader: data.TrainLoader
    method: Method
    optimizer: torch.optim.Optimizer
    device: torch.device
    epochs_done: int = 0
    seconds: float = 0.0

    @property
    def total_steps(self) -> int:
        return self.run.epochs * len(self.loader)


def prepare(run: Train, folder: Path) -> Session:
    """Data and a freshly initialised method; the seed alone decides the weights."""
    sets = data.build(run.data, run.seed)
    loader = data.TrainLoader(sets.train, run.data.batch_size, run.data.workers)
    check_size(run, len(sets.train))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = replace(run, precision=precision_on(device) if run.precision == "auto" else run.precision)
    return Session(run, folder, sets, loader, *build(run, device), device)


def build(run: Train, device: torch.device) -> tuple[Method, torch.optim.Optimizer]:
    """The method with fresh weights, and its optimizer; precision is no longer "auto"."""
    torch.manual_seed(run.seed)
    method = Method(run).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method, optim.build(run.optim, method.parameters())


def precision_on(device: torch.device) -> Literal["fp32", "bf16"]:
    """What "auto" stands for: bf16 where the device multiplies it natively; elsewhere it is slower than fp32."""
    on_gpu = device.type == "cuda"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    )
    return "bf16" if native else "fp32"


def check_size(run: Train, images: int) -> None:
    """What can only be refused once the number of training images is known."""
    if images < run.data.batch_size:
        raise LewelError(f"data.batch_size is {run.data.batch_size} but there are only {images} training images")
    keys = images // run.data.batch_size * run.keys_per_step
    if run.method.loss == "infonce" and run.method.queue > keys:
        raise LewelError(
            f"method.queue holds {run.method.queue} keys but an epoch of {images} images makes only {keys}, so most "
            f"images would meet an old key of their own among the negatives; choose at most {keys}"
        )


def train(session: Session, resume: Path | None) -> None:
    """Trains from the start, or from the checkpoint resume, to the last epoch."""
    run, folder = session.run, session.folder
    images = len(session.sets.train)
    if resume is not None:
        state = checkpoint.restore(resume, run=run, method=session.method, optimizer=session.optimizer, images=images)
        session.epochs_done, session.seconds = state["epoch"], state["seconds"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(recipe.to_yaml(run))
    if resume is not None and resume.parent.name == "checkpoints":
        carry_over(resume.parent.parent / "log.jsonl", folder / "log.jsonl")
    first_step = session.epochs_done * len(session.loader)
    log = RunLog(folder / "log.jsonl", total_steps=session.total_steps, first_step=first_step)
    try:
        if resume is None:
            _log_baselines(session, log)
        else:
            later = checkpoint.remove_after(folder / "checkpoints", session.epochs_done)
            removed = f"; removed {', '.join(path.name for path in later)}, which come later" if later else ""
            log.say(f"continuing after epoch {session.epochs_done} from {resume}{removed}")
        for epoch in range(session.epochs_done, run.epochs):
            started = time.monotonic()
            _train_epoch(session, epoch, log)
            session.epochs_done = epoch + 1
            session.seconds += time.monotonic() - started
            _check_weights(session)
            if session.epochs_done % run.knn_every == 0 or session.epochs_done == run.epochs:
                _log_epoch(session, log)
            checkpoint.save(
                folder / "checkpoints",
                session.epochs_done,
                run=run,
                method=session.method,
                optimizer=session.optimizer,
                images=images,
                seconds=session.seconds,
            )
    finally:
        log.close()


def knn_accuracy(session: Session) -> float:
    """kNN-200 of the online encoder's GAP features, bank from the training split, in percent."""
    encoder = session.method.online.encoder

    def features(images: Tensor) -> Tensor:
        with session.method.autocast():
            return encoder(_on(session.device, images)).mean((2, 3), dtype=torch.float32).cpu()

    encoder.eval()
    accuracy = _knn(session, features)
    session.method.train()
    return accuracy


def _train_epoch(session: Session, epoch: int, log: RunLog) -> None:
    run, method, per_epoch = session.run, session.method, len(session.loader)
    clock, spread = Clock(run.data.batch_size), []
    worst = torch.zeros((), device=session.device)  # loss of the epoch; looked at on logged steps only, see _numbers
    for batch, views in enumerate(clock.waiting(session.loader.epoch(epoch))):
        step = epoch * per_epoch + batch
        lr, momentum = rates(run, step, per_epoch)
        first, second = _on(session.device, views.first), _on(session.device, views.second)
        outcome = take_step(method, session.optimizer, first, second, lr=lr, momentum=momentum)
        worst = torch.maximum(worst, outcome.loss.detach())
        log.advance()
        if step == 0 or (step + 1) % run.log_every == 0 or batch == per_epoch - 1:
            numbers = _numbers(outcome, worst)
            spread.append(numbers["z_std"])
            log.step({"step": step + 1, "lr": lr, "momentum": momentum, **numbers, **clock.lap()})
    if max(spread) < watch.COLLAPSED:
        values = {"step": (epoch + 1) * per_epoch, "z_std": max(spread)}
        log.record("warning", values, f"the embedding has collapsed: z_std stayed below {watch.COLLAPSED} for an epoch")


def take_step(
    method: Method, optimizer: torch.optim.Optimizer, first: Tensor, second: Tensor, *, lr: float, momentum: float
) -> Step:
    """One optimizer step on two views (N, 3, H, W) of the same images, and what follows it (keys, or the target)."""
    outcome = method(first, second, momentum)
    optimizer.zero_grad()
    outcome.loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    method.finish(outcome, momentum)
    return outcome


def rates(run: Train, step: int, steps_per_epoch: int) -> tuple[float, float]:
    """Learning rate and momentum of the target network at an optimizer step."""
    total_steps = run.epochs * steps_per_epoch
    lr = schedules.learning_rate(
        step,
        peak=run.optim.lr * run.data.batch_size / 256,
        warmup_steps=round(run.optim.warmup_epochs * steps_per_epoch),
        total_steps=total_steps,
    )
    momentum = schedules.target_momentum(
        step, start=run.method.momentum, schedule=run.method.momentum_schedule, total_steps=total_steps
    )
    return lr, momentum


def _numbers(outcome: Step, worst: Tensor) -> dict[str, float]:
    """The step's numbers, if the worst loss so far, nan where one was, is a number: a read waits for the device."""
    parts = {f"loss_{name}": float(part.detach()) for name, part in outcome.parts.items()}
    if not math.isfinite(worst):
        raise LewelError(f"the loss became {float(worst)} ({parts}); {CALMER}")
    return {"loss": float(outcome.loss.detach()), **parts, "z_std": watch.spread_of(outcome.z)}


def _check_weights(session: Session) -> None:
    """A last step may break weights whose loss was finite: they are never evaluated or saved."""
    for name, value in session.method.state_dict().items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise LewelError(f"{name} is not finite after epoch {session.epochs_done}; {CALMER}")


def _log_baselines(session: Session, log: RunLog) -> None:
    pixels = _knn(session, lambda images: images.flatten(1))
    untrained = knn_accuracy(session)
    log.record(
        "baselines",
        {"step": 0, "knn_pixels": pixels, "knn_untrained": untrained},
        f"before training: kNN {untrained:.1f} % untrained, {pixels:.1f} % on raw pixels",
    )


def _log_epoch(session: Session, log: RunLog) -> None:
    values = {
        "step": session.epochs_done * len(session.loader),
        "epoch": session.epochs_done,
        "seconds": session.seconds,
        "knn": knn_accuracy(session),
    }
    line = f"epoch {session.epochs_done}/{session.run.epochs}  kNN {values['knn']:.1f} %  {session.seconds:.0f} s"
    if session.run.method.aligned:
        images, _ = session.sets.test[data.spaced(session.sets.test, 256)]
        values |= watch.map_statistics(session.method, _on(session.device, images))
        line += f"  maps: entropy {values['map_entropy']:.3f}, |R-GAP|/|GAP| {values['map_spread']:.3f}"
    log.record("epoch", values, line)


def _knn(session: Session, features: Callable[[Tensor], Tensor]) -> float:
    bank, test = (
        knn.describe(features, data.eval_batches(split, 256, session.run.data.workers))
        for split in (session.sets.bank, session.sets.test)
    )
    return knn.accuracy(*bank, *test, session.sets.num_classes)


def _on(device: torch.device, images: Tensor) -> Tensor:
    return images.to(device=device, memory_format=torch.channels_last)
