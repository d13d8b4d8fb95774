"""Adding over a longer sequence than in training: Table 5."""

from __future__ import annotations

from dataclasses import replace

from rims.cores import LSTMConfig
from rims.experiments.arms import (
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
from rims.experiments.copying import units
from rims.tasks import Adding
from rims.train.config import ModelOptions

EPOCH = 30_000 // 64
"""Updates of the released code's epoch."""


def setup(scale: Scale) -> Setup:
    """Task, model and budget: lr 1e-3 and clipping at 0.1 as in the released code."""
    return Setup(
        Adding(length=6, test_lengths=(6, 12)) if scale == "smoke" else Adding(),
        ModelOptions(input_size=sized(scale, 16, 64, 600)),
        budget(
            scale,
            updates=100 * EPOCH if scale == "paper" else 2000,
            every=EPOCH if scale == "paper" else 200,
            clip=0.1,
        ),
    )


def adding(scale: Scale) -> Grid:
    """Table 5: every row of it is printed as 0.0, with one decimal; 50 steps in training and 200 in tests,
    and at the paper's scale 500 and 1000 too. Also the sizes that the author gave later, both variants and
    both selections."""
    shared = setup(scale)
    unit, sizes = units(scale), attention(scale)
    zero = {50: 0.0, 200: 0.0}
    main = rims(4, size=6 * unit, **sizes)
    arms = [shared.arm(f"rim-6-{a}", rims(a, size=6 * unit, **sizes), zero) for a in (4, 3, 5)]
    if scale == "paper":
        arms += [shared.arm(f"rim-6-{a}-half", rims(a, size=300), zero) for a in (3, 4, 5)]
        arms += [shared.arm(f"rim-9-{a}", rims(a, 9, 900), zero) for a in range(3, 9)]
    arms += [
        shared.arm("rim-5-3", later(scale, unit)),
        shared.arm("rim-6-4-tanh", replace(main, comm_tanh=True)),
        shared.arm("rim-6-4-gru", replace(main, cell="gru")),
        shared.arm("rim-6-4-official", replace(main, variant="official")),
        shared.arm("rim-6-4-competition", replace(main, selection="competition")),
    ]
    arms.append(shared.arm("lstm", LSTMConfig(hidden_size=6 * unit)))
    others, impossible = shared.others(main)
    arms = unlike([*arms, *others])
    if scale == "paper":
        long = replace(shared, task=Adding(length=500, test_lengths=(500, 1000)))
        arms += [long.arm(f"long-rim-6-{a}", rims(a), {500: 0.0, 1000: 0.0}) for a in (3, 4, 5)]
        arms += [long.arm(f"long-rim-9-{a}", rims(a, 9, 900), {500: 0.0, 1000: 0.0}) for a in range(3, 8)]
        arms.append(long.arm("long-lstm", LSTMConfig(hidden_size=600)))
    return Grid(arms, 3, impossible)


register(Experiment("adding", "Table 5", ("mean_squared_error",), adding))
