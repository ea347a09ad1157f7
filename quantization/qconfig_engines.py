"""The engines: which of them this machine runs, and which factories suit each one's kernels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from observers import (
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MovingAverageMinMaxObserver,
    default_fused_per_channel_wt_fake_quant,
    default_fused_wt_fake_quant,
    default_per_channel_weight_fake_quant,
    default_per_channel_weight_observer,
    default_weight_fake_quant,
    default_weight_observer,
)
from quantization.errors import InvalidRequest, QuantizationWarning

Factories = tuple[Any, Any]  # for the activation, and for the weight


@dataclass(frozen=True)
class EngineFactories:
    """What suits an engine's kernels: factories for calibration, and for training those of each version."""

    static: Factories
    qat: tuple[Factories, Factories]


def _simulated(fake_quantize: type[FakeQuantize], **keywords: Any) -> Any:
    """A fake quantizer of unsigned 8-bit activations."""
    return fake_quantize.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, **keywords
    )


# x86 kernels without VNNI add pairs of products in 16 bits, hence seven-bit activations (reduce_range).
X86 = EngineFactories(
    static=(HistogramObserver.with_args(reduce_range=True), default_per_channel_weight_observer),
    qat=(
        (_simulated(FakeQuantize, reduce_range=True), default_per_channel_weight_fake_quant),
        (
            _simulated(FusedMovingAvgObsFakeQuantize, reduce_range=True),
            default_fused_per_channel_wt_fake_quant,
        ),
    ),
)
ENGINES: dict[str, EngineFactories] = {
    "fbgemm": X86,
    "x86": X86,
    "qnnpack": EngineFactories(
        static=(HistogramObserver.with_args(reduce_range=False), default_weight_observer),
        qat=(
            (_simulated(FakeQuantize, reduce_range=False), default_weight_fake_quant),
            (_simulated(FusedMovingAvgObsFakeQuantize, reduce_range=False), default_fused_wt_fake_quant),
        ),
    ),
    "onednn": EngineFactories(
        static=(HistogramObserver.with_args(reduce_range=False), default_per_channel_weight_observer),
        qat=(
            (_simulated(FakeQuantize), default_per_channel_weight_fake_quant),
            (_simulated(FusedMovingAvgObsFakeQuantize), default_fused_per_channel_wt_fake_quant),
        ),
    ),
}
# Best first, for a machine whose current engine is unusable.
_PREFERENCE = ("x86", "fbgemm", "onednn", "qnnpack")


def usable_engines() -> list[str]:
    """The quantized engines of this machine's torch, best first.

    >>> set(usable_engines()) <= {"x86", "fbgemm", "onednn", "qnnpack"}
    True
    """
    supported = torch.backends.quantized.supported_engines
    return [name for name in _PREFERENCE if name in supported]


def default_engine() -> str:
    """The engine that quantized models run on here: torch's current one, else the best that this machine has.

    A machine without any gets 'x86', because a qconfig may be made on another machine than the one it is for.

    >>> default_engine() in ("x86", "fbgemm", "onednn", "qnnpack")
    True
    """
    usable = usable_engines()
    current = torch.backends.quantized.engine
    return current if current in usable else next(iter(usable), "x86")


def engine_named(backend: str | None) -> str:
    """The engine meant, with a warning if this machine cannot run it."""
    if backend is None:
        return default_engine()
    usable = usable_engines()
    here = f"this machine has {usable or 'none of them'}"
    if backend not in ENGINES:
        raise InvalidRequest(
            f"backend: {backend} not supported. backend must be one of {list(ENGINES)}; {here}"
        )
    if backend not in usable:
        warnings.warn(
            f"a qconfig for {backend} was made, but {here}: models converted here will not run on {backend}",
            QuantizationWarning,
            stacklevel=3,
        )
    return backend


def has_vnni() -> bool:
    """Whether the CPU has the instructions; True on versions of torch that cannot tell."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: True)())
