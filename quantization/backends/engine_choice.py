"""Which of torch's engines multiplies a dynamic linear layer faster, where the compiled kernel is absent.

FBGEMM wins at a few rows. oneDNN wins by up to three times from some number of rows on, if the CPU has the
instructions for it: `python -m benchmarks dynamic_linear` measures where.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch


@functools.cache
def _fewest_rows() -> float:
    """From how many rows on oneDNN wins on this CPU; infinite where it never does."""
    cpu = torch.cpu
    if "onednn" not in torch.backends.quantized.supported_engines:
        return float("inf")
    if getattr(cpu, "_is_amx_tile_supported", bool)():
        return 32
    if getattr(cpu, "_is_avx512_vnni_supported", getattr(cpu, "_is_vnni_supported", bool))():
        return 128
    return float("inf")


def faster_engine(rows: int) -> str:
    """'fbgemm' or 'onednn', for an input of so many rows.

    >>> faster_engine(1)
    'fbgemm'
    """
    return "onednn" if rows >= _fewest_rows() else "fbgemm"


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Let torch use another quantized engine for a while."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
