"""lewel bench: what each method's step costs on this machine."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from benchmarks import heap, timing
from benchmarks.training import bench
from lewel.errors import LewelError


@dataclass(frozen=True)
class BenchCommand:
    """Times an optimizer step of each method on random images, and prints the paper's cost table of this machine."""

    encoder: Literal["auto", "resnet18", "resnet34", "resnet50", "tiny"] = "auto"
    """auto: resnet50 on a GPU, tiny on the CPU. The heads are the paper's, those of the CIFAR-10 presets on tiny"""
    image_size: int = 0
    """side of the images, with the 7x7 stem from 128 on; 0 means 224, with tiny 32"""
    batch: int = bench.BATCH
    """images of a step"""
    precision: Literal["fp32", "fp16", "bf16", "auto"] = "auto"
    """auto: bf16 where the device has it"""
    methods: tuple[Literal["moco_v2", "lewel_m", "byol", "lewel_b"], ...] = ("moco_v2", "lewel_m", "byol", "lewel_b")
    """what is compared, always in one process and by turns"""
    seconds: float = 60.0
    """time for all of them together; every one has a few steps to warm up and five rounds at least"""


def run(arguments: list[str]) -> None:
    """Prints the machine, the table and the paper's."""
    command = tyro.cli(BenchCommand, args=arguments, prog="lewel bench")
    if not 0 < command.seconds < float("inf"):
        raise LewelError(f"seconds must be positive and finite, got {command.seconds}")
    if not command.methods:
        raise LewelError("methods is empty; name one, or leave it out for all")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = bench.case_on(device, command.encoder, command.image_size, command.batch, command.precision)
    threads = f", threads: {torch.get_num_threads()}" if device == "cpu" else ""
    print(f"{timing.device_name(device)}{threads}, PyTorch {torch.__version__}, {datetime.date.today()}")
    busy = timing.busy_cores()
    if busy is not None and busy > 0.5:
        print(f"other processes keep {busy:.1f} cores busy: trust the percentages more than the times")
    heap.keep_heap()
    print(bench.table(case, bench.measure(case, list(dict.fromkeys(command.methods)), command.seconds)))
