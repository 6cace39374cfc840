"""Documents and pictures that quote measurements: made from the data, and found out when they disagree with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import __main__, documents, plot, results, session, tables
from benchmarks.cases import QUICK, Case
from benchmarks.cost import MODES, Rates, floor_seconds, least
from benchmarks.measure import Row

RATES = Rates(copy=50e9, matmul=400e9)
CONTEXT = {
    "suite": "quick", "run": "2026-01-02T03:04:05+00:00", "date": "2026-01-02T03:04:05+00:00", "device": "Toy 3000",
    "driver": None, "instructions": "AVX9", "threads": 7, "commit": "abcdef0123", "dirty": False,
    "versions": {"torch": "2.11.0+cu130"},
}  # fmt: skip
BLOCK = "<!-- generated: speed device=toy suite=quick mode=forward -->\n{}<!-- end of generated -->"


def row(case: Case, mode: str, provider: str, ms: float, **other: object) -> dict[str, object]:
    cost = least(case, mode)
    made = Row(case, mode, provider, p20=ms, p50=ms, p80=ms, samples=9, floor=1e3 * floor_seconds(cost, RATES),
               saved_bytes=1 << 20, peak_bytes=3 << 20)  # fmt: skip
    for name, value in other.items():
        setattr(made, name, value)
    return {**CONTEXT, **json.loads(json.dumps(made, default=lambda x: x.__dict__))}


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of a machine that nobody has: eager 8 ms, compile out of budget, cpu once 4 ms and once 10."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    path = tmp_path / "toy" / "quick.jsonl"
    path.parent.mkdir()
    records = []
    for shape, ms in zip(QUICK[:2], (4.0, 10.0), strict=True):
        case = Case(shape, "nchw", "fp32")
        for mode in MODES:
            ratio = {"eager": 8 / ms, "compile": 6 / ms}
            records += [
                row(case, mode, "eager", 8.0, speedups={"eager": 1.0, "compile": 0.75}),
                row(case, mode, "compile", 6.0, problem="pooled is too far from the float64 truth"),
                row(case, mode, "cpu", ms, speedups=ratio, percent_of_floor=50.0),
            ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_table_of_speed(toy: Path) -> None:
    lines = tables.speed(device="toy", suite="quick", mode="forward").splitlines()
    assert lines[0] == (
        "forward: Toy 3000 with AVX9, 7 threads, torch 2.11.0, 2026-01-02, commit abcdef0; "
        "medians of interleaved samples."
    )
    first, second, mean = lines[4:7]
    assert first.startswith("| N=64 C=2048 D=2048 K=128 7x7 | nchw | fp32 | 8.00 | 6.00 \\* | 4.00 |")
    assert first.endswith("| 2.00 | 1.50 | 50 % |")
    assert second.endswith("| 0.80 | 0.60 | 50 % |")
    assert "**1.26** | **0.95**" in mean  # sqrt(2 * 0.8), sqrt(1.5 * 0.6)
    assert lines[-1] == (
        "\\* outside the error budget ([docs/backends.md](docs/backends.md)): no speed-up of its own. "
        "Rows that lose: cpu at small nchw fp32, 0.80 x eager; cpu at small nchw fp32, 0.60 x compile."
    )


def test_a_mean_is_withheld_where_a_row_has_no_ratio(toy: Path) -> None:
    records = [json.loads(line) for line in toy.read_text().splitlines()]
    for record in records:
        if record["provider"] == "cpu" and record["case"]["shape"]["name"] == "small":
            record |= {"problem": "wrong", "speedups": {}, "percent_of_floor": None}
    toy.write_text("".join(json.dumps(record) + "\n" for record in records))
    *_, mean, _, _ = tables.speed(device="toy", suite="quick", mode="forward").splitlines()
    assert "**geometric mean**" in mean
    assert "****" in mean


def test_a_document_is_stale_when_a_number_in_it_or_in_the_data_changes(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in documents.DOCUMENTS:
        (tmp_path / name).write_text(f"before\n{BLOCK.format('')}\nafter\n")
    assert len(documents.stale(tmp_path)) == len(documents.DOCUMENTS)
    documents.write(tmp_path)
    assert documents.stale(tmp_path) == []
    readme = tmp_path / "README.md"
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    readme.write_text(text.replace("| 2.00 |", "| 2.50 |"))
    assert documents.stale(tmp_path) == [readme]
    readme.write_text(text)
    toy.write_text(toy.read_text().replace('"p50": 4.0', '"p50": 4.5'))
    assert len(documents.stale(tmp_path)) == len(documents.DOCUMENTS)


def test_a_block_that_nobody_generates_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="there is no generator 'sped'"):
        documents.regenerate("<!-- generated: sped -->\n<!-- end of generated -->")


def test_results_that_are_not_there_are_a_sentence(toy: Path) -> None:
    with pytest.raises(ValueError, match=r"no results of suite paper on toy; known devices: \['toy'\]"):
        tables.speed(device="toy", suite="paper", mode="forward")


def test_pictures_are_stale_when_the_data_change(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert len(plot.stale("toy", folder)) == 2
    written = plot.write("toy", folder)
    assert [path.name for path in written] == ["toy-quick-speed.png", "toy-quick-memory.png"]
    assert all(path.stat().st_size > 5000 for path in written)
    assert plot.stale("toy", folder) == []
    toy.write_text(toy.read_text().replace('"p50": 4.0', '"p50": 4.5'))
    assert plot.stale("toy", folder) == written


def test_check_fails_where_documents_are_stale(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(documents.stale, "__defaults__", (tmp_path,))
    monkeypatch.setattr(documents.write, "__defaults__", (tmp_path,))
    for function in (plot.stale, plot.write):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / "pictures",))
    (tmp_path / "docs").mkdir()
    for name in documents.DOCUMENTS:
        (tmp_path / name).write_text(BLOCK.format(""))
    shutil.rmtree(tmp_path / "pictures", ignore_errors=True)
    for arguments, status in ((["plot", "--check"], 1), (["plot"], 0), (["plot", "--check"], 0)):
        with pytest.raises(SystemExit) as done:
            __main__.main(arguments)
        assert done.value.code == status
    assert "README.md disagrees with benchmarks/results; run `make docs`" in capsys.readouterr().err


def test_a_session_goes_on_after_a_part_that_fails_or_hangs(capfd: pytest.CaptureFixture[str]) -> None:
    parts = [
        session.Part("fails", 1, ("-c", "raise SystemExit(3)")),
        session.Part("hangs", 0.01, ("-c", "import time; time.sleep(60)")),
        session.Part("cannot", 1, left_out="there is no such machine"),
        session.Part("works", 1, ("-c", "print('done')")),
    ]
    assert session.run(parts, "cpu") == 1
    printed = capfd.readouterr().out
    assert "failed with exit status 3" in printed
    assert "stopped after 1 s; what it had recorded is kept" in printed
    assert "left out: there is no such machine" in printed
    assert "done" in printed
    assert session.run(parts[2:], "cpu") == 0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["check", "report"])
def test_a_session_fits_its_ten_minutes(name: str, device: str) -> None:
    parts = getattr(session, name)(device)
    assert sum(part.minutes for part in parts) <= session.MINUTES
    assert [part.name for part in parts if not part.left_out]
