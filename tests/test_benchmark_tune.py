"""The tuner of the triton backend: what it takes, what it refuses, what it writes. The kernels run interpreted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__
from benchmarks.gpu import tune, tune_compile, tune_space
from benchmarks.gpu.tune import Tuner
from benchmarks.gpu.tune_space import Choice, Problem, problems

pytest.importorskip("triton")
KEY = "maps_bwd bf16 K64"
FAST, SLOW = Choice((("BLOCK_R", 16),), 4, 2), Choice((("BLOCK_R", 32),), 4, 2)
FAULT = "maps_bwd_kernel spills registers: 8 bytes stored"


class Compiles:
    """Finds nothing wrong but with the choices that are named; remembers what it was asked."""

    def __init__(self, *faulty: Choice) -> None:
        self.faulty = faulty
        self.asked: dict[str, list[Choice]] = {}

    def warm(self, request: object) -> Future[list[list[str]]]:
        done: Future[list[list[str]]] = Future()
        done.set_result([])
        return done

    def submit(self, problem: Problem, choices: Sequence[Choice]) -> list[tune_compile.Asked]:
        self.asked[problem.key] = list(choices)
        return [(choice, lambda _, choice=choice: [FAULT] * (choice in self.faulty)) for choice in choices]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[Choice, list[int]]:
    """A clock by which FAST takes half the time of everything else; the choices that were timed, with their N."""
    seen: dict[Choice, list[int]] = {}

    def seconds_of(every: dict[str, Any], device: str, seconds: float) -> dict[str, list[float]]:
        (launch,) = every["candidate"][0]
        choice = tune.choice_of([launch], launch.config.key)
        seen.setdefault(choice, []).append(launch.arguments["R"] // launch.arguments["P"])
        return {"present": [4e-6] * 3, "candidate": [2e-6 if choice == FAST else 5e-6] * 3}

    monkeypatch.setattr(tune, "seconds_of", seconds_of)
    return seen


@pytest.fixture
def tuner(tmp_path: Path) -> Tuner:
    return Tuner("cpu", 90, tmp_path / "sm90.json", "Toy 3000, 2026-01-02, commit abcdef0", batches=(1, 2))


def problem_of(key: str, *dtypes: str) -> list[Problem]:
    return [p for p in problems(tune_space.TINY, dtypes or ["bf16"], 90) if p.twin == " ".join(key.split()[::2])]


def test_what_is_faster_is_written_with_its_provenance(tuner: Tuner, timed: dict[Choice, list[int]]) -> None:
    assert tuner.path is not None
    tune.write(tuner.path, "sm90", {"pool bf16": SLOW.entry("older"), KEY: SLOW.entry("older")})
    (found,) = tuner.run(problem_of(KEY), Compiles())  # type: ignore[arg-type]
    assert found.choice == FAST
    assert set(timed) == set(problem_of(KEY)[0].choices()) - {found.present}
    assert timed[FAST] == [1, 2, 1, 2]  # and again, before it is believed
    table = json.loads(tuner.path.read_text())
    assert table["architecture"] == "sm90"
    assert list(table["entries"]) == [KEY, "pool bf16"]
    assert table["entries"]["pool bf16"] == SLOW.entry("older")
    assert table["entries"][KEY] == FAST.entry(
        "Toy 3000, 2026-01-02, commit abcdef0: 4.0 us before and 2.0 us after at N=2, x 2.00 over N=1, 2, "
        f"best of {len(timed)} timed, 0 dropped"
    )


def test_what_gains_less_than_three_percent_changes_nothing_but_the_provenance(
    tuner: Tuner, timed: dict[Choice, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "GAIN", 2.01)
    (found,) = tuner.run(problem_of(KEY), Compiles())  # type: ignore[arg-type]
    assert found.choice == found.present != FAST
    assert tuner.path is not None
    entry = json.loads(tuner.path.read_text())["entries"][KEY]
    assert entry == found.present.entry(entry["provenance"])
    assert entry["provenance"].endswith(f"4.0 us at N=2, kept against {len(timed)} timed, 0 dropped")


@pytest.mark.parametrize("spoil", [lambda x: x.mul_(1.1), lambda x: x[..., -1:].fill_(float("nan"))])
def test_a_choice_with_other_results_is_refused(
    tuner: Tuner, timed: dict[Choice, list[int]], spoil: Callable[[torch.Tensor], object],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def planned(call: Any, key: str, plan: Any = tune.planned) -> Any:
        stage = plan(call, key)
        if tune.choice_of(stage, key) == FAST:
            spoil(stage[-1].arguments["p_dm"])
        return stage

    monkeypatch.setattr(tune, "planned", planned)
    (found,) = tuner.run(problem_of(KEY), Compiles())  # type: ignore[arg-type]
    assert FAST not in timed
    assert (found.choice, found.dropped) == (found.present, 1)
    assert f"{KEY}: {FAST} is dropped: Wrong: p_dm differs" in capsys.readouterr().out


def test_what_the_compiler_faults_is_never_run(
    tuner: Tuner, timed: dict[Choice, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = tuner.run(problem_of(KEY), Compiles(FAST))  # type: ignore[arg-type]
    assert FAST not in timed
    assert (found.choice, found.dropped) == (found.present, 1)
    assert f"{FAST} is dropped: {FAULT}" in capsys.readouterr().out


def test_a_time_limit_keeps_what_was_found(
    tuner: Tuner, timed: dict[Choice, list[int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tuner.path
    assert path is not None
    monkeypatch.setattr(Tuner, "left", lambda _: -1.0 if path.exists() else 60.0)
    every = [p for p in problems(tune_space.TINY, ["bf16"], 90) if p.key.startswith("maps_bwd")]
    assert len(every) > 1
    found = tuner.run(every, Compiles())  # type: ignore[arg-type]
    assert [new.problem for new in found] == every[:1]
    assert list(json.loads(path.read_text())["entries"]) == [every[0].key]
    assert every[1].key in capsys.readouterr().out.splitlines()[-1]


def test_no_time_at_all_writes_nothing(tuner: Tuner, timed: dict[Choice, list[int]]) -> None:
    tuner.deadline = 0.0
    assert tuner.run(problem_of(KEY), Compiles()) == []  # type: ignore[arg-type]
    assert tuner.path is not None
    assert not tuner.path.exists()


def test_the_second_dtype_tries_what_was_best_in_the_first(tuner: Tuner, timed: dict[Choice, list[int]]) -> None:
    compiler = Compiles()
    first, second = tuner.run(problem_of(KEY, "bf16", "fp16"), compiler)  # type: ignore[arg-type]
    assert (first.problem.key, second.problem.key) == (KEY, KEY.replace("bf16", "fp16"))
    assert compiler.asked[second.problem.key] == [timed.choice for timed in first.timed[: tune.TWINS]]
    assert compiler.asked[second.problem.key][0] == FAST == second.choice


def test_what_is_timed_is_a_kernel_with_what_its_configuration_decides_about() -> None:
    """Statistics where a tile does not hold all positions, the sums of parts; every launch belongs to one key."""
    from benchmarks.compiled.requests import launches_of
    from lewel_kernels.triton import configs

    every = {p.key: p for p in problems(tune_space.TINY, ["bf16"], 90)}
    for problem in every.values():
        launches = launches_of(problem.request, 90)
        assert sum(map(len, tune_space.stages(launches).values())) == len(launches)
    key = next(key for key in every if key.startswith("pool bf16 rows P128"))
    smaller = Choice((("BLOCK_P", 64), ("BLOCK_C", 64), ("CHUNKS", 2)), 4, 2)
    with configs.in_force("sm90", key, smaller.entry()):
        stage = tune_space.stages(launches_of(every[key].request, 90))[key]
    assert [tune_space.kernel_of(launch.config.key) for launch in stage] == ["softmax", "pool"]
    assert [len(tune_space.stages(launches_of(every[key].request, 90))[key])] == [1]  # not in force any more


def test_results_are_compared_whatever_the_number_of_parts() -> None:
    """The choices differ in tiles of positions, and so in how many parts delta has."""
    (problem,) = (p for p in problems(tune_space.TINY, ["bf16"], 90) if p.key.startswith("pool_bwd bf16 rows P128"))
    call = tune.draw(replace(problem.request, N=1), "cpu", 90, 0)
    dtype = call.call.dtype
    present = tune.planned(call, problem.key)
    from lewel_kernels.triton import configs

    with configs.in_force("sm90", problem.key, Choice((("BLOCK_P", 64), ("BLOCK_C", 32)), 4, 2).entry()):
        candidate = tune.planned(call, problem.key)
    assert len(candidate) > len(present)
    assert tune.difference(present, candidate, dtype) is None
    (launch,) = (x for x in candidate if x.config.key == problem.key)
    launch.arguments["p_delta"][-1].zero_()
    assert "p_delta differs" in str(tune.difference(present, candidate, dtype))


def test_the_space_of_every_key_is_small_and_other_than_what_is_in_force() -> None:
    every = problems(tune_space.SHAPES, ["bf16", "fp16"], 90)
    assert len(every) == 2 * 23
    assert {tune_space.kernel_of(p.key) for p in every} == set(tune_space.SPACE)
    for problem in every:
        choices = problem.choices()
        assert 7 <= len(choices) == len(set(choices)) <= 22, problem.key
        assert all(size & (size - 1) == 0 for choice in choices for _, size in choice.blocks)
    dtypes, important = zip(*((p.request.dtype, p.request.name in tune_space.FIRST) for p in every), strict=True)
    assert dtypes == ("bf16",) * 23 + ("fp16",) * 23
    assert list(important[:23]) == sorted(important[:23], reverse=True)


def test_what_spills_is_found_by_the_compiler() -> None:
    """In a process of its own, though kernels are interpreted in this one."""
    (problem,) = (p for p in problems(tune_space.SHAPES, ["bf16"], 90) if p.key == "project bf16 rows K256")
    spills, fits = (
        Choice((("BLOCK_R", 128), ("BLOCK_K", 256), ("BLOCK_D", 64)), warps, 3) for warps in (4, 8)
    )  # fmt: skip
    with tune_compile.Compiler(90, 1) as compiler:
        (_, faults), (_, none) = compiler.submit(problem, [spills, fits])
        assert "spills registers" in faults(200.0)[0]
        assert none(200.0) == []


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
def test_tables_are_written_as_they_are(arch: str, tmp_path: Path) -> None:
    table = tune.table_of(arch)
    path = tmp_path / table.name
    path.write_text(table.read_text())
    tune.write(path, arch, {})
    assert path.read_text() == table.read_text()


@pytest.mark.parametrize(
    ("device", "interpreted", "capability", "told"),
    [
        ("cpu", True, None, None),
        ("cpu", False, None, "TRITON_INTERPRET=1 python -m benchmarks tune --device cpu"),
        ("cuda:0", True, None, "unset it to tune on a GPU"),
        ("cuda:0", False, (8, 0), None),
        ("cuda:0", False, (9, 0), None),
        ("cuda:0", False, (8, 6), "there are tables for sm_80 and sm_90; this GPU is sm_86"),
        ("cuda:0", False, (10, 0), "this GPU is sm_100"),
    ],
)
def test_where_nothing_can_be_tuned_a_sentence_says_so(
    device: str, interpreted: bool, capability: tuple[int, int] | None, told: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lewel_kernels.triton.INTERPRETED", interpreted)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = tune.refusal(device)
    assert found is None if told is None else told in str(found)


def test_a_rehearsal_writes_no_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tables = {path: path.read_text() for path in map(tune.table_of, ("sm80", "sm90"))}
    monkeypatch.setattr("benchmarks.heap.keep_heap", lambda: True)  # not in the process of the other tests
    monkeypatch.setattr(tune_compile, "Compiler", lambda *_: NotCompiled())
    monkeypatch.setattr(tune, "TINY_BATCHES", (1,))
    monkeypatch.setattr(tune, "TINY_CHOICES", 1)
    with pytest.raises(SystemExit) as done:
        __main__.main(["tune", "--device", "cpu", "--shape", "M", "--dtype", "bf16"])
    assert done.value.code is None
    assert {path: path.read_text() for path in tables} == tables
    assert " of 9 keys were tried" in capsys.readouterr().out


class NotCompiled(Compiles):
    def __enter__(self) -> NotCompiled:
        return self

    def __exit__(self, *_: object) -> None:
        pass
