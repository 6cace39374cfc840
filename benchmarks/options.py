"""Options that several commands have, and what they accept: anything else is refused before anything is measured."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch


def measures(command: argparse.ArgumentParser, call: Callable[[argparse.Namespace], object]) -> None:
    """Adds the options that all commands that measure have; ``call`` gets what was given."""
    command.set_defaults(call=call)
    command.add_argument("--device", default="cpu", type=device, help="cpu, cuda or cuda:1")
    command.add_argument("--threads", type=count, help="threads of PyTorch and of the cpu backend")
    command.add_argument("--no-record", action="store_true", help="print only")


def seconds(command: argparse.ArgumentParser, default: float, spent_on: str) -> None:
    """Adds --seconds."""
    command.add_argument("--seconds", type=duration, default=default, help=f"time spent on {spent_on}")


def minutes(command: argparse.ArgumentParser, about: str) -> None:
    """Adds --minutes, by default without a limit."""
    command.add_argument("--minutes", type=limit, default=math.inf, help=about)


def count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 4096, got {text!r}")
    return int(text)


def duration(text: str) -> float:
    """Seconds that something takes."""
    if (value := limit(text)) == math.inf:
        raise argparse.ArgumentTypeError(f"must be finite, got {text!r}")
    return value


def limit(text: str) -> float:
    """Minutes that something may take; inf is allowed."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def device(text: str) -> str:
    """A device that PyTorch can name here; a GPU with its index, without which torch.cuda.set_device takes none."""
    try:
        kind = torch.device(text)
    except RuntimeError:
        kind = torch.device("meta")
    if kind.type not in ("cpu", "cuda") or text.startswith("cpu:"):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:N, got {text!r}")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"PyTorch sees {torch.cuda.device_count()} GPUs here, got {text!r}")
    return f"cuda:{kind.index or 0}" if kind.type == "cuda" else text
