"""What a person reads before and after a run: the resolved recipe, and what was learnt, in numbers and pictures."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

import lewel_kernels
from lewel import data
from lewel.data.per_sample import fit, to_tensor
from lewel.errors import LewelError
from lewel.evaluation import health
from lewel.methods.method import Method
from lewel.recipe import plain
from lewel.recipe.schema import Train
from lewel.results import curves, figures
from lewel.run import checkpoint
from lewel.run.session import Session, prepare
from lewel.run.step import rates
from lewel.watching import log

PICTURED = 8


def recipe_of(session: Session) -> str:
    """The whole recipe, and what follows from it and from the data."""
    trained = sum(p.numel() for p in session.method.parameters() if p.requires_grad)
    return plan(session.run, len(session.sets.train), trained, session.device)


def plan(run: Train, images: int, trained: int, device: torch.device) -> str:
    """The whole recipe, and what follows from it, the number of images and that of trained parameters."""
    steps, peak = images // run.data.batch_size, run.optim.lr * run.data.batch_size / 256
    lines = [
        plain.to_yaml(run),
        f"{run.method.name} on {device}: {images:,} training images, {steps:,} steps an epoch, "
        f"{run.epochs * steps:,} steps; {trained:,} parameters are trained",
        f"learning rate {run.optim.lr:g} per 256 images is {peak:g} at {run.data.batch_size}, "
        f"{rates(run, 0, steps)[0]:.3g} at the first step",
    ]
    if run.method.aligned:
        lines.append(f"aligned pooling: {_backend(run, device)}")
    return "\n".join(lines)


def _backend(run: Train, device: torch.device) -> str:
    heads = run.heads
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision, torch.float32)
    features = torch.zeros(1, heads.num_groups, 1, 1, dtype=dtype, device=device)
    weight = features.new_zeros(heads.num_maps, heads.num_groups)
    try:
        why = lewel_kernels.explain(features, weight, num_groups=heads.num_groups, backend=run.backend)
    except ValueError as error:
        raise LewelError(str(error)) from None
    if why.backend is None:
        raise LewelError(str(why))
    return str(why)


def load(folder: Path, data_root: str = "") -> Session:
    """A finished or interrupted run with its data, possibly moved, and the weights of its newest checkpoint."""
    path, state, run = newest(folder)
    if data_root:
        run = replace(run, data=replace(run.data, root=data_root))
    session = prepare(run, folder)
    checkpoint.load_weights(session.method, state, path)
    session.steps_done, session.seconds = state["step"], state["seconds"]
    return session


def newest(folder: Path) -> tuple[Path, dict[str, Any], Train]:
    """The newest checkpoint of a run folder, its content and its recipe."""
    if not (folder / "config.yaml").exists():
        raise LewelError(f"{folder} is no run folder: it has no config.yaml; lewel train says where it writes")
    found = checkpoint.found(folder / "checkpoints")
    if not found:
        raise LewelError(f"{folder} has no checkpoint yet; one is written at the end of every epoch")
    state = checkpoint.read(found[-1])
    return found[-1], state, checkpoint.config_of(state, found[-1])


def write(session: Session) -> None:
    """Prints the result of a finished run and draws its pictures into the run folder."""
    folder, aligned = session.folder, session.run.method.aligned
    drawn, maps = folder / "curves.png", folder / "maps.png"
    curves.draw(drawn, {folder.name: log.read(folder / "log.jsonl")})
    if aligned:
        shown = data.spaced(session.sets.test, PICTURED)
        images, _ = session.sets.test[shown]
        boxes = session.sets.test_boxes
        title = f"{session.run.method.name} after {session.epochs_done} epochs"
        best = None if boxes is None else mass_in_boxes(session).best_map
        _draw(session.method, images, maps, None if boxes is None else boxes[shown], title, best)
    text, python = summary(session), os.path.relpath(sys.executable)
    python = "python" if python.startswith("..") else python  # one beside the run is not on the path
    (folder / "report.txt").write_text(text + "\n")
    lines = [
        "",
        text,
        "",
        f"wrote {drawn}" + (f" and {maps}" if aligned else ""),
        f"next: {python} -m lewel show {folder}",
        f"      {python} -m lewel eval knn {folder}",
    ]
    if aligned:
        lines.append(f"      {python} -m lewel maps {folder} YOUR_IMAGE.jpg ...")
    print("\n".join([*lines, f"      {python} -m lewel presets"]), flush=True)


def summary(session: Session) -> str:
    """kNN beside the untrained network and raw pixels, health of the embedding, speed, place of the maps."""
    last = {record["kind"]: record for record in log.read(session.folder / "log.jsonl")}  # of each kind
    start, end = last.get("baselines", {}), last.get("epoch", {})
    images = session.total_steps * session.run.data.batch_size
    rows = [
        (f"kNN-200, {name}", f"{record[key]:.1f} %")
        for name, record, key in (
            ("raw pixels", start, "knn_pixels"),
            ("the network untrained", start, "knn_untrained"),
            (f"after {end.get('epoch')} epochs", end, "knn"),
        )
        if key in record
    ]
    if "step" in last:
        spread = f"{last['step']['z_std']:.2f}   (1 spread over the sphere, 0 collapsed)"
        rows.append(("std of normalised z * sqrt(K)", spread))
    rows.append(("speed", f"{images / session.seconds:.0f} images/s, {session.seconds:.0f} s"))
    if session.run.method.aligned and session.sets.test_boxes is not None:
        mass = mass_in_boxes(session)
        box, chosen = f"(the box is {mass.area:.1f} % of the image)", f"(map {mass.best_map}, chosen on other images)"
        rows += [
            (
                "map mass in the digit's box, all maps",
                f"{mass.every:.1f} %   {box}",
            ),
            ("map mass in the digit's box, best map", f"{mass.best:.1f} %   {chosen}"),
        ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


class MassInBoxes(NamedTuple):
    """Of test images: shares in percent, and the number of the best map."""

    every: float
    best: float
    area: float
    best_map: int


def mass_in_boxes(session: Session) -> MassInBoxes:
    """The maps' mass inside the test images' boxes, that of the best map, and the boxes' share of the area.

    The best map is the one with most mass on the even test images; its mass is measured on the odd ones.
    """
    boxes = session.sets.test_boxes
    assert boxes is not None
    inside, area = [], []
    for (images, _), known in zip(data.eval_batches(session.sets.test, 256), boxes.split(256), strict=True):
        maps, _, _ = health.maps_of(session.method, images.to(session.device))
        mass, share = health.mass_in_boxes(maps.cpu(), known, session.run.data.image_size)
        inside.append(mass)
        area.append(share)
    shares = torch.cat(inside)  # [N, K]
    best = int(shares[::2].mean(0).argmax())
    every, alone, space = (100 * float(x.mean()) for x in (shares, shares[1::2, best], torch.cat(area)))
    return MassInBoxes(every, alone, space, best)


def draw_maps(folder: Path, paths: list[Path], out: Path) -> None:
    """Alignment maps of a run over image files; the run's data are not needed."""
    if not paths:
        raise LewelError(f"no images were given; name some after the run: lewel maps {folder} IMAGES...")
    path, state, run = newest(folder)
    if not run.method.aligned:
        raise LewelError(f"{folder} is a {run.method.name} run, which has no alignment maps")
    method = Method(run)
    checkpoint.load_weights(method, state, path)
    images = torch.stack([_image(path, run.data.image_size) for path in paths])
    _draw(method, images, out, None, f"{run.method.name} after {state['epoch']} epochs")


def _image(path: Path, size: int) -> Tensor:
    try:
        with Image.open(path) as image:
            return to_tensor(fit(image.convert("RGB"), size))
    except (OSError, ValueError) as error:
        raise LewelError(f"cannot read {path} as an image: {error}") from None


def _draw(method: Method, images: Tensor, out: Path, boxes: Tensor | None, title: str, best: int | None = None) -> None:
    maps, _, _ = health.maps_of(method, images.to(next(method.parameters()).device))
    figures.alignment_maps(out, images, maps.cpu(), boxes=boxes, title=title, best=best)
