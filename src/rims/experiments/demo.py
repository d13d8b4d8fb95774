"""The demo: RIM and LSTM learn to copy over a delay of 20 steps; which of them still copies over 80 and 200?

Three arms with one budget: RIM and LSTM of equal hidden size, and an LSTM with as many parameters as the RIM.
A small form of the paper's Table 1 (left): 5 symbols, not 10; delay 20, not 50; 300 units, not 600.
"""

from __future__ import annotations

from pathlib import Path

from rims.cores import CoreConfig, LSTMConfig, RIMConfig
from rims.cores.sizes import matched
from rims.errors import WorkError
from rims.experiments.grid import Evaluation, run_grid
from rims.report import print_table, write_report
from rims.tasks import Copying
from rims.train.config import ModelOptions, RunConfig, TrainingOptions

INPUT_SIZE = 64
HIDDEN_SIZE = 300


def arms(updates: int, seed: int) -> dict[str, RunConfig]:
    """The runs of the demo by the name of their folder."""
    rim = RIMConfig(hidden_size=HIDDEN_SIZE, input_key_size=32, input_value_size=64, comm_key_size=16)
    cores: dict[str, CoreConfig] = {
        "rim": rim,
        "lstm": LSTMConfig(hidden_size=HIDDEN_SIZE),
        "lstm-parameters": matched(LSTMConfig(), rim, INPUT_SIZE, "params"),
    }
    return {
        name: RunConfig(
            Copying(length=5, delay=20, test_delays=(20, 80, 200)),
            core,
            ModelOptions(input_size=INPUT_SIZE),
            TrainingOptions(
                updates=updates,
                learning_rate=3e-3,
                schedule="cosine",
                seed=seed,
                validate_every=100,
                checkpoint_every=500,
                accelerator="cpu",
                threads=1,
            ),
        )
        for name, core in cores.items()
    }


def run_demo(folder: Path, updates: int, seed: int, test_sequences: int = 2048) -> Path:
    """Train and test all arms, side by side as far as there are cores; print the table; return the report.

    What was stopped goes on where it was. Raises UserError as training does, Interrupted after Ctrl-C.
    """
    configs = {folder / name: config for name, config in arms(updates, seed).items()}
    failed = run_grid(configs, Evaluation("last", test_sequences), f"rims demo --folder {folder}")
    for run, why in failed.items():
        raise WorkError(f"{run}: {why}")
    print_table(configs)
    return write_report(configs, folder / "report.html")
