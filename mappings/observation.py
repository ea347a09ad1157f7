"""Which types are observed in a special way; every other type with a cell in the grid is a leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Dropout only scales at training time; its output has the range of its input.
SKIPPED: Final = ("nn:Dropout",)

# torch's own modules that take a quantized tensor and give one, so that they need no counterpart.
AS_IS: Final = tuple(
    "nn:" + name
    for name in (
        "ReLU Identity Flatten Unflatten Sigmoid Tanh Hardsigmoid Hardtanh Threshold MaxPool1d MaxPool2d "
        "MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
        "PixelShuffle PixelUnshuffle ChannelShuffle Upsample UpsamplingNearest2d UpsamplingBilinear2d "
        "ReflectionPad1d ReflectionPad2d ZeroPad2d ConstantPad2d Dropout1d Dropout2d Dropout3d AlphaDropout"
    ).split()
)

# Leaves that have no cell in the grid: a Sequential carries the qconfig down to its children.
EXTRA_LEAVES: Final = ("nn:Sequential",)


@dataclass(frozen=True)
class Custom:
    """A composite: the float type, the type that is calibrated in its place, and the quantized type."""

    source: str
    observed: str
    quantized: str


CUSTOM: tuple[Custom, ...] = (
    Custom("nn:LSTM", "quantizable:LSTM", "quantized:LSTM"),
    Custom("nn:MultiheadAttention", "quantizable:MultiheadAttention", "quantized:MultiheadAttention"),
)

# Observed classes whose children are observed, never their own output.
NO_OBSERVER: Final = tuple(custom.observed for custom in CUSTOM)

# Their own forward adds with `+`, which torch has no quantized kernel for.
SUMS_IN_FLOAT: Final = ("nn:TransformerEncoderLayer", "nn:TransformerDecoderLayer")

# The output range is known beforehand and must not be learned. Names without a namespace are tensor methods.
FIXED_RANGES: Final[dict[str, tuple[float, float]]] = {
    "nn:Hardsigmoid": (0.0, 1.0),
    "F:hardsigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "hardsigmoid_": (0.0, 1.0),
    "nn:Sigmoid": (0.0, 1.0),
    "torch:sigmoid": (0.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "sigmoid_": (0.0, 1.0),
    "nn:Softmax": (0.0, 1.0),
    "nn:Tanh": (-1.0, 1.0),
    "torch:tanh": (-1.0, 1.0),
    "tanh": (-1.0, 1.0),
    "tanh_": (-1.0, 1.0),
}
