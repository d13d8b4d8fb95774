"""Errors that are part of the interface: one line that says what was given and what is expected."""


class UserError(Exception):
    """Something the user gave cannot be used. The command line prints the message alone, exits with 2."""


class WorkError(Exception):
    """The work failed: a loss was not finite. The command line prints the message, exits with 1."""


class Interrupted(Exception):
    """The user stopped the work, which can be resumed. The command line prints it, exits with 130."""
