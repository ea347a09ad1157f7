"""Linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from quantization.nn.families.family import Family, Geometry


def _weight_shape(geometry: Mapping[str, Any]) -> tuple[int, ...]:
    return geometry["out_features"], geometry["in_features"]


def _sliver(weight: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry]:
    """One column: it has all rows, and with them all scales and zero points."""
    return weight[:, :1].contiguous(), {**geometry, "in_features": 1}


LINEAR = Family(
    float_types=(nn.Linear, NonDynamicallyQuantizableLinear),
    fields=("in_features", "out_features"),
    weight_shape=_weight_shape,
    sliver=_sliver,
)
