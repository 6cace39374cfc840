"""The parts of a run, made from its recipe: data, method, optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from lewel import data, distributed, ranges
from lewel.errors import DataError, LewelError
from lewel.methods import norm
from lewel.methods.key_queue import KeyQueue
from lewel.methods.method import Method
from lewel.methods.probe import Probe
from lewel.recipe import objectives
from lewel.recipe.feature_maps import CUSTOM
from lewel.recipe.schema import Train
from lewel.run import optim


@dataclass
class Session:
    """The parts of a run in this process, and how far it has come: steps taken and seconds spent."""

    run: Train
    folder: Path
    world: distributed.World
    sets: data.Datasets
    loader: data.TrainLoader[data.Views]
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_done: int = 0
    seconds: float = 0.0
    probe: Probe | None = None
    """the linear classifier trained beside the method; None without labels, without kNN or where the recipe has none,
    and from the first step on where the objective does not show the first view to the online network"""
    probe_anew: str = ""
    """a clause for the first step of a resumed run: why its probe begins anew"""

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def total_steps(self) -> int:
        return self.run.epochs * len(self.loader)

    @property
    def epochs_done(self) -> int:
        """Whole epochs."""
        return self.steps_done // len(self.loader)

    def to_device(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.run.channels_last else torch.contiguous_format
        with record_function(ranges.DATA):
            return images.to(device=self.device, memory_format=layout, non_blocking=True)

    def labels_of(self, views: data.Views) -> Tensor:
        """The labels of a batch, (B,) int64 on the device. Raises DataError for what are none of the test images'."""
        labels, classes = views.labels, self.sets.num_classes
        if labels is None or labels.dtype != torch.int64 or labels.shape != views.indices.shape:
            given = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise DataError(
                f"a training set that is labelled gives int64 labels of shape ({len(views.indices)},) with as many "
                f"images, but this one gave {given}"
            )
        low, high = (int(edge) for edge in labels.aminmax())
        if low < -1 or high >= classes:
            raise DataError(
                f"a label is the number of a class, 0 to {classes - 1}, or -1 for none, but a batch of the training "
                f"set has {low} to {high}"
            )
        if self.device.type == "cuda" and not labels.is_pinned():
            labels = labels.pin_memory()  # a copy from other memory would wait until the device has done all its work
        return labels.to(self.device, non_blocking=True)


def prepare(
    run: Train,
    folder: Path,
    *,
    encoder: nn.Module | None = None,
    sets: data.Datasets | None = None,
    fill: bool = True,
) -> Session:
    """The session of a new run, with fresh weights that depend on the seed alone; every process of torchrun calls it.

    encoder and sets, given in Python, replace those that the recipe names, which then says "custom" for each. Without
    fill, sets.fill is left for the training.
    """
    world = distributed.join()
    run = replace(run, precision=precision_on(world.device) if run.precision == "auto" else run.precision)
    run = from_python(run, encoder, sets)
    if sets is None:
        sets = data.build(run.data, run.seed, world.device, fill=fill)
    run = with_labels(run, sets)
    check_size(run, len(sets.train), sets)
    _check_shares(run, sets, world.size)
    torch.backends.cudnn.benchmark = True  # images have one size
    loader = data.TrainLoader(
        sets.train, run.data.batch_size, run.data.workers,
        rank=world.rank, world=world.size, accumulate=run.accumulate, device=world.device,
    )  # fmt: skip
    method, optimizer = build(run, world.device, encoder)
    scaler = torch.amp.GradScaler(world.device.type, enabled=run.precision == "fp16")
    probe = Probe(method.online.encoder.channels, sets.num_classes).to(world.device) if is_probed(run, sets) else None
    return Session(run, folder, world, sets, loader, method, optimizer, scaler, probe=probe)


def is_probed(run: Train, sets: data.Datasets) -> bool:
    """Whether a linear classifier is trained beside the method: it is evaluated with kNN, on kNN's test images."""
    return run.probe and run.knn_every > 0 and sets.probed


def from_python(run: Train, encoder: nn.Module | None, sets: data.Datasets | None) -> Train:
    """run with "custom" as the name of the encoder and of the data set where they are given in Python."""
    if encoder is not None:
        run = replace(run, encoder=replace(run.encoder, name=CUSTOM))
    return run if sets is None else replace(run, data=replace(run.data, name="custom", root=""))


def with_labels(run: Train, sets: data.Datasets) -> Train:
    """run without kNN and linear classifier where no image has a label."""
    return run if sets.num_classes else replace(run, knn_every=0, linear_at_end=False)


def build(run: Train, device: torch.device, encoder: nn.Module | None = None) -> tuple[Method, torch.optim.Optimizer]:
    """The method, on device, and its optimizer. Weights are fresh but a given encoder's; precision is not "auto"."""
    torch.manual_seed(run.seed)
    method = Method(run, encoder)
    if run.method.batch_norm == "sync":
        norm.synchronise(method, device)
    method = method.to(device)
    if run.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.compile:
        method.online.encoder.compile()
        if method.target is not None:
            method.target.encoder.compile()
    return method, optim.build(run.optim, method.named_parameters(), method.objective.undecayed())


def in_parallel(method: Method) -> nn.Module:
    """The module to call for a pass: method itself, or in DDP, which averages the gradients over the processes.

    Before each step all processes take the BN buffers of the first, so its checkpoint is that of all. Queues are not
    sent: they are the same everywhere by construction.
    """
    if distributed.size() == 1:
        return method
    queues = [f"{name}.keys" for name, module in method.named_modules() if isinstance(module, KeyQueue)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, queues)
    return DistributedDataParallel(method, gradient_as_bucket_view=True)


def precision_on(device: torch.device) -> Literal["fp32", "bf16"]:
    """What "auto" stands for: bf16 where the device multiplies it natively; elsewhere it is slower than fp32."""
    on_gpu = device.type == "cuda"
    native = (
        torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    )
    return "bf16" if native else "fp32"


def check_size(run: Train, images: int, sets: data.Datasets | None = None) -> None:
    """Raises LewelError where the number of training images does not go with the recipe."""
    if images < run.data.batch_size:
        found = sets.found if sets is not None else None
        passed = found.passed.lines() if found is not None else []
        raise LewelError(
            f"data.batch_size is {run.data.batch_size} but there are only {images} training images"
            + "".join(f"; passed over, {line}" for line in passed[:3])
            + "; choose a smaller --data.batch-size, or name more images"
        )
    objectives.find(run.method.loss).check_images(run, images)


def _check_shares(run: Train, sets: data.Datasets, processes: int) -> None:
    """Raises LewelError where some process would get no image of the kNN bank or no test image."""
    if not run.knn_every:
        return
    bank = min(run.knn_bank or len(sets.bank), len(sets.bank))
    for name, images in (("images in the kNN bank", bank), ("test images", len(sets.test))):
        if images < processes:
            raise LewelError(f"there are only {images} {name} for {processes} processes, which share them out")
