"""Printing ends nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

import pytest

from lewel import cli, console


@pytest.fixture
def printed_to(monkeypatch):
    """Makes stdout a stream of the kind that Python opens, over a file descriptor."""

    def use(descriptor: int, encoding: str = "utf-8") -> None:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding))

    return use


def print_much() -> None:
    with console.lossy():
        for _ in range(10_000):
            print("a line", flush=True)
        sys.stdout.flush()


full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@full_disk
def test_on_a_full_disk(printed_to):
    with open("/dev/full", "wb") as full:
        printed_to(full.fileno())
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            print("a line", flush=True)
        print_much()


@full_disk
@pytest.mark.parametrize(("command", "status"), [("presets", 1), ("train --help", 0), ("show nowhere", 2)])
def test_a_command_whose_words_are_lost_has_not_succeeded(command, status, printed_to, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["lewel", *command.split()])
    with open("/dev/full", "wb") as full:
        printed_to(full.fileno())
        with pytest.raises(SystemExit) if status else contextlib.nullcontext() as stop:
            cli.main()
    assert not status or stop.value.code == status
    assert ("could not be written: No space left on device" in capfd.readouterr().err) == (status == 1)


def test_into_a_pipe_that_nobody_reads(printed_to):
    ours, theirs = os.pipe()
    os.close(ours)
    printed_to(theirs)
    print_much()
    os.close(theirs)


def test_to_a_terminal_that_is_gone(printed_to):
    ours, theirs = os.openpty()
    os.close(ours)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(theirs, b"a line")
    printed_to(theirs)
    print_much()
    os.close(theirs)


def test_to_nothing_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_much()
    assert sys.stdout is None


def test_what_cannot_be_encoded_is_printed_as_an_escape(printed_to, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        printed_to(file.fileno(), "ascii")
        with console.lossy(), console.lossy():
            print("ünï \udcff")
    assert (tmp_path / "out").read_text() == "\\xfcn\\xef \\udcff\n"


def test_of_contexts_that_overlap_the_last_to_leave_puts_the_outputs_back(printed_to, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        printed_to(file.fileno(), "utf-8")
        before, first, second = sys.stdout, console.lossy(), console.lossy()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert sys.stdout is not before
        second.__exit__(None, None, None)
        assert sys.stdout is before


def test_an_output_that_is_no_file_stays_what_it_is(monkeypatch):
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    with console.lossy():
        assert sys.stdout is mine
