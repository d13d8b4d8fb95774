"""Errors that are part of the interface: one line that says what was given and what is expected."""


class UserError(Exception):
    """Something the user gave cannot be used. The command line prints the message alone and exits with 2."""


class WorkError(Exception):
    """The work itself failed, such as a loss that is not finite. The command line prints the message and exits with 1."""


class Interrupted(Exception):
    """The user stopped the work, which can be gone on with. The command line prints the message and exits with 130."""
