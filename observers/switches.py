"""The base class of fake quantizers: two switches, one for observing and one for rounding."""

from abc import ABCMeta, abstractmethod
from typing import Any

import torch
from torch import nn

from observers.factory import _PartialWrapper, _with_args
from observers.precision import KeepsPrecision


class FakeQuantizeBase(KeepsPrecision, nn.Module, metaclass=ABCMeta):
    """Base of fake quantizers: two switches, kept as buffers so that scripts and replicas see them.

    `fake_quant_enabled` and `observer_enabled` hold 1 or 0.
    """

    fake_quant_enabled: torch.Tensor
    observer_enabled: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.uint8))

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` rounded to the integer grid."""

    @abstractmethod
    def calculate_qparams(self, **kwargs: Any) -> Any:
        """Return the scale and the zero point."""

    @torch.jit.export
    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch the rounding on, or off with `enabled=False`."""
        self.fake_quant_enabled[0] = 1 if enabled else 0

    @torch.jit.export
    def disable_fake_quant(self) -> None:
        """Switch the rounding off: the input passes unchanged."""
        self.enable_fake_quant(False)

    @torch.jit.export
    def enable_observer(self, enabled: bool = True) -> None:
        """Switch observation on, or off with `enabled=False`."""
        self.observer_enabled[0] = 1 if enabled else 0

    @torch.jit.export
    def disable_observer(self) -> None:
        """Switch observation off: scale and zero point stay as they are."""
        self.enable_observer(False)

    @classmethod
    def with_args(cls, **kwargs: Any) -> _PartialWrapper:
        """Return a factory of this class with `kwargs` filled in."""
        factory = _with_args(cls, **kwargs)
        factory.__module__ = cls.__module__
        return factory
