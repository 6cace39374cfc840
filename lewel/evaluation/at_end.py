"""The linear accuracy that a run ends with: cached features, as `lewel eval linear` has them."""

from __future__ import annotations

from lewel import distributed
from lewel.evaluation import linear, outcome, subject
from lewel.evaluation.features import Tell
from lewel.run.session import Session

SETTINGS = linear.Settings()
KIND = linear.name(SETTINGS)


def evaluate(session: Session, tell: Tell | None = None) -> None:
    """Writes the result for the network as it is to the run's eval/; every process calls it.

    Where it is there already nothing is computed. Raises LewelError for whatever `lewel eval linear` does.
    """
    what = subject.of_session(session)
    try:
        if distributed.from_leader(lambda: accuracy(session) is not None):
            return
        without = what.check_classes()
        if without and session.world.leads:
            print(without, flush=True)
        settings = linear.plan(what, SETTINGS).settings
        values = linear.evaluate(what, SETTINGS, tell)
        outcome.write(what, KIND, settings, values, linear.KIND.published(what, SETTINGS))
    finally:
        session.method.train()


def accuracy(session: Session) -> float | None:
    """What was written for the last step of a session, in percent; None where nothing was."""
    step = session.steps_done
    found = [result for result in outcome.newest(session.folder, KIND) if result.get("step") == step]
    return found[-1]["accuracy"] if found else None
