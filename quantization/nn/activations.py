"""Quantized activation functions and dropout."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from observers import MinMaxObserver
from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest
from quantization.nn.static_cell import (
    BufferCell,
    NumberCell,
    StaticCell,
    calibrated_output,
    expect_quantized,
)
from quantization.qparams import quantize_weight

torch.fx.wrap("expect_quantized")


class ReLU6(StaticCell, nn.ReLU):
    """Quantized `nn.ReLU6`; the output keeps the input's scale and zero point."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(inplace)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> ReLU6:
        """Make the quantized module; the float one needs no observer."""
        return cls(getattr(mod, "inplace", False))

    @classmethod
    def _like(cls, mod: nn.Module, scale: float, zero_point: int) -> ReLU6:
        return cls.from_float(mod)

    def forward(self, input: Tensor) -> Tensor:
        """Cut at 0 and 6."""
        expect_quantized(input, "quantized.ReLU6")
        return q.relu6(input, self.inplace)


class Dropout(StaticCell, nn.Dropout):
    """Stands where a float model had dropout: returns its input, in training mode too."""

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Dropout:
        """Make the quantized module; the float one needs no observer."""
        return cls(getattr(mod, "p", 0.5), getattr(mod, "inplace", False))

    @classmethod
    def _like(cls, mod: nn.Module, scale: float, zero_point: int) -> Dropout:
        return cls.from_float(mod)

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` itself."""
        return input


class Hardswish(BufferCell, nn.Hardswish):
    """Quantized `nn.Hardswish`."""

    def __init__(self, scale: float, zero_point: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self._add_qparams(scale, zero_point, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """`x * relu6(x + 3) / 6`."""
        expect_quantized(input, "quantized.Hardswish")
        return q.hardswish(input, self.scale, self.zero_point)


class LeakyReLU(BufferCell, nn.LeakyReLU):
    """Quantized `nn.LeakyReLU`; the output is a new tensor even if `inplace`, for its scale is another."""

    _FIELDS = ("negative_slope", "inplace")

    def __init__(
        self, scale: float, zero_point: int, negative_slope: float = 0.01, inplace: bool = False,
        device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(negative_slope, inplace)
        self._add_qparams(scale, zero_point, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """`x` where positive, else `negative_slope * x`."""
        expect_quantized(input, "quantized.LeakyReLU")
        # Never in place: the kernel has no such form, and says so in a warning.
        return q.leaky_relu(input, self.negative_slope, False, self.scale, self.zero_point)


class ELU(NumberCell, nn.ELU):
    """Quantized `nn.ELU`."""

    _FIELDS = ("alpha",)

    def __init__(self, scale: float, zero_point: int, alpha: float = 1.0) -> None:
        super().__init__(alpha)
        self.scale = scale
        self.zero_point = zero_point

    def forward(self, input: Tensor) -> Tensor:
        """`x` where positive, else `alpha * (exp(x) - 1)`."""
        expect_quantized(input, "quantized.elu")
        return q.elu(input, self.scale, self.zero_point, self.alpha)


class Sigmoid(NumberCell, nn.Sigmoid):
    """Quantized `nn.Sigmoid`."""

    _QPARAMS = ("output_scale", "output_zero_point")

    def __init__(self, output_scale: float, output_zero_point: int) -> None:
        super().__init__()
        self.output_scale = output_scale
        self.output_zero_point = output_zero_point

    def _get_name(self) -> str:
        return "Sigmoid"

    def forward(self, input: Tensor) -> Tensor:
        """`1 / (1 + exp(-x))`."""
        expect_quantized(input, "quantized.Sigmoid")
        return q.sigmoid(input, self.output_scale, self.output_zero_point)


class Softmax(NumberCell, nn.Softmax):
    """Quantized `nn.Softmax`; without `dim` it takes dimension 0 of 1-d and 3-d inputs, else 1, as torch."""

    _FIELDS = ("dim",)

    def __init__(self, dim: int | None = None, scale: float = 1.0, zero_point: int = 0) -> None:
        super().__init__(dim)
        self.scale = scale
        self.zero_point = zero_point

    def forward(self, input: Tensor) -> Tensor:
        """`exp(x)`, divided by its sum over one dimension."""
        expect_quantized(input, "quantized.Softmax")
        return q.softmax(input, _softmax_dim(input, self.dim), self.scale, self.zero_point)


def _softmax_dim(input: Tensor, dim: int | None) -> int:
    if dim is not None:
        return dim
    return 0 if input.dim() in (0, 1, 3) else 1


torch.fx.wrap("_softmax_dim")


class PReLU(NumberCell):
    """Quantized `nn.PReLU`: one slope, or one per channel of dimension 1.

    The slopes are quantized with the observer of `qconfig.weight` where that is a per-tensor quint8 one, as
    the kernel wants; otherwise by their own range. The kernel multiplies positive inputs by 1 in the codes of
    the slopes: where those end below 1, the range is widened to hold it. (torch.ao widens nothing, so that
    positive inputs shrink, and takes the parameters of any observer for quint8, so that negative slopes
    become 0.)
    """

    _QPARAMS = ("output_scale", "output_zero_point")

    def __init__(self, output_scale: float, output_zero_point: int, num_parameters: int = 1) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.scale = output_scale
        self.zero_point = output_zero_point
        # 0.25, as in nn.PReLU. Codes and not a quantized tensor, for copies and checkpoints of plain tensors.
        self.weight_scale = 0.25
        self.weight_zero_point = 0
        self.register_buffer("weight_codes", torch.ones(num_parameters, dtype=torch.uint8))

    def _numbers(self) -> dict[str, torch.dtype]:
        names = ("scale", "zero_point", "weight_scale", "weight_zero_point")
        return {name: torch.float64 if name.endswith("scale") else torch.int64 for name in names}

    # Version 1. torch.ao's checkpoints lack the slopes as they lack the numbers; they too keep their values.
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        state_dict.setdefault(prefix + "weight_codes", self.weight_codes)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __setstate__(self, state: Any) -> None:
        # Modules pickled by torch.ao hold the quantized slopes themselves.
        slopes = state.get("weight")
        super().__setstate__({name: value for name, value in state.items() if name != "weight"})
        if slopes is not None:
            self.register_buffer("weight_codes", None)
            self.set_weight(slopes)

    @property
    def weight(self) -> Tensor:
        """The slopes, a quint8 tensor; `set_weight` replaces them."""
        return torch._make_per_tensor_quantized_tensor(
            self.weight_codes, self.weight_scale, self.weight_zero_point
        )

    def set_weight(self, w: Tensor) -> None:
        """Replace the slopes by another per-tensor quint8 tensor."""
        if not isinstance(w, Tensor) or w.dtype != torch.quint8 or w.qscheme() != torch.per_tensor_affine:
            got = w.dtype if isinstance(w, Tensor) else type(w).__name__
            raise InvalidRequest(
                f"quantized PReLU takes a per-tensor torch.quint8 weight, got {got}: make one with "
                "torch.quantize_per_tensor"
            )
        self.weight_codes = w.int_repr()
        self.weight_scale, self.weight_zero_point = w.q_scale(), w.q_zero_point()

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> PReLU:
        """Make the quantized module from a calibrated float one; the second argument changes nothing."""
        dtype = calibrated_output(mod, cls.__name__).dtype
        if dtype != torch.quint8:
            raise InvalidRequest(
                f"torch's quantized PReLU takes torch.quint8 activations only, the observer has {dtype}; "
                "use a quint8 activation observer, or keep the module float by setting its qconfig to None"
            )
        return super().from_float(mod)

    @classmethod
    def _like(cls, mod: nn.Module, scale: float, zero_point: int) -> PReLU:
        if not isinstance(mod, nn.PReLU):
            raise InvalidRequest(f"quantized PReLU is made from an nn.PReLU, not from {type(mod).__name__}")
        new = cls(scale, zero_point, mod.num_parameters)
        new.set_weight(_quantized_slopes(mod))
        return new

    def forward(self, input: Tensor) -> Tensor:
        """`x` where positive, else `weight * x`."""
        expect_quantized(input, "quantized.PReLU")
        return q.prelu(input, self.weight, self.scale, self.zero_point)


def _quantized_slopes(mod: nn.PReLU) -> Tensor:
    """The slopes of a float PReLU, quint8 per tensor, with codes that can express 1 as well."""
    weight = mod.weight.detach().float()
    qconfig = getattr(mod, "qconfig", None)
    observer: Any = None if qconfig is None or qconfig.weight is None else qconfig.weight()
    kind = getattr(observer, "dtype", None), getattr(observer, "qscheme", None)
    if kind not in ((torch.quint8, torch.per_tensor_affine), (torch.quint8, torch.per_tensor_symmetric)):
        observer = MinMaxObserver(dtype=torch.quint8)
    observer = observer.to(weight.device)
    widened = copy.deepcopy(observer)
    observer(weight)
    if not _has_code_for_one(observer):
        widened(torch.cat([weight, weight.new_ones(1)]))
        observer = widened
    return quantize_weight(weight, observer)


def _has_code_for_one(observer: Any) -> bool:
    scale, zero_point = observer.calculate_qparams()
    return 1 / float(scale) + int(zero_point) < torch.iinfo(torch.uint8).max + 0.5
