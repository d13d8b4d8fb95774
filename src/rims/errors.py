"""Errors that are part of the interface: one line that says what was given and what is expected."""


class UserError(Exception):
    """Something the user gave cannot be used. The command line prints the message alone and exits with 2."""
