"""Every core learns to copy 5 symbols over a delay of 5 steps with its own defaults: recall accuracy above
0.95 on held-out sequences, the median over the seeds given."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pytest
import torch

from rims.cores import CORES
from rims.models import SequenceModel
from rims.tasks import Copying
from rims.train.config import ModelOptions, RunConfig, TrainingOptions
from rims.train.data import held_out, measure, training_batch
from rims.train.module import build_model


@dataclass
class Recipe:
    """What a core needs for it."""

    updates: int = 2000
    """At most; the test stops as soon as the core has learned."""
    learning_rate: float = TrainingOptions().learning_rate
    seeds: tuple[int, ...] = (0,)


BOUND = 0.95
CHECK_EVERY = 100

RECIPES: dict[str, Recipe] = {
    "entnet": Recipe(updates=6000),
    "ntm": Recipe(learning_rate=3e-3, seeds=(0, 1, 2, 3, 4)),
    "dnc": Recipe(learning_rate=3e-3, seeds=(0, 1, 2, 3, 4)),
}
"""Of those that take longer, or vary from seed to seed."""


def learn(name: str, recipe: Recipe, seed: int) -> float:
    """Recall accuracy on held-out sequences, the first above the bound or that after all updates."""
    config = RunConfig(
        Copying(length=5, delay=5),
        CORES[name](),
        ModelOptions(input_size=64),
        TrainingOptions(updates=recipe.updates, learning_rate=recipe.learning_rate, seed=seed),
    )
    model = build_model(config)
    adam = torch.optim.Adam(model.parameters(), lr=config.training.learning_rate)
    accuracy = 0.0
    for update in range(recipe.updates):
        batch = training_batch(config.task, config.training.batch_size, seed, update)
        loss = config.task.loss(model(batch.inputs)[0], batch)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip)
        adam.step()
        if (update + 1) % CHECK_EVERY == 0:
            accuracy = recall(model, config.task)
            if accuracy > BOUND:
                break
    return accuracy


def recall(model: SequenceModel, task: Copying) -> float:
    model.eval()
    accuracy = measure(model, task, held_out(task, "validation", task.delay, 512))["recall_accuracy"]
    model.train()
    return accuracy


@pytest.mark.training
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(CORES))
def test_learns_to_copy(name: str) -> None:
    recipe = RECIPES.get(name, Recipe())
    assert statistics.median(learn(name, recipe, seed) for seed in recipe.seeds) > BOUND
