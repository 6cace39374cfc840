"""The command line: finds the command, and prints what the caller can put right as one sentence."""

from __future__ import annotations

import importlib
import os
import sys

from lewel.errors import LewelError

USAGE = """usage: lewel COMMAND ...

  train --preset NAME [--data.root DIR] [--resume auto]   pre-train; --help lists every setting of a preset
  train --preset NAME --dry-run                           the recipe, its steps and the memory it needs
  presets [NAME]                                          the recipes by name, and what is known of them; or one whole
  show RUN...                                             curves of runs, also while they train, and a line about each
  eval knn RUN                                            kNN accuracy of a run's newest checkpoint
  maps RUN IMAGES...                                      alignment maps over your own images
  export RUN --to torchvision|timm|...                    the encoder as a file for another library"""
# Each a module of lewel.commands, imported when it is called.
COMMANDS = ("train", "presets", "show", "eval", "maps", "export")


def main() -> None:
    """Entry point; errors that the caller can put right are printed as one sentence, with exit status 2."""
    leads = os.environ.get("RANK", "0") == "0"  # of several processes the one that speaks for all
    try:
        _dispatch(sys.argv[1:])
    except LewelError as error:
        if leads:  # all found it before they met
            print(f"lewel: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if leads:
            print(
                "lewel: interrupted; --resume auto continues a training run from its newest checkpoint", file=sys.stderr
            )
        sys.exit(130)
    except OSError as error:
        print(f"lewel: {error.filename or 'the run'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
    elif arguments[0] == "bench":
        raise LewelError("lewel bench has become python -m benchmarks step, in a checkout of the project")
    elif arguments[0] not in COMMANDS:
        raise LewelError(f"there is no command {arguments[0]!r}; commands are {', '.join(COMMANDS)}")
    else:
        importlib.import_module(f"lewel.commands.{arguments[0]}").run(arguments[1:])
