"""What two runs are compared by."""

from typing import Any

import torch

from rims.train.folder import Run


def weights(run: Run, which: str = "last") -> dict[str, torch.Tensor]:
    path = run.last_checkpoint if which == "last" else run.best_checkpoint
    return torch.load(path, weights_only=True)["state_dict"]


def rows(run: Run) -> list[dict[str, Any]]:
    """Measurements without the time they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()]


def assert_equal_runs(one: Run, two: Run) -> None:
    """Weights, Adam's moments and measurements are equal, bit for bit."""
    for path in ("last_checkpoint", "best_checkpoint"):
        a, b = (torch.load(getattr(run, path), weights_only=True) for run in (one, two))
        assert a["global_step"] == b["global_step"]
        _assert_equal([a["state_dict"], a["optimizer_states"]], [b["state_dict"], b["optimizer_states"]])
    assert rows(one) == rows(two)


def _assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            _assert_equal(x, y)
    else:
        assert a == b
