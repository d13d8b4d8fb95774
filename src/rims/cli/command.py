"""From the command line to a command, and from its errors to an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

import rims
from rims.cli.bench import Bench
from rims.cli.experiments import Demo, Reproduce, Results, Sweep
from rims.cli.generate import GENERATED, Generate
from rims.cli.runs import Eval, Lesion, Report, Resume, Train
from rims.cores import CORES
from rims.errors import Interrupted, UserError, WorkError
from rims.tasks import TASKS
from rims.tasks.files import ENVIRONMENT


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (default: the process's own). Leaves by SystemExit unless all went well."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"rims {rims.__version__}")
        return
    try:
        check_names(arguments)
        command: Any = tyro.cli(
            Train | Resume | Eval | Lesion | Report | Demo | Generate | Reproduce | Sweep | Results | Bench,
            prog="rims",
            description="Recurrent Independent Mechanisms. rims COMMAND --help says more.",
            args=values_first(arguments),
            config=(
                tyro.conf.CascadeSubcommandArgs,
                tyro.conf.FlagCreatePairsOff,
                tyro.conf.HelptextFromCommentsOff,
            ),
        )
        with data_dir(getattr(command, "data_dir", None)):
            command()
    except UserError as error:
        leave(error, 2)
    except WorkError as error:
        leave(error, 1)
    except Interrupted as error:
        leave(error, 130)
    except KeyboardInterrupt:
        leave("stopped", 130)


def leave(message: object, code: int) -> NoReturn:
    print(f"rims: {message}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def data_dir(folder: Path | None) -> Iterator[None]:
    """``folder`` as the environment names it: the processes that this one starts inherit it too."""
    before = os.environ.get(ENVIRONMENT)
    if folder is not None:
        os.environ[ENVIRONMENT] = str(folder.absolute())
    try:
        yield
    finally:
        os.environ.pop(ENVIRONMENT, None)
        if before is not None:
            os.environ[ENVIRONMENT] = before


def check_names(arguments: Sequence[str]) -> None:
    """Refuse an unknown task or core by name, where tyro would call it an unrecognized option."""
    if not arguments or arguments[0] not in ("train", "sweep", "generate"):
        return
    tasks = GENERATED if arguments[0] == "generate" else TASKS
    if len(arguments) > 1 and not arguments[1].startswith("-") and arguments[1] not in tasks:
        raise UserError(f"unknown task {arguments[1]!r}; known: {', '.join(sorted(tasks))}")
    for name in (argument.removeprefix("core:") for argument in arguments if argument.startswith("core:")):
        if name not in CORES:
            raise UserError(f"unknown core {name!r}; known: {', '.join(sorted(CORES))}")


def values_first(arguments: Sequence[str]) -> list[str]:
    """The sweep's ``--values`` before its subcommands: of options that may repeat, tyro sees no others."""
    first, rest, values = list(arguments[:1]), list(arguments[1:]), list[str]()
    while first == ["sweep"] and "--values" in rest:
        start = rest.index("--values")
        values += rest[start : start + 2]
        del rest[start : start + 2]
    return [*first, *values, *rest]
