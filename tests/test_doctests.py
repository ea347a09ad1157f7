"""The examples in docstrings: every `>>>` of the three packages runs, one test for each file that has one."""

from __future__ import annotations

import doctest
import importlib
import types
from pathlib import Path

import pytest
import torch

import observers
import quantization

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("observers", "mappings", "quantization")
# What an example may use without importing it: torch, nn, and the public names of the library.
READY = {**vars(observers), **vars(quantization), "torch": torch, "nn": torch.nn}
STYLE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = [_name(path) for path in FILES if ">>>" in path.read_text()]


def failures(module: types.ModuleType) -> tuple[list[str], int]:
    """What the examples of a module print that they should not, and how many were tried."""
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=STYLE)
    for test in doctest.DocTestFinder().find(module, module.__name__, globs={**READY, **vars(module)}):
        torch.manual_seed(0)
        runner.run(test, out=said.append)
    return said, runner.tries


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    said, tried = failures(importlib.import_module(name))
    assert not said, "".join(said)
    assert tried > 0


@pytest.mark.parametrize("example, wrong", [(">>> 1 + 1\n2\n", False), (">>> 1 + 1\n3\n", True)])
def test_a_wrong_example_is_noticed(example: str, wrong: bool) -> None:
    module = types.ModuleType("sample", example)
    said, tried = failures(module)
    assert (bool(said), tried) == (wrong, 1)
