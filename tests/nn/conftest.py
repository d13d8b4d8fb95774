"""Fixtures of the layer's tests."""

from collections.abc import Iterator

import pytest

from rims.nn.fast.native.build import ENGINES, load


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The module's tests once with each engine that a CPU has. One engine for a module: hypothesis does not
    begin anew between examples."""
    if request.param == "compiled" and load()[0] is None:
        pytest.skip(f"no compiled passes: {load()[1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIMS_CPU", request.param)
        yield request.param
