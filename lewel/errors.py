"""The one kind of error that the command line prints as a sentence, without a traceback."""

from __future__ import annotations


class LewelError(ValueError):
    """Something that whoever started the run can put right: what was expected, what was found, what to do."""


class OwnError(LewelError):
    """One that this process alone has met, and says, whatever its rank."""


class ToldError(LewelError):
    """One that another process has met, and says."""


class DataError(LewelError):
    """Images that end a run though it may have trained for long: it saves its last whole step first."""
