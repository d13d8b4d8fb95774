"""What is recorded of how a run was made."""

import sys

import pytest

from rims.train.versions import command


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (
            ["/some where/bin/rims", "train", "copying", "--run", "my run"],
            "rims train copying --run 'my run'",
        ),
        (["/src/rims/__main__.py", "resume", "x"], "python -m rims resume x"),
        (["benchmarks/gpu.py", "out"], "gpu.py out"),
    ],
)
def test_the_command_is_recorded_without_the_folder_of_its_program(arguments, wanted, monkeypatch):
    monkeypatch.setattr(sys, "argv", arguments)
    assert command() == wanted
