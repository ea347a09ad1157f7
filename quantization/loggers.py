"""Modules that record: loggers of outputs, and `Shadow`, which runs a float module beside a quantized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quantization.nn import quantized


class Logger(nn.Module):
    """Base of loggers: what they record is in the dictionary `stats`."""

    def __init__(self) -> None:
        super().__init__()
        self.stats: dict[str, Any] = {}
        self.dtype = torch.quint8

    def forward(self, x: Any) -> Any:
        """Record `x`; a logger of a module's output returns it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class OutputLogger(Logger):
    """Records every output of the module it is attached to, in `stats["tensor_val"]`.

    >>> logger = OutputLogger()
    >>> _ = logger(torch.ones(2))
    >>> logger.stats
    {'tensor_val': [tensor([1., 1.])]}
    """

    def __init__(self) -> None:
        super().__init__()
        self.stats["tensor_val"] = []

    def forward(self, x: Any) -> Any:
        """Record `x`, a tensor or nested tuples of them, and return it."""
        self.stats["tensor_val"].append(recorded(x))
        return x


class ShadowLogger(Logger):
    """Records outputs of a quantized and of a float module in `stats["quantized"]` and `stats["float"]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stats.update(float=[], quantized=[])

    def forward(self, x: Any, y: Any) -> None:
        """Record the quantized output `x` and the float one `y`; of tuples (LSTM) the first tensor."""
        self.stats["quantized"].append(recorded(first(x)))
        self.stats["float"].append(recorded(first(y)))


class Shadow(nn.Module):
    """Runs a float module beside a quantized one, on dequantized inputs; returns the quantized output."""

    def __init__(self, q_module: nn.Module, float_module: nn.Module, logger_cls: Callable[[], Any]) -> None:
        super().__init__()
        self.orig_module = q_module
        self.shadow_module = float_module
        self.dequant = quantized.DeQuantize()
        self.logger = logger_cls()

    def forward(self, *x: Any, **kwargs: Any) -> Any:
        """Run both modules on any number of tensors, or nested tuples of them."""
        output = self.orig_module(*x, **kwargs)
        floats = {name: dequantized(value) for name, value in kwargs.items()}
        self.logger(output, self.shadow_module(*map(dequantized, x), **floats))
        return output

    def _both(self, operation: str, *arguments: Any) -> Tensor:
        output = getattr(self.orig_module, operation)(*arguments)
        self.logger(output, getattr(self.shadow_module, operation)(*map(dequantized, arguments)))
        return output

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`."""
        return self._both("add", x, y)

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x + y` for a number `y`."""
        return self._both("add_scalar", x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x * y`."""
        return self._both("mul", x, y)

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x * y` for a number `y`."""
        return self._both("mul_scalar", x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """Concatenate along `dim`."""
        return self._both("cat", x, dim)

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """`relu(x + y)`."""
        return self._both("add_relu", x, y)


def recorded(value: Any) -> Any:
    """A copy without history, for operations in place may follow; tuples become tuples of copies."""
    if isinstance(value, (tuple, list)):
        return tuple(recorded(part) for part in value)
    return value.detach().clone() if isinstance(value, Tensor) else value


def first(value: Any) -> Any:
    return first(value[0]) if isinstance(value, (tuple, list)) else value


def dequantized(value: Any) -> Any:
    """The value with its quantized tensors dequantized; tuples become lists only where they were lists."""
    if isinstance(value, (tuple, list)):
        return type(value)(dequantized(part) for part in value)
    return value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value
