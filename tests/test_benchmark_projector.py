"""python -m benchmarks projector: what 16 bits lose of what an image's rows differ by, and that splitting keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import __main__, heap, recording
from benchmarks.documents import training
from benchmarks.training import projector


def test_errors_and_times_are_recorded_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    for name, size in (("C", 64), ("D", 128), ("K", 32)):
        monkeypatch.setattr(projector, name, size)
    with pytest.raises(SystemExit) as exit:
        __main__.main(["projector", "--images", "4", "--seconds", "0.01", "--fp16"])
    assert not exit.value.code
    (device,) = recording.devices()
    rows = {row["variant"]: row for row in recording.latest(device, "projector")}
    assert list(rows) == ["float32", *(f"{x}, {way}" for x in ("bfloat16", "float16") for way in ("autocast", "split"))]
    for dtype, images in (("bfloat16", 4), ("float16", 2)):
        autocast, split = (rows[f"{dtype}, {way}"] for way in ("autocast", "split"))
        assert autocast["case"] == split["case"] == {"C": 64, "D": 128, "K": 32, "images": images, "rows": 8}
        assert all(10 * split["errors"][of] < autocast["errors"][of] for of in ("W R", "output"))
        assert (split["p50"] is None) == (dtype == "float16")  # emulated
    assert all(value < 1e-3 for value in rows["float32"]["errors"].values())
    text = training.projector(device)
    assert f"8 rows of an image differ from their mean by {100 * rows['float32']['spread']:.1f} % of their size" in text
    errors = " | ".join(f"{value:.1e}" for value in rows["float16, split"]["errors"].values())
    assert f"| float16, split | 2 | {errors} |  |" in text
