"""One update: loss, gradient, clipping, Adam."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rims.errors import UserError
from rims.models import SequenceModel
from rims.tasks import Batch
from rims.train.config import RunConfig
from rims.train.data import derive_seed


def build_model(config: RunConfig) -> SequenceModel:
    """The run's model with its initial weights, which depend on the seed alone; the caller's random state is
    left as it was.

    Raises UserError for options that do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed("weights", config.training.seed))
        try:
            return SequenceModel(config.task, config.core, **vars(config.model))
        except ValueError as error:
            raise UserError(str(error)) from error


class TrainingModule(LightningModule):
    """The model of a run and how it learns. ``gradient_norm`` is that of the last update, before clipping."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(config)
        self.gradient_norm = torch.tensor(0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout draws from torch's global generator. Seeding it here makes an update a function of its
        # number, so a resumed run needs no stored random states to equal an uninterrupted one.
        update = self.trainer.global_step
        torch.manual_seed(derive_seed("dropout", self.config.training.seed, update, self.global_rank))
        outputs, _ = self.model(batch.inputs)
        return self.config.task.loss(outputs, batch)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm over all parameters, and keep that norm (Lightning's own clipping drops it)."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        self.gradient_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)

    def configure_optimizers(self) -> Any:
        options = self.config.training
        adam = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate)
        if options.schedule != "cosine":  # rims.train.callbacks.Plateau
            return adam
        # In closed form of the update, and not torch's recursive CosineAnnealingLR: no rounding piles up.
        cosine = LambdaLR(
            adam, lambda update: 0.5 * (1 + math.cos(math.pi * min(1, update / options.updates)))
        )
        return {"optimizer": adam, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
