"""The two libraries side by side, under the same names, so that one program can run on either."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import quantization
from quantization.nn import functional_modules, fused, qat
from tests.support import quiet_ao


@dataclass(frozen=True)
class Library:
    """One library: its workflow functions, and its classes by the name torch.ao gives them."""

    name: str
    q: ModuleType
    FloatFunctional: type[nn.Module]
    fused: ModuleType
    freeze_bn_stats: Callable[[nn.Module], None]
    quiet: Callable[[], contextlib.AbstractContextManager[Any]]


OURS = Library(
    "ours",
    quantization,
    functional_modules.FloatFunctional,
    fused,
    qat.freeze_bn_stats,
    contextlib.nullcontext,
)


def theirs() -> Library:
    """torch.ao, or a skip where it is gone."""
    q = pytest.importorskip("torch.ao.quantization")
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    nni = pytest.importorskip("torch.ao.nn.intrinsic")
    nniqat = pytest.importorskip("torch.ao.nn.intrinsic.qat")
    return Library("theirs", q, nnq.FloatFunctional, nni, nniqat.freeze_bn_stats, quiet_ao)


def on_both(program: Callable[[Library], Any]) -> tuple[Any, Any]:
    """The results of `program`, run on our library and on torch.ao from the same seed."""
    results = []
    for library in (OURS, theirs()):
        torch.manual_seed(0)
        with library.quiet():
            results.append(program(library))
    return results[0], results[1]


def as_plain(value: Any) -> Any:
    """Quantized tensors as (codes, scale, zero point), so that equality means equal bits."""
    if isinstance(value, torch.Tensor) and value.is_quantized:
        if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return (value.int_repr(), value.q_scale(), value.q_zero_point())
        return (value.int_repr(), value.q_per_channel_scales(), value.q_per_channel_zero_points())
    if isinstance(value, (tuple, list)):
        return tuple(as_plain(v) for v in value)
    if isinstance(value, dict):
        return {k: as_plain(v) for k, v in value.items()}
    return value


def assert_same(ours: Any, expected: Any, where: str = "") -> None:
    """Equal bits: same keys, dtypes, shapes and values; NaN equals NaN."""
    ours, expected = as_plain(ours), as_plain(expected)
    if isinstance(expected, torch.Tensor):
        assert ours.dtype == expected.dtype and ours.shape == expected.shape, where
        assert torch.equal(torch.nan_to_num(ours), torch.nan_to_num(expected)), where
    elif isinstance(expected, dict):
        assert list(ours) == list(expected), where
        for key in expected:
            assert_same(ours[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, tuple):
        assert len(ours) == len(expected), where
        for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert ours == expected, where
