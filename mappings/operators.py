"""Float function -> name of the quantized operator."""

from __future__ import annotations

from typing import Final

QUANTIZED_OPERATORS: Final[dict[str, str]] = {
    "F:elu": "elu",
    "F:hardswish": "hardswish",
    "F:instance_norm": "instance_norm",
    "F:layer_norm": "layer_norm",
    "F:leaky_relu": "leaky_relu",
    "F:dropout": "dropout",
}
