"""Removal, one RIM after the other, against removal by hand."""

from __future__ import annotations

import pytest
import torch

from rims.analysis import lesions, removed
from rims.cores import RIMConfig, RIMCore


@pytest.fixture
def core() -> RIMCore:
    return RIMConfig(hidden_size=12, num_rims=4, num_active=2).build(3).eval()


def test_each_rim_is_removed_alone_and_all_are_back(core: RIMCore) -> None:
    x = torch.randn(5, 2, 3)
    found = lesions(core, 4, lambda: core(x)[0].detach())
    assert list(found) == [None, 0, 1, 2, 3]
    for rim, output in found.items():
        again, _, _ = core.rim(x, disabled=() if rim is None else (rim,), return_trace=True)
        torch.testing.assert_close(output, again)
        if rim is not None:
            assert (output.unflatten(-1, (4, 3))[:, :, rim] == 0).all()
    assert core.disabled == ()


def test_what_was_removed_before_stays_removed(core: RIMCore) -> None:
    core.disabled = (3,)
    with removed(core, 1):
        assert core.disabled == (3, 1)
    assert core.disabled == (3,)
    with pytest.raises(ZeroDivisionError), removed(core, 1):
        1 / 0  # noqa: B018
    assert core.disabled == (3,)
