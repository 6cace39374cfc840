"""A table from what was asked to what is written: the rows that are left are run, and all are told of."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from lewel import distributed
from lewel.ablations import at_once, picture, refusals, results, rows
from lewel.ablations.at_once import Job, Phase
from lewel.ablations.rows import Asked, RowRun
from lewel.errors import LewelError
from lewel.run import preemption


def ablate(asked: Asked, jobs: int, tell: Callable[[str], None]) -> int:
    """Runs the rows that are not done, so many at once, and reports; the number of rows that failed.

    Raises LewelError before anything starts where a row cannot be run, and preemption.Stopped after a signal.
    """
    if jobs < 1:
        raise LewelError(f"--jobs must be at least 1, got {jobs}")
    if distributed.announced() > 1:
        raise LewelError("lewel ablate starts the processes of its rows itself; call it without torchrun")
    with preemption.at_once():  # where nothing runs a signal has nothing to wait for
        runs = rows.of(asked)
        refusals.check_recipes(runs)
        refusals.check_free(runs)
        left = [run for run in runs if not run.done()]
        refusals.check_places(left)
        tell(f"{len(runs)} runs in {asked.folder}, of which {len(runs) - len(left)} are done already")
        failed = at_once.work([_job(run) for run in left], jobs, tell)
        report(asked, tell)
    for name, line in failed.items():
        tell(f"failed: {name}: {line} (all of it in {asked.folder / name}.log)")
    return len(failed)


def report(asked: Asked, tell: Callable[[str], None]) -> None:
    """Writes tables and pictures of the rows that are there, and tells the tables.

    Raises LewelError where their folder is not there, or has runs of other recipes.
    """
    runs = rows.of(asked)
    if not asked.folder.is_dir():
        raise LewelError(
            f"there is nothing to report in {asked.folder}, which is no folder; run the rows, or name --out"
        )
    refusals.check_recipes(runs)
    for name, table in rows.of_tables(asked).items():
        found = results.of(table, runs)
        tell("\n" + results.write(table, found, asked))
        written = [asked.folder / f"{name}.md", asked.folder / f"{name}.json"]
        if table.pictured:
            written.append(asked.folder / f"{name}.png")
            picture.draw(written[-1], table, found, asked.data, asked.protocol)
        tell(f"wrote {', '.join(map(str, written))}")


def commands(asked: Asked) -> list[str]:
    """A line of the shell for each row that is not done: its training, unless that is done, and its evaluation.

    Raises LewelError where the folder of a row holds another run, or its images are not there.
    """
    runs = rows.of(asked)
    refusals.check_recipes(runs)
    left = {run.name: phases for run in runs if (phases := _phases(run))}
    refusals.check_places([run for run in runs if run.name in left])
    return [" && ".join(shlex.join(phase.command) for phase in phases) for phases in left.values()]


def _phases(run: RowRun) -> Sequence[Phase]:
    training = Phase("training", run.train, run.trained, whole=run.found() is None)
    evaluation = Phase("evaluation", run.evaluate, lambda: run.linear() is not None)
    if not run.trained():
        return [training, evaluation]
    return [] if evaluation.done() else [evaluation]


def _job(run: RowRun) -> Job:
    return Job(run.name, _phases(run), run.log, lambda: _result(run))


def _result(run: RowRun) -> str:
    linear, accuracy = results.accuracies(run)
    told = {"linear": linear, "kNN": accuracy}
    return ", ".join(f"{name} {value:.1f}" for name, value in told.items() if value is not None)
