"""The two ends of the quantized part of a model: float to quantized, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantization.errors import QuantizationError
from quantization.nn.modes.state import explain_other_stage
from quantization.nn.packaging import ExternalCode
from quantization.nn.placed import Placed
from quantization.nn.static_cell import calibrated_output


def _expect_plain(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise QuantizationError(f"Quantize takes a float tensor, got {type(x).__name__}")
    if x.is_quantized:
        raise QuantizationError(
            "Quantize takes a float tensor, but its input is quantized already: remove this QuantStub, or "
            "put a DeQuantStub before it"
        )


torch.fx.wrap("_expect_plain")


class Quantize(ExternalCode, Placed):
    """Quantizes a float tensor, of any float type, with one scale and zero point.

    Both are saved with shape `[1]`. `factory_kwargs` gives their device, and the type of the scale.

    >>> Quantize(0.5, 10, torch.quint8)(torch.tensor([1.0, -1.0])).int_repr().tolist()
    [12, 8]
    """

    if TYPE_CHECKING:
        scale: Tensor
        zero_point: Tensor

    def __init__(
        self, scale: float | Tensor, zero_point: int | Tensor, dtype: torch.dtype, factory_kwargs: Any = None
    ) -> None:
        factory_kwargs = factory_kwargs or {}
        super().__init__()
        self.register_buffer("scale", torch.tensor([float(scale)], **factory_kwargs))
        integer = {**factory_kwargs, "dtype": torch.int64}
        self.register_buffer("zero_point", torch.tensor([int(zero_point)], **integer))
        self.dtype = dtype

    def forward(self, X: Tensor) -> Tensor:
        """Quantize `X`."""
        _expect_plain(X)
        return torch.quantize_per_tensor(X.float(), self.scale, self.zero_point, self.dtype)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Quantize:
        """Take the parameters of a calibrated `QuantStub`; `use_precomputed_fake_quant` changes nothing."""
        qparams = calibrated_output(mod, "Quantize")
        return cls(
            qparams.scale.float(), qparams.zero_point.long(), qparams.dtype, {"device": qparams.scale.device}
        )

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        explain_other_stage(self, ("scale",), state_dict, prefix, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        """Scale, zero point and type."""
        return f"scale={self.scale}, zero_point={self.zero_point}, dtype={self.dtype}"


class QuantizeDequantize(Quantize):
    """Rounds a float tensor to codes and gives the float values of these: the entry of a reference model.

    The layers of a reference model do float arithmetic, on any device.

    >>> QuantizeDequantize(0.5, 10, torch.quint8)(torch.tensor([1.1, -9.0])).tolist()
    [1.0, -5.0]
    """

    def forward(self, X: Tensor) -> Tensor:
        """Round `X`."""
        _expect_plain(X)
        codes = torch.quantize_per_tensor(X.float(), self.scale, self.zero_point, self.dtype)
        return codes.dequantize().to(X.dtype)


class DeQuantize(nn.Module):
    """Turns a quantized tensor into a float32 one; a float tensor passes.

    >>> DeQuantize()(Quantize(0.5, 10, torch.quint8)(torch.tensor([1.1])))
    tensor([1.])
    """

    def forward(self, Xq: Tensor) -> Tensor:
        """Dequantize `Xq`."""
        return Xq.dequantize()

    @staticmethod
    def from_float(mod: nn.Module, use_precomputed_fake_quant: bool = False) -> DeQuantize:
        """Replace a `DeQuantStub`."""
        return DeQuantize()
