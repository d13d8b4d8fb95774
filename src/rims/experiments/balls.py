"""Video: bouncing balls in other numbers than in training, behind a curtain, and one step ahead (Figures 3,
6, 8 to 13, 15 and 16); the masking study on moving digits (Figures 21 to 25).

The paper shows these results as plots alone: no numbers are published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rims.cores import FeedForwardConfig, GRUConfig, LSTMConfig, RIMConfig
from rims.experiments.arms import (
    Arm,
    Experiment,
    Grid,
    Scale,
    Setup,
    attention,
    budget,
    register,
    rims,
    sized,
    unlike,
)
from rims.tasks import Balls, MovingDigits
from rims.train.config import ModelOptions

EPOCH = 50_000 // 64
"""Updates of an epoch of the original files."""

FRAMES: dict[str, dict[str, Any]] = {
    "smoke": {"side": 16, "length": 9, "feed_in": 4, "rollout": 5},
    "small": {"side": 32, "length": 31, "feed_in": 15, "rollout": 15},
    "short": {},
    "paper": {},
}
"""Size and length of the clips; without, the paper's: 51 frames of 64 x 64, 15 fed and 35 predicted."""


def setup(scale: Scale, task: Balls | MovingDigits, updates: int) -> Setup:
    """Model and budget: R-NEM's encoder and decoder, Adam at 7e-4 (D.4), batches of 64 (Table 3). The small
    scale has half of the channels, and many updates by batches of 8."""
    paper = scale == "paper"
    training = budget(
        scale,
        updates=updates if paper else 4000,
        every=EPOCH if paper else 500,
        learning_rate=7e-4 if paper else 1.5e-3,
        batch_size=sized(scale, 4, 8, 64),
        validation_sequences=sized(scale, 8, 64, 256),
    )
    model = ModelOptions(
        input_size=sized(scale, 12, 240, 512),
        hidden=sized(scale, 12, 240, 512),
        channels=sized(scale, (2, 4, 8), (8, 16, 32), (16, 32, 64)),
    )
    # Shifted frames are tested when the run has ended; a rollout takes longer than an update.
    return Setup(task, model, replace(training, validate_shifted=False))


def main_core(scale: Scale, **options: Any) -> RIMConfig:
    """Six RIMs of which four are active (Figure 6); the paper does not say how many it had elsewhere."""
    unit = sized(scale, 4, 50, 100)
    return rims(4, size=6 * unit, **{**attention(scale), **options})


def balls_task(scale: Scale, train: int, test: tuple[int, ...], **options: Any) -> Balls:
    return Balls(balls=train, test_balls=test, **{**FRAMES[scale], **options})


def bouncing(scale: Scale, train: int, test: tuple[int, ...]) -> Grid:
    """RIMs, their ablations (Figures 15 and 16), variants and inputs, and every other core at two fair
    sizes."""
    shared = setup(scale, balls_task(scale, train, test), 100 * EPOCH)
    main = main_core(scale)
    unit = main.hidden_size // 6
    arms = [
        shared.arm("rim-6-4", main),
        shared.arm("lstm", LSTMConfig(hidden_size=6 * unit)),
        shared.arm("gru", GRUConfig(hidden_size=6 * unit)),
        shared.arm("rim-6-4-one-head", main_core(scale, comm_heads=1)),
        shared.arm("rim-6-6-no-input-attention", replace(main, num_active=6, input_attention=False)),
        shared.arm("rim-6-4-official", main_core(scale, variant="official")),
        shared.arm("rim-6-4-strips", main_core(scale, inputs="private")),
        shared.arm("rim-6-4-slots", main_core(scale, inputs="slots")),
        # 250 units in the captions of the paper's plots, 512 in its text
        shared.arm("lstm-250", LSTMConfig(hidden_size=sized(scale, 10, 125, 250))),
        shared.arm("lstm-512", LSTMConfig(hidden_size=sized(scale, 20, 256, 512))),
    ]
    others, impossible = shared.others(main)
    return Grid(unlike([*arms, *others]), 3, impossible)


def balls(scale: Scale) -> Grid:
    """Four balls; tested with six to eight, and behind a curtain."""
    return bouncing(scale, 4, (4, 678, 40))


def balls_ood(scale: Scale) -> Grid:
    """Six to eight balls; tested with four."""
    return bouncing(scale, 678, (678, 4))


def crops(scale: Scale) -> Grid:
    """D.5, Figure 13: three balls and a fixed one in the middle, in a small arena; one step ahead, with one
    to six balls. How crops of the frame were read is not said anywhere: here the whole frame is. The oracle
    is shown the frame to predict, and needs no memory.

    20,000 sequences of 100 frames in the paper, and a learning rate that is halved when the validation loss
    no longer falls; what it is at first and the size of a batch are unknown.
    """
    arena: dict[str, Any] = {
        "side": sized(scale, 16, 24, 48),
        "length": sized(scale, 9, 31, 100),
        "feed_in": sized(scale, 4, 15, 15),
        "rollout": sized(scale, 5, 15, 35),
    }
    task = Balls(balls=3, test_balls=(1, 2, 3, 4, 5, 6), centre=True, **arena)
    shared = setup(scale, task, 100 * 20_000 // 64)
    if scale == "paper":
        # A validation an epoch, of its 1,000 sequences
        training = replace(
            shared.training, schedule="plateau", validate_every=20_000 // 64, validation_sequences=1000
        )
        shared = replace(shared, training=training)
    oracle = replace(shared, task=replace(task, oracle=True))
    main = main_core(scale)
    arms = [
        shared.arm("rim-6-4", main),
        shared.arm("lstm", LSTMConfig(hidden_size=main.hidden_size)),
        oracle.arm("oracle", FeedForwardConfig(hidden_size=main.hidden_size)),
    ]
    others, impossible = shared.others(main)
    return Grid(unlike([*arms, *others]), 3, impossible)


def masking(scale: Scale) -> Grid:
    """E.3, Figures 21 to 25: RIMs of 400 units together, to be removed one by one when they have learned
    (``rims lesion``, ``rims report``); five frames are fed, 25 predicted. Digits are scikit-learn's, but at
    the paper's sizes MNIST's."""
    pictures: dict[str, Any] = sized(scale, {"source": "digits"}, {"source": "digits", "side": 32}, {})
    frames = FRAMES[scale] if scale == "smoke" else {}
    task = MovingDigits(**{**frames, **pictures})
    shared = setup(scale, task, 100 * EPOCH)
    arms: list[Arm] = []
    for count, active in ((4, 2), (4, 3), (5, 2), (5, 3), (5, 4)):
        core = rims(active, count, sized(scale, 20, 200, 400), **attention(scale))
        arms.append(shared.arm(f"rim-{count}-{active}", core))
    return Grid(arms, 3)


ROLLOUT = ("rollout_cross_entropy", "rollout_f1", "position_error", "loss")
"""Of the frames that a model predicts from its own predictions; and one step ahead."""

TESTS = 512
"""Test sequences a condition: a rollout takes long."""

register(Experiment("balls", "Figures 3, 8 to 12, 15, 16", ROLLOUT, balls, TESTS))
register(Experiment("balls-ood", "Figures 3, 8 to 12", ROLLOUT, balls_ood, TESTS))
register(Experiment("crops", "Figure 13", ("f1", "balanced_accuracy"), crops, TESTS))
register(Experiment("masking", "Figures 21 to 25", ROLLOUT, masking, TESTS, lesions=True))
