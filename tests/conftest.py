"""Fixtures of every test: one engine at a time, and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support import ENGINES

# The suite runs one process per core, and small tensors gain nothing from more threads.
torch.set_num_threads(1)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each quantized engine this machine has, set for one test and put back."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Let kernels share their work out."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
