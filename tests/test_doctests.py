"""The examples in docstrings: every `>>>` of the three packages runs, one test for each file that has one."""

from __future__ import annotations

import doctest
import importlib
import types

import pytest
import torch

import observers
import quantization
from tests.house import MODULES

# What an example may use without importing it: torch, nn, and the public names of the library.
READY = {**vars(observers), **vars(quantization), "torch": torch, "nn": torch.nn}
STYLE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>>" in path.read_text()]


def failures(module: types.ModuleType) -> tuple[list[str], int]:
    """What the examples of a module print that they should not, and how many were tried."""
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=STYLE)
    for test in doctest.DocTestFinder().find(module, module.__name__, globs={**READY, **vars(module)}):
        torch.manual_seed(0)
        runner.run(test, out=said.append)
    return said, runner.tries


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of(name: str) -> None:
    said, tried = failures(importlib.import_module(name))
    assert not said, "".join(said)
    assert tried > 0


@pytest.mark.parametrize("example, wrong", [(">>> 1 + 1\n2\n", False), (">>> 1 + 1\n3\n", True)])
def test_a_wrong_example_is_noticed(example: str, wrong: bool) -> None:
    module = types.ModuleType("sample", example)
    said, tried = failures(module)
    assert (bool(said), tried) == (wrong, 1)
