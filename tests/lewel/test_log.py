"""What a run says about its speed, and what is kept of a log."""

from __future__ import annotations

import json

import pytest

from lewel import log


def test_images_per_second_and_the_share_of_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])

    def batches():
        for _ in range(3):
            now[0] += 1  # a second to make a batch
            yield object()

    clock = log.Clock(batch_size=16)
    for _ in clock.waiting(batches()):
        now[0] += 3  # and three to train on it
    assert clock.lap() == pytest.approx({"images_per_s": 3 * 16 / 12, "data_wait": 0.25})
    now[0] += 5
    assert clock.lap() == {"images_per_s": 0, "data_wait": 0}  # a lap starts anew


def test_records_up_to_the_step_are_kept_and_a_cut_off_line_is_not(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"kind": "step", "step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"kind": "st')
    assert [record["step"] for record in log.read(path)] == [1, 2, 3]
    log.RunLog(path, total_steps=9, first_step=2).close()
    assert path.read_text().splitlines() == lines[:2]
    log.RunLog(path, total_steps=9, first_step=0).close()
    assert path.read_text() == ""


def test_a_log_is_carried_into_another_folder_and_not_over_itself(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    log.carry_over(old, new)
    assert not new.exists()
    old.write_text("line")
    log.carry_over(old, new)
    log.carry_over(old, old)
    assert (old.read_text(), new.read_text()) == ("line", "line")
