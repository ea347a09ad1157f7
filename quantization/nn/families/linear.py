"""Linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from quantization.nn.families.family import Family


def _weight_shape(geometry: Mapping[str, Any]) -> tuple[int, ...]:
    return geometry["out_features"], geometry["in_features"]


def _apply(_module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


LINEAR = Family(
    float_types=(nn.Linear, NonDynamicallyQuantizableLinear),
    fields=("in_features", "out_features"),
    weight_shape=_weight_shape,
    apply=_apply,
)
