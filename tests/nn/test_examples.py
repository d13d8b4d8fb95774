"""The worked examples in the docstrings run as they stand."""

import doctest

import rims.nn.cell
import rims.nn.rim


def test_docstring_examples() -> None:
    for module in (rims.nn.cell, rims.nn.rim):
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
        assert result.attempted >= 4
        assert result.failed == 0
