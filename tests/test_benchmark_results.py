"""Measurements on disk: written whole, read in spite of broken lines, and which of several runs counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recording
from benchmarks.documents import tables
from benchmarks.op.cases import QUICK, Case
from benchmarks.op.measure import Row

CONTEXT: dict[str, Any] = {
    "suite": "quick", "run": "2026-01-02T03:04:05+00:00", "date": "2026-01-02T03:04:05+00:00", "device": "Toy 3000",
    "driver": None, "instructions": "AVX9", "threads": 7, "commit": "abcdef0123", "dirty": False,
    "versions": {"torch": "2.11.0+cu130"},
}  # fmt: skip


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the quick suite on a machine that nobody has."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    path = tmp_path / "toy" / "quick.jsonl"
    path.parent.mkdir()
    return path


def put(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(CONTEXT | record) + "\n" for record in records))


def chosen() -> set[str]:
    return {record["run"] for run in recording.runs("toy", "quick")[-1:] for record in run}


def grid(run: str, *, cases: int, inner: int, name: str = "provider", **other: object) -> list[dict[str, Any]]:
    """A run of some cases, each with as many values of a field."""
    return [{"run": run, "case": case, name: str(i), **other} for case in range(cases) for i in range(inner)]


def test_a_batch_of_rows_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    recorder = recording.Recorder("quick", "cpu", CONTEXT)
    written, write = [], os.write
    monkeypatch.setattr(os, "write", lambda file, data: written.append(data) or write(file, data))
    recorder.append({"case": i} for i in range(3))
    other = recording.Recorder("quick", "cpu", CONTEXT)
    other.append([{"case": 3}])
    recorder.append([{"case": 4}])
    assert [data.count(b"\n") for data in written] == [3, 1, 1]
    assert b"".join(written) == recorder.path.read_bytes()
    assert [json.loads(line)["case"] for line in recorder.path.read_text().splitlines()] == [0, 1, 2, 3, 4]
    monkeypatch.setattr(os, "write", lambda file, data: 3)
    with pytest.raises(OSError, match="only a part of the rows could be written"):
        recorder.append([{"case": 5}])


def test_a_line_that_was_cut_short_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    recorder = recording.Recorder("quick", "cpu", CONTEXT)
    recorder.append([{"case": 1}])
    with recorder.path.open("ab") as file:
        file.write(b'{"case": 2}\n7\n\xff\0\n{"run": "2026')
    recorder.append([{"case": 3}])
    for _ in range(2):
        assert [record["case"] for record in recording.read(recorder.path.parent.name, "quick")] == [1, 3]
    told = [f"{recorder.path}:{n} is left out, for it is no record of a run." for n in (2, 3, 4, 5)]
    assert capsys.readouterr().err.splitlines() == told


FULL, PART = (2, 2), (2, 1)


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        ({"a": (FULL, 0.0), "b": (PART, 0.0)}, "a"),
        ({"a": (PART, 0.0), "b": (FULL, 0.0)}, "b"),
        ({"a": (FULL, 0.0), "b": (FULL, None)}, "b"),
        ({"a": (FULL, None), "b": (FULL, 0.5)}, "b"),
        ({"a": (PART, 0.0), "b": (FULL, 0.6)}, "a"),
        ({"a": (FULL, 0.6), "b": (PART, 0.0)}, "b"),
        ({"a": (FULL, 0.6), "b": (FULL, 3.0), "c": (PART, 0.7)}, "b"),
        ({"b": (FULL, 0.0), "a": (FULL, 0.0)}, "b"),
    ],
)
@pytest.mark.parametrize("inner", ["provider", "mode", "launch", "call", "method", "variant"])
def test_the_run_that_counts(
    toy: Path, inner: str, runs: dict[str, tuple[tuple[int, int], float | None]], wanted: str
) -> None:
    put(toy, [
        record for run, ((cases, count), busy) in runs.items()
        for record in grid(run, cases=cases, inner=count, name=inner, busy_cores=busy)
    ])  # fmt: skip
    assert chosen() == {wanted}


def test_all_cases_count_for_more_than_more_providers(toy: Path) -> None:
    put(toy, grid("a", cases=12, inner=4) + grid("b", cases=10, inner=5))
    assert chosen() == {"a"}
    put(toy, grid("a", cases=12, inner=4) + grid("b", cases=12, inner=5))
    assert chosen() == {"b"}


def test_what_could_not_run_or_is_there_twice_does_not_fill_a_run(toy: Path) -> None:
    full, later = (grid(run, cases=3, inner=2) for run in "ab")
    put(toy, full + later[:-1] + [{**later[-1], "samples": 0}])
    assert chosen() == {"a"}
    put(toy, full + later[:-1] + later[:3])
    assert chosen() == {"a"}
    put(toy, full + later)
    assert chosen() == {"b"}


def numbers(run: str, value: float, **other: object) -> dict[str, Any]:
    return {"run": run, "case": 1, "p50": value, "speedups": {"eager": 2 * value}, "peak_bytes": None, **other}


def test_repetitions_count_by_the_median_of_each_number(toy: Path) -> None:
    put(toy, [numbers("a", 3.0), numbers("b", 1.0), numbers("c", 9.0, problem=None)])
    assert [[r["run"] for r in run] for run in recording.runs("toy", "quick")] == [["a"], ["b"], ["c"]]
    (found,) = recording.latest("toy", "quick")
    assert (found["run"], found["repetitions"], found["case"]) == ("c", 3, 1)
    assert (found["p50"], found["speedups"], found["peak_bytes"]) == (3.0, {"eager": 6.0}, None)
    assert (found["dirty"], found["versions"]) == (False, CONTEXT["versions"])
    put(toy, [numbers("a", 3.0)])
    assert recording.latest("toy", "quick") == [CONTEXT | numbers("a", 3.0)]


def test_a_problem_in_one_repetition_is_a_problem(toy: Path) -> None:
    put(toy, [numbers("a", 3.0, problem="too far"), numbers("b", 1.0, problem=None)])
    (found,) = recording.latest("toy", "quick")
    assert (found["problem"], found["speedups"], found["p50"]) == ("too far", {}, 2.0)
    assert "overhead" not in found


@pytest.mark.parametrize(
    "other",
    [
        {"commit": "fedcba"}, {"threads": 2}, {"versions": {"torch": "2.12.0"}}, {"driver": "600"},
        {"busy_cores": 1.0}, {"provider": "cpu"}, {"heap_kept": False}, {"device": "Toy 3001"},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_a_run_in_other_circumstances_is_no_repetition(toy: Path, other: dict[str, Any]) -> None:
    put(toy, [numbers("a", 3.0, **other), numbers("b", 1.0)])
    assert [record["p50"] for record in recording.latest("toy", "quick")] == [1.0]


@pytest.mark.parametrize("unknown", [{"dirty": True}, {"commit": None}], ids=["dirty", "no commit"])
def test_runs_of_unknown_code_are_no_repetitions(toy: Path, unknown: dict[str, Any]) -> None:
    put(toy, [numbers("a", 3.0, **unknown), numbers("b", 1.0, **unknown)])
    assert [record["p50"] for record in recording.latest("toy", "quick")] == [1.0]


def test_a_table_of_repetitions_tells_how_far_they_differ(toy: Path) -> None:
    case = Case(QUICK[0], "nchw", "fp32")
    records = []
    for run, ratio in (("a", 2.0), ("b", 2.5), ("c", 2.2)):
        for provider, speedup in (("eager", 1.0), ("cpu", ratio)):
            row = Row(case, "forward", provider, p50=4.0, samples=9, speedups={"eager": speedup})
            records.append({"run": run, **json.loads(json.dumps(row, default=lambda x: x.__dict__))})
    put(toy, records)
    text = tables.speed("toy", "quick", "forward")
    assert "commit abcdef0, medians over 3 runs; medians" in text
    assert "| **2.20** |" in text
    assert text.endswith("No row loses. From run to run a ratio differed by up to 25 %.\n")
    put(toy, records[:2])
    assert "run" not in tables.speed("toy", "quick", "forward")
