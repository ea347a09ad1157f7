"""Arithmetic that a `forward` would otherwise write as `x + y`, so that it can be observed and quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from observers.calls import count_call
from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest
from quantization.markers import ObserverSlot
from quantization.nn.static_cell import calibrated_output, expect_quantized, load_numbers, save_numbers

torch.fx.wrap("expect_quantized")


class FXFloatFunctional(nn.Module):
    """Float arithmetic without an observer of its own.

    >>> FXFloatFunctional().add(torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([3.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Raise a RuntimeError: this module has no single operation."""
        raise RuntimeError(
            "FloatFunctional is not intended to use the 'forward'. Please use the underlying operation: call "
            "add, add_scalar, mul, mul_scalar, cat, add_relu or matmul"
        )

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`."""
        return torch.add(x, y)

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x + y` for a number `y`."""
        return torch.add(x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x * y`."""
        return torch.mul(x, y)

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x * y` for a number `y`."""
        return torch.mul(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """Concatenate along `dim`."""
        return torch.cat(x, dim=dim)

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """`relu(x + y)`."""
        return torch.relu(torch.add(x, y))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x @ y`."""
        return torch.matmul(x, y)


class FloatFunctional(nn.Module, ObserverSlot):
    """Float arithmetic whose results pass through `activation_post_process`, which `prepare` replaces.

    Results of the two scalar operations are not observed: quantized, they follow from the input's parameters.
    Use one instance per place in the model; two operations on one instance share one range.

    >>> FloatFunctional().add_relu(torch.tensor([1.0]), torch.tensor([-2.0]))
    tensor([0.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation_post_process = nn.Identity()

    def _observed(self, result: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            count_call(self.activation_post_process)
        return self.activation_post_process(result)

    def forward(self, x: Tensor) -> Tensor:
        """Raise a RuntimeError: this module has no single operation."""
        raise RuntimeError(
            "FloatFunctional is not intended to use the 'forward'. Please use the underlying operation: call "
            "add, add_scalar, mul, mul_scalar, cat, add_relu or matmul"
        )

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`."""
        return self._observed(torch.add(x, y))

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x + y` for a number `y`; not observed."""
        return torch.add(x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x * y`."""
        return self._observed(torch.mul(x, y))

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x * y` for a number `y`; not observed."""
        return torch.mul(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """Concatenate along `dim`."""
        return self._observed(torch.cat(x, dim=dim))

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """`relu(x + y)`."""
        return self._observed(torch.relu(torch.add(x, y)))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x @ y`."""
        return self._observed(torch.matmul(x, y))


_SAVED = {"scale": torch.float32, "zero_point": torch.int64}


class QFunctional(nn.Module, ObserverSlot):
    """Quantized arithmetic; results have this `scale` and `zero_point`, except those of scalar operations.

    >>> x = torch.quantize_per_tensor(torch.tensor([1.0]), 0.5, 0, torch.quint8)
    >>> QFunctional().add(x, x).dequantize()
    tensor([2.])
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.zero_point = 0
        self.activation_post_process = nn.Identity()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_numbers(self, _SAVED, destination, prefix)

    # Version 1: `scale` (float32) and `zero_point` (int64), 0-dim; both required.
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        missing_keys += load_numbers(self, _SAVED, state_dict, prefix, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _get_name(self) -> str:
        return "QFunctional"

    def extra_repr(self) -> str:
        """Scale and zero point."""
        return f"scale={self.scale}, zero_point={self.zero_point}"

    def forward(self, x: Tensor) -> Tensor:
        """Raise a RuntimeError: this module has no single operation."""
        raise RuntimeError(
            "Functional is not intended to use the 'forward'. Please use the underlying operation: call "
            "add, add_scalar, mul, mul_scalar, cat, add_relu or matmul"
        )

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`."""
        expect_quantized(x, "QFunctional.add")
        expect_quantized(y, "QFunctional.add")
        return self.activation_post_process(q.add(x, y, self.scale, self.zero_point))

    def add_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x + y` for a number `y`; scale and zero point follow from those of `x`."""
        expect_quantized(x, "QFunctional.add_scalar")
        return q.add_scalar(x, y)

    def mul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x * y`."""
        expect_quantized(x, "QFunctional.mul")
        expect_quantized(y, "QFunctional.mul")
        return self.activation_post_process(q.mul(x, y, self.scale, self.zero_point))

    def mul_scalar(self, x: Tensor, y: float) -> Tensor:
        """`x * y` for a number `y`; scale and zero point follow from those of `x`."""
        expect_quantized(x, "QFunctional.mul_scalar")
        return q.mul_scalar(x, y)

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """Concatenate along `dim`."""
        for each in x:
            expect_quantized(each, "QFunctional.cat")
        return self.activation_post_process(q.cat(x, dim, self.scale, self.zero_point))

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """`relu(x + y)`."""
        expect_quantized(x, "QFunctional.add_relu")
        expect_quantized(y, "QFunctional.add_relu")
        return self.activation_post_process(q.add_relu(x, y, self.scale, self.zero_point))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """`x @ y`; not passed to `activation_post_process`."""
        expect_quantized(x, "QFunctional.matmul")
        expect_quantized(y, "QFunctional.matmul")
        return q.matmul(x, y, self.scale, self.zero_point)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> QFunctional:
        """Make the quantized module from a calibrated `FloatFunctional`."""
        if type(mod) is not FloatFunctional:
            raise InvalidRequest(
                f"QFunctional.from_float expects an instance of FloatFunctional, got {type(mod).__name__}; "
                "map a class of your own to its own quantized class"
            )
        new = cls()
        if mod.only_scalars:
            return new
        qparams = calibrated_output(mod, "QFunctional")
        new.scale, new.zero_point = float(qparams.scale), int(qparams.zero_point)
        return new
