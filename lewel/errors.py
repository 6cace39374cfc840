"""The one kind of error that the command line prints as a sentence, without a traceback."""

from __future__ import annotations

import errno
import re

# What torch, its allocators and the C++ below it say; a data worker's error comes as text around its own.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|MemoryError|bad_alloc|Cannot allocate memory|ALLOC_FAILED"
)


class LewelError(ValueError):
    """Something that whoever started the run can put right: what was expected, what was found, what to do."""


class OwnError(LewelError):
    """One that this process alone has met, and says, whatever its rank."""


class ToldError(LewelError):
    """One that another process has met, and says."""


class DataError(LewelError):
    """Images that end a run though it may have trained for long: it saves its last whole step first."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU, for which torch has a RuntimeError."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
