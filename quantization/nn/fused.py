"""Float modules that quantize as one: the `torch.ao.nn.intrinsic` names.

Each is a sequential container of the float modules it was made from, so its state-dict keys are `0.weight`,
`1.weight` and so on. `prepare` observes it as a whole, `prepare_qat` and `convert` replace it by one module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from quantization.errors import InvalidRequest
from quantization.markers import FusedModule as FusedModule

__all__ = [
    "BNReLU2d",
    "BNReLU3d",
    "ConvAdd2d",
    "ConvAddReLU2d",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "LinearBn1d",
    "LinearLeakyReLU",
    "LinearReLU",
    "LinearTanh",
]


def _listed(names: list[str]) -> str:
    """Join type names the way the messages of torch.ao do: "A and B", "A, B, and C"."""
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])}, and {names[-1]}"


class _Checked(FusedModule):
    """A fused module that names the exact float types it is made of."""

    _PARTS: tuple[type[nn.Module], ...] = ()

    def __init__(self, *modules: nn.Module) -> None:
        got = [type_before_parametrizations(module) for module in modules]
        if tuple(got) != self._PARTS:
            names, expected = ([part.__name__ for part in parts] for parts in (got, self._PARTS))
            raise InvalidRequest(
                f"Incorrect types for input modules: {_listed(names)}. {type(self).__name__} is made of "
                f"{_listed(expected)}, of exactly these types: pass those, or leave subclasses unfused."
            )
        super().__init__(*modules)


class _ConvBn(_Checked):
    def __init__(self, conv: nn.Module, bn: nn.Module) -> None:
        super().__init__(conv, bn)


class _ConvBnReLU(_Checked):
    def __init__(self, conv: nn.Module, bn: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, bn, relu)


class _ConvReLU(_Checked):
    def __init__(self, conv: nn.Module, relu: nn.Module) -> None:
        super().__init__(conv, relu)


class _BNReLU(_Checked):
    def __init__(self, batch_norm: nn.Module, relu: nn.Module) -> None:
        super().__init__(batch_norm, relu)


class ConvBn1d(_ConvBn):
    """Conv1d followed by BatchNorm1d."""

    _PARTS = (nn.Conv1d, nn.BatchNorm1d)


class ConvBn2d(_ConvBn):
    """Conv2d followed by BatchNorm2d.

    >>> fused = ConvBn2d(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> [type(part).__name__ for part in fused]
    ['Conv2d', 'BatchNorm2d']
    """

    _PARTS = (nn.Conv2d, nn.BatchNorm2d)


class ConvBn3d(_ConvBn):
    """Conv3d followed by BatchNorm3d."""

    _PARTS = (nn.Conv3d, nn.BatchNorm3d)


class ConvBnReLU1d(_ConvBnReLU):
    """Conv1d, BatchNorm1d, ReLU."""

    _PARTS = (nn.Conv1d, nn.BatchNorm1d, nn.ReLU)


class ConvBnReLU2d(_ConvBnReLU):
    """Conv2d, BatchNorm2d, ReLU."""

    _PARTS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)


class ConvBnReLU3d(_ConvBnReLU):
    """Conv3d, BatchNorm3d, ReLU."""

    _PARTS = (nn.Conv3d, nn.BatchNorm3d, nn.ReLU)


class ConvReLU1d(_ConvReLU):
    """Conv1d followed by ReLU."""

    _PARTS = (nn.Conv1d, nn.ReLU)


class ConvReLU2d(_ConvReLU):
    """Conv2d followed by ReLU."""

    _PARTS = (nn.Conv2d, nn.ReLU)


class ConvReLU3d(_ConvReLU):
    """Conv3d followed by ReLU."""

    _PARTS = (nn.Conv3d, nn.ReLU)


class LinearReLU(_Checked):
    """Linear followed by ReLU; a parametrized Linear is accepted."""

    _PARTS = (nn.Linear, nn.ReLU)

    def __init__(self, linear: nn.Module, relu: nn.Module) -> None:
        super().__init__(linear, relu)


class LinearBn1d(_Checked):
    """Linear followed by BatchNorm1d."""

    _PARTS = (nn.Linear, nn.BatchNorm1d)

    def __init__(self, linear: nn.Module, bn: nn.Module) -> None:
        super().__init__(linear, bn)


class LinearLeakyReLU(_Checked):
    """Linear followed by LeakyReLU."""

    _PARTS = (nn.Linear, nn.LeakyReLU)

    def __init__(self, linear: nn.Module, leaky_relu: nn.Module) -> None:
        super().__init__(linear, leaky_relu)


class LinearTanh(_Checked):
    """Linear followed by Tanh."""

    _PARTS = (nn.Linear, nn.Tanh)

    def __init__(self, linear: nn.Module, tanh: nn.Module) -> None:
        super().__init__(linear, tanh)


class BNReLU2d(_BNReLU):
    """BatchNorm2d followed by ReLU."""

    _PARTS = (nn.BatchNorm2d, nn.ReLU)


class BNReLU3d(_BNReLU):
    """BatchNorm3d followed by ReLU."""

    _PARTS = (nn.BatchNorm3d, nn.ReLU)


class ConvAdd2d(FusedModule):
    """Conv2d and the addition of a second input: `add(conv(x1), x2)`; `add` takes and returns tensors."""

    def __init__(self, conv: nn.Module, add: Callable[[Any, Any], Any]) -> None:
        _require_conv2d(conv, "ConvAdd2d")
        super().__init__(conv)
        self.add = add

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.add(self[0](x1), x2)


class ConvAddReLU2d(FusedModule):
    """Conv2d, addition of a second input, ReLU: `relu(add(conv(x1), x2))`."""

    def __init__(self, conv: nn.Module, add: Callable[[Any, Any], Any], relu: nn.Module) -> None:
        _require_conv2d(conv, "ConvAddReLU2d")
        super().__init__(conv)
        self.add = add
        self.relu = relu

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.relu(self.add(self[0](x1), x2))


def _require_conv2d(conv: nn.Module, name: str) -> None:
    if not isinstance(conv, nn.Conv2d):
        raise InvalidRequest(
            f"Incorrect types for input modules: {type(conv).__name__}. {name} adds a second input to the "
            "output of a Conv2d: pass an nn.Conv2d first, then the addition."
        )
