"""Options and fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="folder with recorded arrays of other implementations (default: tests/golden)",
    )
    parser.addoption(
        "--data-dir",
        type=Path,
        default=os.environ.get("RIMS_DATA"),
        help="folder with official data files, for the tests that read them (default: $RIMS_DATA)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument ``golden_official`` runs once for each recording of the released RIM code."""
    if "golden_official" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden-dir")
        files = sorted(folder.glob("official_*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden-dir {folder} holds no official_*.npz")
        metafunc.parametrize("golden_official", files, ids=[f.stem for f in files])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The long ones first, so that at the end no worker waits for another.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """One seed, one thread: a test gives the same numbers alone, in a suite and on several workers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def official_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of official data files, named to the package too."""
    folder = request.config.getoption("--data-dir")
    if folder is None:
        pytest.skip("no official data files: give their folder by --data-dir or RIMS_DATA")
    monkeypatch.setenv("RIMS_DATA", str(folder))
    return Path(folder)


@pytest.fixture(autouse=True)
def shape_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """On, but for tests marked ``without_shape_checks``."""
    without = request.node.get_closest_marker("without_shape_checks") is not None
    jaxtyping.config.update("jaxtyping_disable", without)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
