"""Train a run from its config, or go on with one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from rims.errors import Interrupted, UserError
from rims.train.callbacks import Checkpoints, Measurements, Plateau, StopOnSignal
from rims.train.checkpoint import AtomicCheckpointIO, read_checkpoint
from rims.train.config import RunConfig, TrainingOptions
from rims.train.data import TrainingStream
from rims.train.folder import Run
from rims.train.guards import disk_errors, quiet_lightning, worker_errors
from rims.train.module import TrainingModule
from rims.train.progress import ProgressLine
from rims.train.versions import versions


def train(config: RunConfig, folder: Path, resume: bool = False, progress: bool = True) -> Run:
    """Train ``config`` in ``folder``, to the end; with ``resume``, go on from the folder's last checkpoint.

    On one machine and device kind, a run that was killed at any moment and resumed has the weights and the
    measurements of an uninterrupted one, bit for bit on the CPU. Resuming a finished run changes nothing.
    ``progress`` writes to stderr.

    Raises UserError for what cannot be used (options, data files, folder, checkpoint, a full disk), WorkError
    for a loss that is not finite, Interrupted after Ctrl-C or SIGTERM, with a checkpoint of the last update.
    """
    folder = Path(folder)
    options = config.training
    processes = options.devices * options.nodes
    if options.batch_size % processes:
        what = "devices" if options.nodes == 1 else "devices times nodes"
        raise UserError(f"batch_size is {options.batch_size}; expected a multiple of {what}, {processes}")
    with quiet_lightning(), _threads(options.threads), torch.random.fork_rng(devices=_cuda_devices()):
        module = TrainingModule(config)
        run = Run.open(folder) if resume else Run(folder, config)
        if run.config != config:
            raise UserError(f"{folder} was started with {_differences(run.config, config)}")
        start = 0
        if resume and run.last_checkpoint.exists():
            start = read_checkpoint(run.last_checkpoint, config)["global_step"]
        if start < options.updates:
            config.task.prepare()
            stop = StopOnSignal()
            trainer = _trainer(run, stop, start, progress)
            _prepare(run, resume, start, first=trainer.is_global_zero)
            stream = TrainingStream(
                config.task,
                options.batch_size // processes,
                options.seed,
                start,
                trainer.global_rank,
                trainer.world_size,
            )
            with disk_errors(run), worker_errors(run):
                batches = stream.made_by(options.workers)
                trainer.fit(module, batches, ckpt_path=run.last_checkpoint if start else None)
            if stop.asked and trainer.global_step < options.updates:
                raise Interrupted(
                    f"stopped after update {trainer.global_step}; to go on: rims resume {run.path}"
                )
            start = trainer.global_step
        elif progress:
            print(f"{folder} is finished ({start} updates): nothing to do", file=sys.stderr)
        if is_first_process(options) and run.read_json("summary.json") is None:
            with disk_errors(run):
                run.write_json("summary.json", _summary(run, module, start))
    return run


def is_first_process(options: TrainingOptions) -> bool:
    """Whether this process is the one that writes and reports, of all that train a run together."""
    # A run of one process asks nobody: a scheduler may have numbered the runs by the same variables.
    return options.devices * options.nodes == 1 or getattr(rank_zero_only, "rank", 0) == 0


def _trainer(run: Run, stop: StopOnSignal, start: int, progress: bool) -> Trainer:
    options = run.config.training
    measurements = Measurements(run)
    callbacks: list[Callback] = [measurements, stop, Checkpoints(run, measurements)]
    if options.schedule == "plateau":
        callbacks.insert(1, Plateau(measurements))
    if progress:
        callbacks.insert(1, ProgressLine(options.updates, measurements))
    # purge_step: events that a killed run wrote after its last checkpoint are hidden
    logger = TensorBoardLogger(
        run.path, "tensorboard", "", default_hp_metric=False, purge_step=start + 1 if start else None
    )
    precision: Any = options.precision
    try:
        return Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            precision=precision,
            max_steps=options.updates,
            max_epochs=-1,
            gradient_clip_val=options.clip or None,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(run.config)],
            logger=logger,
            default_root_dir=run.path,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _prepare(run: Run, resume: bool, start: int, first: bool) -> None:
    """Make the folder, or take back what was written after the checkpoint; one process does."""
    if not first:
        return
    if not resume:
        Run.create(run.path, run.config)
    with disk_errors(run):
        run.remove_leftovers()
        run.keep_metrics_until(start)
        run.write_json("versions.json", [*(run.read_json("versions.json") or []), versions()])


def _summary(run: Run, module: TrainingModule, updates: int) -> dict[str, Any]:
    core = module.model.core
    trained = run.config.task.training_condition
    validations = [r for r in run.metrics() if r["split"] == "validation" and r["condition"] == trained]
    last = validations[-1] if validations else None
    about = ("update", "split", "condition", "seconds")
    return {
        "updates": updates,
        "seconds": last["seconds"] if last else None,
        "parameters": sum(p.numel() for p in module.model.parameters() if p.requires_grad),
        "core_parameters": core.num_parameters,
        "state_size": core.state_size,
        "flops_per_step": core.flops_per_step,
        "validation": {k: v for k, v in last.items() if k not in about} if last else None,
    }


def _differences(was: RunConfig, given: RunConfig) -> str:
    """``training.seed 1, not 2, ...``"""
    found = []
    old, new = was.to_json(), given.to_json()
    for part in old:
        for key in sorted(old[part].keys() | new[part].keys()):
            before, now = old[part].get(key), new[part].get(key)
            if before != now:
                found.append(f"{part}.{key} {before}, not {now}")
    return "; ".join(found)


def _cuda_devices() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
