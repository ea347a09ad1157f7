"""Linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from quantization.nn.families.family import Family


def _weight_shape(geometry: Mapping[str, Any]) -> tuple[int, ...]:
    return geometry["out_features"], geometry["in_features"]


LINEAR = Family(
    float_types=(nn.Linear, NonDynamicallyQuantizableLinear),
    fields=("in_features", "out_features"),
    weight_shape=_weight_shape,
)
