"""Copying over a longer delay than in training: Table 1 (left), and its ablations, Table 4."""

from __future__ import annotations

from rims.cores import LSTMConfig
from rims.experiments.arms import (
    Arm,
    Experiment,
    Grid,
    Scale,
    Setup,
    attention,
    budget,
    later,
    register,
    rims,
    sized,
    unlike,
)
from rims.tasks import Copying
from rims.train.config import ModelOptions


def setup(scale: Scale) -> Setup:
    """Task, model and budget."""
    task = sized(
        scale,
        Copying(length=3, delay=5, test_delays=(5, 10)),
        Copying(length=5, delay=20, test_delays=(20, 80, 200)),
        Copying(),
    )
    paper = scale == "paper"
    return Setup(
        task,
        ModelOptions(input_size=sized(scale, 16, 64, 600)),
        budget(
            scale,
            updates=30_000 if paper else 2000,
            every=1000 if paper else 200,
            learning_rate=1e-3 if paper else 3e-3,
            validation_sequences=512 if paper else 256,
        ),
    )


def units(scale: Scale) -> int:
    """Units of a RIM: the paper's 100, or fewer."""
    return sized(scale, 4, 50, 100)


def both(train: float, test: float) -> dict[int, float]:
    """Published cross-entropy at delays 50 and 200."""
    return {50: train, 200: test}


def copying(scale: Scale) -> Grid:
    """Table 1, left: RIMs with 2 to 4 active, the sizes that the author gave later, both variants and
    selections, bounded communication and GRU dynamics, and every other core at two fair sizes."""
    shared, unit, sizes = setup(scale), units(scale), attention(scale)
    main = rims(4, size=6 * unit, **sizes)
    arms = [
        shared.arm("rim-6-4", main, both(0.0, 0.0)),
        shared.arm("rim-6-3", rims(3, size=6 * unit, **sizes), both(0.0, 0.0)),
        shared.arm("rim-6-2", rims(2, size=6 * unit, **sizes), both(0.0, 0.0)),
        shared.arm("rim-5-2", rims(2, 5, 5 * unit, **sizes), both(0.0, 0.0)),
        shared.arm("rim-5-3", later(scale, unit)),
        shared.arm("rim-6-4-tanh", rims(4, size=6 * unit, comm_tanh=True, **sizes)),
        shared.arm("rim-6-3-tanh", rims(3, size=6 * unit, comm_tanh=True, **sizes)),
        shared.arm("rim-6-2-tanh", rims(2, size=6 * unit, comm_tanh=True, **sizes)),
        shared.arm("rim-5-2-tanh", rims(2, 5, 5 * unit, comm_tanh=True, **sizes)),
        shared.arm("rim-6-4-gru", rims(4, size=6 * unit, cell="gru", **sizes)),
        shared.arm("rim-6-4-official", rims(4, size=6 * unit, variant="official", **sizes)),
        shared.arm("rim-6-4-competition", rims(4, size=6 * unit, selection="competition", **sizes)),
        shared.arm("lstm-half", LSTMConfig(hidden_size=3 * unit), both(0.0, 4.32)),
        shared.arm("lstm", LSTMConfig(hidden_size=6 * unit), both(0.0, 3.56)),
    ]
    others, impossible = shared.others(main)
    # The paper gives no sizes for these: its number stands beside the size of equal state.
    known = {"ntm-state": both(0.0, 2.54), "rmc-state": both(0.0, 0.13), "transformer-state": both(0.0, 0.54)}
    others = [Arm(a.name, a.config, known.get(a.name, {})) for a in others]
    return Grid(unlike([*arms, *others]), 3, impossible)


NO_COMMUNICATION = {
    (4, 2): both(2.3, 1.6),
    (4, 3): both(1.7, 4.3),
    (5, 2): both(2.5, 4.7),
    (5, 3): both(0.4, 4.0),
    (5, 4): both(0.2, 0.7),
    (6, 2): both(3.3, 2.4),
    (6, 3): both(1.2, 1.0),
    (6, 4): both(0.7, 5.0),
    (6, 5): both(0.22, 0.56),
}
"""Table 4, input attention without communication, 600 units."""

NO_INPUT_ATTENTION = {
    (6, 600): both(0.0, 0.7),
    (5, 500): both(0.0, 1.7),
    (2, 256): both(0.0, 2.9),
    (2, 512): both(0.0, 1.8),
    (1, 512): both(0.0, 0.2),
}
"""Table 4, no input attention, by RIMs (all active) and units."""

FULL = {
    9: {
        2: both(0.24, 0.15),
        3: both(0.01, 0.0),
        4: both(0.01, 0.0),
        5: both(0.01, 0.0),
        6: both(0.01, 0.01),
        7: both(0.04, 0.07),
        8: both(0.0, 0.10),
        9: both(0.03, 0.24),
    },
    16: {
        4: both(0.05, 0.02),
        6: both(0.0, 0.0),
        8: both(0.0, 0.0),
        10: both(0.0, 0.0),
        12: both(0.0, 0.0),
        14: both(0.01, 0.26),
    },
    24: {
        6: both(0.01, 0.0),
        8: both(0.0, 0.0),
        16: both(0.0, 0.0),
        20: both(0.0, 0.0),
        22: both(0.0, 0.42),
    },
}
"""Table 4, all of it, by RIMs and active ones."""


def ablations(scale: Scale) -> Grid:
    """Table 4: without communication, without input attention, and with other numbers of RIMs."""
    shared, unit, sizes = setup(scale), units(scale), attention(scale)
    arms = [shared.arm("rim-6-4", rims(4, size=6 * unit, **sizes), both(0.0, 0.0))]
    for (count, active), published in NO_COMMUNICATION.items():
        size = 6 * unit // count * count  # 600, in the paper's case
        core = rims(active, count, size, communication=False, **sizes)
        arms.append(shared.arm(f"no-communication-{count}-{active}", core, published))
    for (count, size), published in NO_INPUT_ATTENTION.items():
        size = size * unit // 100 // count * count
        core = rims(count, count, size, input_attention=False, **sizes)
        arms.append(shared.arm(f"no-input-attention-{count}-{size}", core, published))
    for count, rows in FULL.items():
        for active, published in rows.items():
            arms.append(
                shared.arm(f"rim-{count}-{active}", rims(active, count, count * unit, **sizes), published)
            )
    return Grid(arms, 3)


register(Experiment("copying", "Table 1, left", ("recall_cross_entropy", "recall_accuracy"), copying))
register(Experiment("copying-ablations", "Table 4", ("recall_cross_entropy", "recall_accuracy"), ablations))
