"""The command ``rims``: results on stdout, progress on stderr.

Exit codes: 0 done, 1 the work failed, 2 the input cannot be used, 130 stopped by the user. What costs time to
import is imported by the commands that need it.
"""

try:
    import rich  # noqa: F401
    import tyro  # noqa: F401
except ModuleNotFoundError as missing:
    raise SystemExit("rims: the command needs more than the layer: pip install 'rims[train]'") from missing

from rims.cli.command import main

__all__ = ["main"]
