"""The command line: finds the command, and prints what the caller can put right as one sentence."""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import shutil
import signal
import sys

from lewel import console, installed, meeting
from lewel.errors import LewelError, is_out_of_memory
from lewel_kernels import __version__

USAGE = """usage: lewel COMMAND ...

  train --preset NAME [--data.root DIR] [--resume auto]   pre-train; --help lists every setting of a preset
  train --preset NAME --dry-run                           the recipe, its steps and the memory it needs
  presets [NAME]                                          the recipes by name, and what is known of them; or one whole
  show RUN...                                             curves of runs, also while they train, and a line about each
  eval knn|logistic RUN [--weights FILE] [--dry-run]      what the features of a run, or of a file, are worth
  maps RUN IMAGES...                                      alignment maps over your own images
  export RUN --to torchvision|timm|...                    the encoder as a file for another library"""
INTERRUPTED = 130  # the status of a command that Ctrl-C ended
NARROWEST = 40  # columns of a terminal that are written for
# Each a module of lewel.commands, imported when it is called.
COMMANDS = ("train", "presets", "show", "eval", "maps", "export")


def main() -> None:
    """Entry point; errors that the caller can put right are printed as one sentence, with exit status 2.

    Printing ends no command; one that is not train, whose words are what it is for, has status 1 where they are lost.
    """
    console.open_closed()
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("lewel: the current folder is not there any more; cd to another one")
    if shutil.get_terminal_size().columns < NARROWEST:  # tyro would take minutes for its help
        os.environ["COLUMNS"] = str(NARROWEST)
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own is not there, and nothing is shown
    with console.lossy():
        try:
            status: object = _status(sys.argv[1:])
        except SystemExit as stop:  # after --help, or for an option that there is none of
            status = stop.code
        if not status and sys.argv[1:2] != ["train"] and (error := console.lost()):
            if error.errno != errno.EPIPE:  # whoever closed a pipe had enough
                print(f"lewel: what this command prints could not be written: {error.strerror}", file=sys.stderr)
            status = 1
    if status == INTERRUPTED:
        console.end_interrupted()
    if status:
        sys.exit(status)  # type: ignore[arg-type]


def _status(arguments: list[str]) -> int:
    """Runs a command, and says why where it ends early; the exit status."""
    together = arguments[:1] in (["train"], ["eval"])  # of several processes one speaks for all
    try:
        for argument in arguments:
            _check_text(argument)
        _dispatch(arguments)
    except LewelError as error:
        if not together or meeting.speaks(error):
            print(f"lewel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # there is nothing left to interrupt
        by = getattr(stop, "by", "SIGINT")
        if not together or meeting.speaks():
            ended = "interrupted" if by == "SIGINT" else f"ended by {by}"
            print(f"lewel: {ended}{'; ' if str(stop) else ''}{stop}", file=sys.stderr)
        return INTERRUPTED if by == "SIGINT" else 0
    except Exception as error:
        if is_out_of_memory(error):
            print("lewel: the memory of this machine or of its GPU ran out; end what else takes it", file=sys.stderr)
            return 2
        if not isinstance(error, OSError):
            raise
        named = f"{error.filename or 'the system refuses a call'}: " if error.errno else ""
        more = "; raise the limit (ulimit -n 4096)" if error.errno == errno.EMFILE else ""
        print(f"lewel: {named}{error.strerror or error}{more}", file=sys.stderr)
        return 2
    return 0


def _check_text(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:
        given = os.fsencode(argument)
        shown = given.decode(errors="backslashreplace")
        if shown.encode() == given:
            raise LewelError(f"the argument {shown} cannot be read in this locale; set LANG=C.UTF-8") from None
        raise LewelError(
            f"the argument {shown} is not UTF-8 text, as what a run writes of it must be; rename the file or folder"
        ) from None


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
    elif arguments[0] == "--version":
        print(f"lewel {__version__}")
    elif arguments[0] == "bench":
        raise LewelError("lewel bench has become python -m benchmarks step, in a checkout of the project")
    elif arguments[0] not in COMMANDS:
        raise LewelError(f"there is no command {arguments[0]!r}; commands are {', '.join(COMMANDS)}")
    else:
        with installed.needed(f"lewel {arguments[0]}"):
            with console.interrupted_quietly():
                command = importlib.import_module(f"lewel.commands.{arguments[0]}")
            command.run(arguments[1:])
