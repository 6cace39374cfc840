"""The linear accuracy that a run ends with: cached features, as `lewel eval linear` has them."""

from __future__ import annotations

from typing import Any

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
        if distributed.from_leader(lambda: _found(what) is not None):
            return
        distributed.from_leader(lambda: outcome.check(what))
        without = what.check_classes()
        if without and session.world.leads:
            print(without, flush=True)
        settings = linear.plan(what, SETTINGS).settings
        values = linear.evaluate(what, SETTINGS, tell)
        outcome.write(what, KIND, settings, values, linear.KIND.published(what, SETTINGS))
    finally:
        session.method.train()


def accuracy(session: Session) -> float | None:
    """What was written for a session as it is, in percent, of the same weights, images and settings; None where nothing
    was. The first process calls it."""
    try:
        found = _found(subject.as_it_is(session))
    finally:
        session.method.train()
    return found["accuracy"] if found else None


def _found(what: subject.Subject) -> dict[str, Any] | None:
    if not outcome.there(what, KIND):
        return None
    return outcome.found(what, KIND, linear.plan(what, SETTINGS).settings)
