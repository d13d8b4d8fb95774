"""Many runs on Ray: on this machine, or on a cluster whose nodes share the file system of the runs.

Each run is a Ray task, and its folder holds all of it: what Ray is told can be lost. A run that fails is
tried again, on another node perhaps, from its last checkpoint; so is one whose process or node is lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rims.errors import Interrupted, UserError, WorkError
from rims.experiments.grid import Evaluation, UnexpectedError, not_done, run_one
from rims.experiments.watch import POLL_SECONDS, Watch, progress
from rims.tasks.files import ENVIRONMENT
from rims.train.config import RunConfig, TrainingOptions
from rims.train.guards import terminated_as_by_ctrl_c

# Ray reads these when it is imported.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports its use to its makers: no user of rims was asked
os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"] = "."  # it prints failures on stdout, which is for results
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default, else a warning
# Its workers here would yield to all else: three times the time on a busy machine.
os.environ.setdefault("RAY_worker_niceness", "0")

CONNECT_SECONDS = 20.0
"""How long a cluster has to answer; Ray itself would try for minutes."""

STOP_SECONDS = 30.0
"""How long runs have, after Ctrl-C or SIGTERM, to write a checkpoint."""

STORE_BYTES = 80 * 2**20
"""Ray's shared memory, about the least that it takes: only configurations pass through it."""


def run_on_ray(
    configs: Mapping[Path, RunConfig],
    testing: Evaluation,
    again: str,
    workers: int | None = None,
    address: str | None = None,
    retries: int = 1,
) -> dict[Path, str]:
    """As :func:`rims.experiments.grid.run_grid`, with Ray: on this machine, or on the cluster at ``address``
    ("auto", or HOST:PORT as ``ray start`` prints it), called on one of its nodes.

    On this machine ``workers`` runs at a time (default: its CPU cores); on a cluster as many as Ray finds
    room for, each taking a CPU for each of its threads. A run takes a GPU where its accelerator asks for one
    ("auto" does if Ray has any). A run that fails is tried again ``retries`` times, but for a loss that
    is not finite, which would be so again. The folders must be on a file system that all nodes share, and
    every node must have this version of rims.

    Raises also UserError when Ray is not installed, when no cluster answers, and when it has no GPU for runs
    that need one.
    """
    if retries < 0:
        raise UserError(f"retries is {retries}; expected at least 0")
    open_runs = not_done(configs, testing)
    if not open_runs:
        return {}
    data = os.environ.get(ENVIRONMENT)
    with _ray(address, min(len(open_runs), workers or os.cpu_count() or 1)) as ray:
        gpus = ray.cluster_resources().get("GPU", 0) >= 1
        task = ray.remote(_task)
        pending: dict[Any, Path] = {}
        for folder, config in open_runs.items():
            needed = _resources(config.training, address is None, gpus)
            options = {**needed, "max_retries": retries, "retry_exceptions": True}
            found = task.options(**options).remote(config, folder.absolute(), testing, sys.argv, data)
            pending[found] = folder
        failed: dict[Path, str] = {}
        try:
            with terminated_as_by_ctrl_c():
                _follow(ray, pending, open_runs, retries, failed)
        except KeyboardInterrupt as error:
            for reference in pending:
                ray.cancel(reference)  # as Ctrl-C would: a run stops after its update, with a checkpoint
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=STOP_SECONDS)
            raise Interrupted(f"stopped; to go on: {again}") from error
        return {folder: failed[folder] for folder in open_runs if folder in failed}


def _task(config: RunConfig, folder: Path, testing: Evaluation, command: list[str], data: str | None) -> str:
    """One attempt, in a Ray worker. Raises what another attempt may mend, returns what it cannot."""
    sys.argv = command  # what the run folder says it was made by
    if data is not None:
        os.environ[ENVIRONMENT] = data
    try:
        run_one(config, folder, testing)
    except UnexpectedError:
        raise
    except WorkError as error:
        return str(error)
    return ""


def _follow(
    ray: Any,
    pending: dict[Any, Path],
    configs: Mapping[Path, RunConfig],
    retries: int,
    failed: dict[Path, str],
) -> None:
    """Watch until nothing is ``pending``, and take down what ``failed``."""
    # Which runs Ray has started it does not say; their folders do.
    before = {folder: progress(folder, config) for folder, config in configs.items()}
    done: list[Path] = []
    moving: set[Path] = set()
    with Watch(configs) as watch:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_SECONDS)
            for reference in ready:
                folder = pending.pop(reference)
                done.append(folder)
                text = _outcome(ray, reference, retries)
                if text:
                    failed[folder] = text
            for folder in pending.values():
                if folder not in moving and progress(folder, configs[folder]) != before[folder]:
                    moving.add(folder)
            watch.show([folder for folder in configs if folder in moving and folder not in done], done)


def _outcome(ray: Any, reference: Any, retries: int) -> str:
    """What went wrong in the last attempt, in one line; nothing if all is well."""
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        known = isinstance(cause, UserError | WorkError | Interrupted)
        text = str(cause) if known else f"{type(cause).__name__}: {cause}"
    except ray.exceptions.RayError as error:  # the process, its memory or its node
        text = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return f"{' '.join(text.split())} ({retries + 1} attempts)" if retries else text


def _resources(options: TrainingOptions, local: bool, gpus: bool) -> dict[str, int]:
    """What a run takes."""
    wanted = options.accelerator in ("gpu", "cuda")
    if wanted and not gpus:
        raise UserError(f"training.accelerator is {options.accelerator}; Ray finds no GPU here")
    needed = {"num_cpus": 1 if local else max(1, options.threads)}
    return {**needed, "num_gpus": 1} if wanted or (options.accelerator == "auto" and gpus) else needed


@contextmanager
def _ray(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, quiet, and shut down at the end: here, or connected with a cluster."""
    try:
        import ray
    except ModuleNotFoundError as missing:
        raise UserError("Ray is not installed: pip install 'rims[sweep]'") from missing
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # "local": never a cluster that some other command has left running here.
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        options |= {"object_store_memory": STORE_BYTES}
    else:
        _check(address)
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot use Ray: {' '.join(str(error).split())}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Raise UserError unless a cluster answers at the address, soon."""
    if "://" in address:
        raise UserError(f"address is {address}; expected auto or HOST:PORT, on a node of the cluster")
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=CONNECT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise UserError(f"no Ray cluster answers at {address}")
