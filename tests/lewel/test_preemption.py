"""Signals that announce the end of a run, in the process that gets them; test_killed.py has whole runs."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from lewel.data.loader import NOTICES
from lewel.run.preemption import Preemption, Stopped, at_once


@pytest.fixture(autouse=True)
def harmless():
    """Should a notice not be caught, it fails the test and not the process of the tests."""

    def fail(number, frame):
        raise AssertionError(f"{signal.Signals(number).name} was not caught")

    before = {notice: signal.signal(notice, fail) for notice in NOTICES}
    yield
    for notice, handler in before.items():
        signal.signal(notice, handler)


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice.name)
def test_a_notice_is_only_noted(notice):
    before = [signal.getsignal(each) for each in NOTICES]
    with Preemption() as preemption:
        assert preemption.by == ""
        os.kill(os.getpid(), notice)
        assert preemption.by == notice.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.by == notice.name  # the first
    assert [signal.getsignal(each) for each in NOTICES] == before


def test_a_second_ctrl_c_ends_at_once(capfd):
    with Preemption():
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err == "\nstopping after this step, and saving; Ctrl-C again ends at once\n"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("notice", sorted(set(NOTICES) - {signal.SIGINT}), ids=lambda notice: notice.name)
def test_ctrl_c_after_another_notice_is_a_first_one_and_the_next_a_second(notice, capfd):
    with Preemption() as preemption:
        os.kill(os.getpid(), notice)
        os.kill(os.getpid(), signal.SIGINT)
        assert "Ctrl-C again ends at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert preemption.by == notice.name


def test_what_was_ignored_before_stays_ignored():
    """nohup ignores SIGHUP for the run that it starts."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGHUP)
    assert preemption.by == ""


def test_another_thread_takes_no_signals():
    found = []

    def use():
        with Preemption() as preemption:
            found.append(preemption.by)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [""]


def test_of_an_evaluation_another_thing_is_true(capfd):
    with Preemption() as preemption:
        preemption.evaluates = True
        os.kill(os.getpid(), signal.SIGINT)
    said = capfd.readouterr().err
    assert said == "\nstopping after this evaluation; all is saved; Ctrl-C again ends at once\n"


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice.name)
def test_where_there_is_nothing_to_save_a_notice_ends_at_once(notice):
    before = [signal.getsignal(each) for each in NOTICES]
    with pytest.raises(Stopped) as stop, at_once():
        os.kill(os.getpid(), notice)
    assert stop.value.by == notice.name
    assert [signal.getsignal(each) for each in NOTICES] == before


def test_where_there_is_nothing_to_save_what_was_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with at_once():
        os.kill(os.getpid(), signal.SIGHUP)
