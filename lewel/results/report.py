"""What a person reads after a run: what was learnt, in numbers and pictures."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lewel import data
from lewel.errors import LewelError
from lewel.evaluation import at_end, knn
from lewel.evaluation.boxes import mass_in_boxes
from lewel.results import curves
from lewel.results.maps import draw_maps
from lewel.run import checkpoint
from lewel.run.session import Session
from lewel.watching import log

PICTURED = 8


def write(session: Session) -> None:
    """Prints the result of a finished run and draws its pictures into the run folder.

    A picture that cannot be drawn is told of. Raises LewelError where report.txt cannot be written.
    """
    folder, aligned = session.folder, session.run.method.aligned
    drawn, maps = folder / "curves.png", folder / "maps.png"
    records = log.read(folder / "log.jsonl")
    pictures: dict[Path, Callable[[], object]] = {drawn: lambda: curves.draw(drawn, {folder.name: records})}
    if aligned:
        pictures[maps] = lambda: _draw_maps(session, maps)
    failures = {path: why for path, draw in pictures.items() if (why := _failure(path, draw))}
    wrote = " and ".join(str(path) for path in pictures if path not in failures)
    text, python = write_summary(session), os.path.relpath(sys.executable)
    python = "python" if python.startswith("..") else python  # one beside the run is not on the path
    quoted, python = shlex.quote(str(folder)), shlex.quote(python)  # to be pasted into a shell
    lines = [
        "",
        text,
        "",
        ", and ".join([f"wrote {wrote}"] * bool(wrote) + list(failures.values()))
        + "; training has finished and is saved, the commands below draw again" * bool(failures),
        f"next: {python} -m lewel show {quoted}",
        f"      {python} -m lewel eval knn {quoted}" + ("" if session.sets.num_classes else " --data-eval LABELLED"),
    ]
    if aligned:
        lines.append(f"      {python} -m lewel maps {quoted} YOUR_IMAGE.jpg ...")
    print("\n".join([*lines, f"      {python} -m lewel presets"]), flush=True)


def _failure(path: Path, draw: Callable[[], object]) -> str:
    """Draws a picture; a clause about why there is none where that fails, of whatever matplotlib fails by, else ""."""
    try:
        draw()
    except Exception as error:
        why = str(error) if isinstance(error, LewelError) else f"{type(error).__name__}: {checkpoint.reason(error)}"
        return why if str(path) in why else f"no {path}: {why}"
    return ""


def _draw_maps(session: Session, out: Path) -> None:
    """Draws the maps of test images. Raises DataError where these cannot be read."""
    shown = data.spaced(session.sets.test, PICTURED)
    images, _ = session.sets.test[shown]
    boxes = session.sets.test_boxes
    title = f"{session.run.method.name} after {_epochs(session.epochs_done)}"
    best = None if boxes is None else mass_in_boxes(session).best_map
    draw_maps(session.method, images, out, None if boxes is None else boxes[shown], title, best)


def write_summary(session: Session) -> str:
    """Writes report.txt, and returns its text. Raises LewelError where that cannot be."""
    text = summary(session)
    log.write_text(session.folder / "report.txt", text + "\n")
    return text


def summary(session: Session) -> str:
    """The text of report.txt, a number per line.

    kNN beside the untrained network and raw pixels, the linear accuracy where there is one, spread of the embedding,
    speed, and how much of the maps is in the boxes.
    """
    last = {record["kind"]: record for record in log.read(session.folder / "log.jsonl")}  # of each kind
    start, end = last.get("baselines", {}), last.get("epoch", {})
    images = session.total_steps * session.run.data.batch_size
    told = (
        ("raw pixels", knn.accuracies(start, "knn_pixels")),
        (
            "the network untrained" if not session.run.init else "its initial weights",
            knn.accuracies(start, "knn_untrained"),
        ),
        (f"after {_epochs(end.get('epoch'))}", knn.accuracies(end)),
    )
    rows = [
        (f"kNN-{k}, {name}", f"{accuracies[k]:.1f} %")
        for k in dict.fromkeys(k for _, accuracies in told for k in accuracies)  # the baselines may have had others
        for name, accuracies in told
        if k in accuracies
    ]
    if (linear := at_end.accuracy(session)) is not None:
        rows.append((f"linear, after {_epochs(session.epochs_done)}", f"{linear:.1f} %"))
    if "probe" in end:
        rows.append((f"linear probe, after {_epochs(end.get('epoch'))}", f"{end['probe']:.1f} %"))
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


def _epochs(count: Any) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"
