"""QAT for dynamic quantization: the names of `torch.ao.nn.qat.dynamic`."""

from __future__ import annotations

from typing import Any

from quantization.errors import QuantizationError
from quantization.nn import qat
from quantization.qconfig import _activation_is_memoryless

__all__ = ["Linear"]


class Linear(qat.Linear):
    """`nn.Linear` with a fake-quantized weight, whose input is fake-quantized by the range of each batch.

    >>> from quantization.qconfig import default_dynamic_qat_qconfig
    >>> Linear(2, 3, qconfig=default_dynamic_qat_qconfig).to_float()
    Linear(in_features=2, out_features=3, bias=True)
    """

    def _fake_quantize_weight(self, qconfig: Any, device: Any = None, dtype: Any = None) -> None:
        super()._fake_quantize_weight(qconfig, device, dtype)
        if not _activation_is_memoryless(qconfig):
            raise QuantizationError(
                "Dynamic QAT requires a memoryless observer."
                "This means a MovingAverage observer with averaging constant equal to 1, because at "
                "inference each batch has its own range; use default_dynamic_qat_qconfig, or pass "
                "averaging_constant=1"
            )
