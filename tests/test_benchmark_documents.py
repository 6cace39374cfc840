"""Documents and pictures that quote measurements: made from the data, and found out when they disagree with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from benchmarks import __main__, recording
from benchmarks.documents import plot, quotes, tables, training
from benchmarks.gpu import session
from benchmarks.op.cases import QUICK, Case
from benchmarks.op.cost import MODES, Rates, floor_seconds, least
from benchmarks.op.measure import Row

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
    monkeypatch.setattr(recording, "ROOT", tmp_path)
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
    put(path, records)
    return path


@pytest.fixture
def papers(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two documents that must have one table of speed each, and have an empty one."""
    monkeypatch.setattr(quotes, "DOCUMENTS", dict.fromkeys(quotes.DOCUMENTS, ("speed",)))
    (tmp_path / "docs").mkdir()
    for name in quotes.DOCUMENTS:
        (tmp_path / name).write_text(f"before\n{BLOCK.format('')}\nafter\n")
    return tmp_path


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def put(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


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
        "\\* outside the error budget of `docs/backends.md`: no speed-up of its own. "
        "Rows that lose: cpu at small nchw fp32, 0.80 x eager; cpu at small nchw fp32, 0.60 x compile."
    )


def test_a_mean_is_withheld_where_a_row_has_no_ratio(toy: Path) -> None:
    records = lines_of(toy)
    for record in records:
        if record["provider"] == "cpu" and "'small'" in str(record["case"]):
            record |= {"problem": "wrong", "speedups": {}, "percent_of_floor": None}
    put(toy, records)
    *_, mean, _, _ = tables.speed(device="toy", suite="quick", mode="forward").splitlines()
    assert "**geometric mean**" in mean
    assert "****" in mean


@pytest.mark.parametrize("provider", ["eager", "compile", "cpu"])
def test_a_row_that_a_killed_run_did_not_write_is_an_empty_cell(toy: Path, provider: str) -> None:
    floor = tables.speed(device="toy", suite="quick", mode="forward").splitlines()[5].split("|")[7].strip()
    put(toy, [r for r in lines_of(toy) if r["provider"] != provider or "'small'" not in str(r["case"])])
    lines = tables.speed(device="toy", suite="quick", mode="forward").splitlines()
    first, second, mean = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:7])
    assert "" not in first
    place = 3 + ["eager", "compile", "cpu"].index(provider)
    assert [i for i in range(3, 7) if not second[i]] == [place]
    assert second[6] == floor
    if provider == "cpu":
        assert second[7:] == ["", "", ""]
        assert mean[7:9] == ["****", "****"]  # not of other cases than its neighbours'


@pytest.mark.parametrize(("busy", "told"), [(None, False), (0.5, False), (1.24, True)])
def test_a_busy_machine_is_told(busy: float | None, told: bool) -> None:
    text = recording.circumstances([{**CONTEXT, "busy_cores": busy}])
    assert text.endswith(", commit abcdef0" + ", while others kept 1.2 cores busy" * told)
    assert recording.circumstances([CONTEXT]).endswith("abcdef0")


def test_a_document_is_stale_when_a_number_in_it_or_in_the_data_changes(
    toy: Path, papers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(quotes.stale(papers)) == len(quotes.DOCUMENTS)
    quotes.write(papers)
    assert quotes.stale(papers) == []
    readme = papers / "README.md"
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    capsys.readouterr()
    readme.write_text(text.replace("| 2.00 |", "| 2.50 |"))
    assert quotes.stale(papers) == [readme]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{readme}: line 7 is"
    assert ("| 2.50 |" in told[1], told[2], "| 2.00 |" in told[3]) == (True, "and the data say", True)
    readme.write_text(text.replace("after\n", ""))  # outside the block
    assert quotes.stale(papers) == []
    readme.write_text(text)
    toy.write_text(toy.read_text().replace('"p50": 4.0', '"p50": 4.5'))
    assert len(quotes.stale(papers)) == len(quotes.DOCUMENTS)


def test_a_document_that_lacks_a_block_is_stale(papers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quotes.write(papers)
    readme = papers / "README.md"
    text = readme.read_text()
    other = (papers / "docs/performance.md").read_text()
    for broken in ("", text.replace("<!-- end", "<!-- End"), text.replace("generated: speed", "generated: memory")):
        readme.write_text(broken)
        assert quotes.stale(papers) == [readme]
        assert "README.md lacks a whole block <!-- generated: ... --> of speed" in capsys.readouterr().err
        (papers / "docs/performance.md").write_text(other.replace("| 2.00 |", "| 2.50 |"))
        with pytest.raises(ValueError, match=r"README.md lacks a whole block .* of speed"):
            quotes.write(papers)
        assert readme.read_text() == broken
        assert "| 2.50 |" in (papers / "docs/performance.md").read_text()  # nothing is written
        (papers / "docs/performance.md").write_text(other)
    readme.write_text(text)
    assert quotes.stale(papers) == []


def test_a_block_counts_as_often_as_it_is_expected(papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quotes.write(papers)
    monkeypatch.setitem(quotes.DOCUMENTS, "README.md", ("speed", "speed"))
    assert quotes.stale(papers) == [papers / "README.md"]
    (papers / "README.md").write_text(2 * (papers / "README.md").read_text())
    assert quotes.stale(papers) == []


def test_the_documents_have_the_blocks_that_they_must_have() -> None:
    for name, expected in quotes.DOCUMENTS.items():
        found = [block[2] for block in quotes.BLOCK.finditer((quotes.ROOT / name).read_text())]
        assert sorted(found) == sorted(expected), name


def test_a_document_without_results_is_stale(toy: Path, papers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quotes.write(papers)
    toy.unlink()
    assert quotes.stale(papers) == [papers / name for name in quotes.DOCUMENTS]
    assert "README.md: there are no results of suite quick on toy; known devices: [" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there are no results of suite quick on toy"):
        quotes.write(papers)


def test_a_linked_picture_must_exist(papers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quotes.write(papers)
    path = papers / "docs/performance.md"
    text = path.read_text()
    path.write_text(text + "![Elsewhere](https://example.com/a.png) ![It](pictures/it.png) [again](pictures/it.png)\n")
    assert quotes.stale(papers) == [path]
    assert "docs/performance.md: the picture pictures/it.png does not exist" in capsys.readouterr().err
    (papers / "docs/pictures").mkdir()
    (papers / "docs/pictures/it.png").touch()
    assert quotes.stale(papers) == []
    assert not capsys.readouterr().err


def test_a_picture_that_no_data_stand_behind_is_stale(
    toy: Path, papers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quotes.write(papers)
    folder = papers / quotes.PICTURES
    written = plot.write("toy", folder)
    assert folder == papers / plot.FOLDER.relative_to(quotes.ROOT)
    assert quotes.stale(papers) == []
    orphan = written[0].rename(folder / "toy-scaling.png")
    assert quotes.stale(papers) == [orphan]
    assert "toy-scaling.png: no results stand behind this picture; delete it" in capsys.readouterr().err
    toy.unlink()
    assert set(quotes.stale(papers)) >= {orphan, written[1]}


def test_a_block_that_nobody_generates_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="there is no generator 'sped'"):
        quotes.regenerate("<!-- generated: sped -->\n<!-- end of generated -->")


def test_parts_that_an_older_row_does_not_know_are_empty_cells(toy: Path) -> None:
    case = {"run": "r", "encoder": "tiny", "image_size": 32, "batch": 16, "precision": "fp32"}
    made = {"case": case, "samples": 2, "p50": 5.0, **CONTEXT, "suite": "parts"}
    old = {**made, "shares": {"backward": 60.0, "rest": 40.0}}
    new = {**made, "case": {**case, "run": "s"}, "shares": {"backward": 50.0, "probe": 20.0, "rest": 30.0}}
    for records in ([old, new], [new, old]):
        put(toy.with_name("parts.jsonl"), records)
        header, _, *rows = training.parts("toy").splitlines()[2:]
        assert header == "| run | encoder | batch | precision | ms | backward | probe | rest |"
        assert {row.split("|")[1].strip(): row.split("|")[6:9] for row in rows} == {
            "r": [" 60.00 ", "  ", " 40.00 "],
            "s": [" 50.00 ", " 20.00 ", " 30.00 "],
        }


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


def test_pictures_are_stale_when_what_is_said_about_the_data_changes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = plot.write("toy", tmp_path / "pictures")
    monkeypatch.setattr(plot, "circumstances", lambda records: "somewhere")
    assert plot.stale("toy", tmp_path / "pictures") == written


def test_a_picture_with_other_pixels_is_stale(toy: Path, tmp_path: Path) -> None:
    first, second = plot.write("toy", tmp_path)
    with Image.open(first) as image:
        image.load()
    metadata = PngImagePlugin.PngInfo()
    for key in (plot.KEY, plot.PIXELS):
        metadata.add_text(key, image.info[key])
    image.save(first, pnginfo=metadata, compress_level=1)
    assert plot.stale("toy", tmp_path) == []  # packed anew, and looks the same
    image.putpixel((3, 3), (255, 0, 0, 255))
    image.save(first, pnginfo=metadata)
    assert plot.stale("toy", tmp_path) == [first]
    first.write_bytes(second.read_bytes())
    assert plot.stale("toy", tmp_path) == [first]  # of the same records, but not this picture


@pytest.mark.parametrize("kept", [0, 4, 30, 0.1, 0.5, 0.99])
def test_a_picture_that_cannot_be_read_is_stale(toy: Path, tmp_path: Path, kept: float) -> None:
    path, _ = plot.write("toy", tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    assert plot.stale("toy", tmp_path) == [path]
    path.write_bytes(whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :])
    assert plot.stale("toy", tmp_path) == [path]


def test_curves_outside_the_error_budget_are_marked(toy: Path) -> None:
    records = []
    for n in (32, 64, 128):
        case = Case(replace(QUICK[0], N=n), "nchw", "fp32", axis="N")
        wrong = "pooled is too far from the float64 truth" if n == 64 else None
        records += [row(case, plot.BOTH, "eager", n), row(case, plot.BOTH, "cpu", n / 2, problem=wrong)]
    figure = plot.scaling(records)
    eager, cpu, hollow, floor = figure.axes[0].lines
    assert (eager.get_linestyle(), cpu.get_linestyle(), floor.get_linestyle()) == ("-", "--", ":")
    assert list(cpu.get_xdata()) == [32, 64, 128]
    assert (list(hollow.get_xdata()), hollow.get_markerfacecolor(), hollow.get_linestyle()) == ([64], "white", "None")
    (names,) = [axis.get_legend().get_texts() for axis in figure.axes if axis.get_legend()]
    assert [name.get_text() for name in names] == ["eager", "cpu (hollow: outside the error budget)", "floor"]
    for record in records:
        record["case"]["axis"] = "K"  # the first of the four panels is empty
    names = plot.scaling(records).axes[0].get_legend().get_texts()
    assert [name.get_text() for name in names] == ["eager", "cpu (hollow: outside the error budget)", "floor"]


def test_memory_outside_the_error_budget_is_drawn(toy: Path) -> None:
    for axis in plot.memory(recording.latest("toy", "quick")).axes:
        bars = {bar.get_label(): [patch.get_height() for patch in bar] for bar in axis.containers}
        assert set(bars) == {"eager", "compile", "cpu"}
        assert bars["compile"] == bars["cpu"] != [0, 0]


def test_check_fails_where_documents_are_stale(
    papers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quotes, "ROOT", tmp_path)
    monkeypatch.setattr(quotes.stale, "__defaults__", (tmp_path,))
    monkeypatch.setattr(quotes.write, "__defaults__", (tmp_path,))
    for function in (plot.stale, plot.write):
        monkeypatch.setattr(function, "__defaults__", (tmp_path / quotes.PICTURES,))
    for arguments, status in ((["plot", "--check"], 1), (["plot"], 0), (["plot", "--check"], 0)):
        with pytest.raises(SystemExit) as done:
            __main__.main(arguments)
        assert done.value.code == status
    assert "README.md disagrees with benchmarks/results; run `make docs`" in capsys.readouterr().err


def test_a_session_goes_on_after_a_part_that_fails_or_hangs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    parts = [
        session.Part("fails", 1, ("-c", "raise SystemExit(3)")),
        session.Part("hangs", 0.05, ("-c", "import time; print('begun'); time.sleep(60)")),
        session.Part("cannot", 1, left_out="there is no such machine"),
        session.Part("works", 1, ("-c", "print('done')")),
    ]
    assert session.run(parts, "cpu") == 1
    printed = capfd.readouterr().out
    assert "failed with exit status 3" in printed
    assert "begun\n" in printed
    assert "stopped after 3 s; what it had recorded is kept" in printed
    assert "left out: there is no such machine" in printed
    assert "done" in printed
    assert session.run(parts[2:], "cpu") == 0


def test_a_part_has_the_environment_that_it_asks_for(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import os; print('told', os.environ.get('LEWEL_TOLD'), 'path' if os.environ.get('PATH') else '')"
    told = session.Part("told", 1, ("-c", code), environment=(("LEWEL_TOLD", "this"),))
    assert session.run([told, session.Part("not told", 1, ("-c", code))], "cpu") == 0
    assert [x for x in capfd.readouterr().out.splitlines() if x.startswith("told ") and "path" in x] == [
        "told this path", "told None path"
    ]  # fmt: skip


def test_the_sanitizer_watches_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.shutil, "which", lambda name: f"/usr/bin/{name}")
    parts = [part for part in session.check("cuda") if "sanitizer" in part.name]
    assert [part.command[1:3] for part in parts] == [("--tool", "memcheck"), ("--tool", "racecheck")]
    for part in parts:
        assert part.command[part.command.index("-k") + 1] == "tall and (triton or cuda)"
        assert dict(part.environment) == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def test_the_speed_after_tuning_is_measured_as_before() -> None:
    for device in ("cpu", "cuda"):
        assert session.tune(device)[-1] == session.check(device)[-1]


def test_a_part_for_which_no_time_is_left_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "LEAST_SECONDS", 60 * session.MINUTES)
    assert session.run([session.Part("late", 1, ("-c", "print('done')"))], "cpu") == 1
    printed = capfd.readouterr().out
    assert "not begun: the parts before it took the 10 minutes" in printed
    assert "done" not in printed


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["check", "tune", "report"])
def test_a_session_fits_its_ten_minutes(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.shutil, "which", lambda name: f"/usr/bin/{name}")
    parts = getattr(session, name)(device)
    assert sum(part.minutes for part in parts) <= session.MINUTES
    assert [part.name for part in parts if not part.left_out]
