"""What happens between updates: measurements, the learning rate, stopping on request, checkpoints; in this
order.

The order is what makes a kill harmless: the rows of an update are on disk before a checkpoint of it, and a
resumed run drops the rows after its checkpoint and makes them again.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rims.errors import WorkError
from rims.train.data import held_out, measure
from rims.train.folder import Run
from rims.train.module import TrainingModule

TRAINING_ROW_EVERY = 50
"""Updates between rows of training loss and gradient norm."""


class Measurements(Callback):
    """Writes metrics.jsonl and TensorBoard, and stops a run whose loss or gradient is not finite.

    Losses and norms stay on the device until a row, a validation or a checkpoint needs them: reading one is a
    synchronisation.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.unread: list[tuple[Tensor, Tensor]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.validation: dict[str, float] = {}
        self.validated_at = -1

    @property
    def seconds(self) -> float:
        """Wall time of training, over all resumes."""
        return self.seconds_before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "norms": self.norms, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.norms = list(state_dict["losses"]), list(state_dict["norms"])
        self.seconds_before = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        options = self.run.config.training
        update = trainer.global_step
        self.unread.append((outputs["loss"].detach(), pl_module.gradient_norm.detach()))
        validate = update % options.validate_every == 0 or update == options.updates
        if update % TRAINING_ROW_EVERY == 0 or validate:
            self.read(update)
            self._add_training_row(trainer, update)
        if validate:
            self._validate(trainer, pl_module, update)

    def read(self, update: int) -> None:
        """Fetch the losses and norms from the device. Raises WorkError when one is not finite."""
        if not self.unread:
            return
        losses, norms = (torch.stack(parts).double().tolist() for parts in zip(*self.unread))
        first = update - len(losses) + 1
        self.unread.clear()
        # float16 scales the loss and skips the updates whose gradient overflows: there, such a norm is no
        # failure.
        scaled = self.run.config.training.precision.startswith("16")
        for number, (loss, norm) in enumerate(zip(losses, norms), first):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            if not math.isfinite(loss) or not (scaled or math.isfinite(norm)):
                value = loss if what == "loss" else norm
                steadier = self.run.config.core.steadier
                raise WorkError(
                    f"the {what} is {value} at update {number}; {self.run.path} keeps its last checkpoint "
                    f"(try a smaller learning rate or clip{f', or {steadier}' if steadier else ''})"
                )
        self.losses += losses
        self.norms += [norm for norm in norms if math.isfinite(norm)]

    def _add_training_row(self, trainer: Trainer, update: int) -> None:
        row = {"loss": _mean(self.losses), "gradient_norm": _mean(self.norms)}
        if trainer.world_size > 1:
            mean = trainer.strategy.reduce(torch.tensor(row["loss"], device=trainer.strategy.root_device))
            row["loss"] = float(mean)
        self.losses, self.norms = [], []
        self._add_row(trainer, update, "training", self.run.config.task.training_condition, row)

    def _validate(self, trainer: Trainer, module: TrainingModule, update: int) -> None:
        options, task = self.run.config.training, self.run.config.task
        conditions = [task.training_condition]
        if options.validate_shifted:
            conditions += [c for c in task.test_conditions if c != task.training_condition]
        module.model.eval()
        for condition in conditions:
            batches = held_out(task, "validation", condition, options.validation_sequences)
            with trainer.precision_plugin.forward_context():
                values = measure(module.model, task, batches, module.device)
            self._add_row(trainer, update, "validation", condition, values)
            if condition == task.training_condition:  # what models are selected by
                self.validation = values
        module.model.train()
        self.validated_at = update

    def _add_row(
        self, trainer: Trainer, update: int, split: str, condition: int, values: dict[str, float]
    ) -> None:
        if not trainer.is_global_zero:
            return
        row = {"update": update, "split": split, "condition": condition}
        self.run.add_metrics({**row, "seconds": round(self.seconds, 3), **values})
        task = self.run.config.task
        where = "" if condition == task.training_condition else f"_{task.condition_name}_{condition}"
        for logger in trainer.loggers:
            tags = {f"{split}{where}/{name}": value for name, value in values.items()}
            logger.log_metrics(tags, step=update)


ONE_REQUEST_SECONDS = 1.0
"""Signals of so short a time are one request: a terminal or a scheduler tells all processes, and the one that
started this one passes it on."""


class StopOnSignal(Callback):
    """Ctrl-C or a scheduler's SIGTERM ends training after the update at hand; a second request, at once."""

    def __init__(self) -> None:
        self.asked = False
        self.asked_at = math.inf
        self.handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self.asked_at > ONE_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)
        elif not self.asked:
            self.asked, self.asked_at = True, time.monotonic()

    def _restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All ranks must leave at the same update, or those that stay wait for the others for ever.
        self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)
        trainer.should_stop = trainer.should_stop or self.asked

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()


class Plateau(Callback):
    """Halves the learning rate when the validation loss has not fallen by 0.01 % for five validations in a
    row (paper D.5, with epochs).

    Not one of Lightning's schedulers: those that look at a loss step after the checkpoint of an update is
    saved, so a resumed run would miss a step.
    """

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements
        self.saved: dict[str, Any] = {}
        self.scheduler: ReduceLROnPlateau | None = None

    def state_dict(self) -> dict[str, Any]:
        return self.saved if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # patience: how many such validations do no harm yet
        self.scheduler = ReduceLROnPlateau(trainer.optimizers[0], factor=0.5, patience=4, threshold=1e-4)
        if self.saved:
            self.scheduler.load_state_dict(self.saved)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.measurements.validated_at == trainer.global_step:
            assert self.scheduler is not None
            self.scheduler.step(trainer.strategy.broadcast(self.measurements.validation["loss"]))


class Checkpoints(Checkpoint):
    """Saves last.ckpt, to resume from, and best.ckpt, of the lowest validation loss.

    Lightning calls it after all other callbacks, as any Checkpoint.
    """

    def __init__(self, run: Run, measurements: Measurements) -> None:
        self.run, self.measurements = run, measurements
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        options = self.run.config.training
        update = trainer.global_step
        if self.measurements.validated_at == update:
            # Saving is done by all ranks or none; they agree on the loss of the first.
            loss = trainer.strategy.broadcast(self.measurements.validation["loss"])
            if loss < self.best:
                self.best = loss
                trainer.save_checkpoint(self.run.best_checkpoint)
        if update % options.checkpoint_every == 0 or update == options.updates or trainer.should_stop:
            self.measurements.read(update)  # a checkpoint holds no unread loss, nor weights gone bad
            trainer.save_checkpoint(self.run.last_checkpoint)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
