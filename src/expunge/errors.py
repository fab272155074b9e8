"""What can go wrong, each with the exit code the command line ends with.

A message says what was wrong, where (file and line) and what to do about it.
"""


class ExpungeError(Exception):
    """Any failure expunge explains; a run that failed while it was under way ends with exit code 1."""

    exit_code = 1


class RequestError(ExpungeError):
    """The data to forget, retain or evaluate on is missing, malformed or contradictory."""

    exit_code = 2


class ConfigurationError(ExpungeError):
    """A setting, a name or a combination of them is not understood."""

    exit_code = 2


class ModelError(ExpungeError):
    """A model folder is missing, unsafe to load or not of a kind expunge can change."""

    exit_code = 2


class PatchError(ExpungeError):
    """A patch does not fit the model it is applied to or reverted from, or is damaged."""

    exit_code = 2


class OutputError(ExpungeError):
    """The output could not be written; what was there before is unchanged."""


class OutputRefusedError(OutputError):
    """The output may not go where the user wants it: it would replace an input, or what expunge did not make."""

    exit_code = 2


class OutputExistsError(OutputRefusedError):
    """The output exists already, and the user did not say to replace it."""


class DivergedError(ExpungeError):
    """A loss or gradient became NaN or infinite."""
