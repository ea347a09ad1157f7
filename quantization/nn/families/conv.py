"""Convolutions and transposed convolutions of one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.utils import _ntuple

from quantization.errors import InvalidRequest, QuantizationError
from quantization.nn.families.family import Family

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_FIELDS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def _weight_shape(geometry: Mapping[str, Any]) -> tuple[int, ...]:
    inputs = geometry["in_channels"] // geometry["groups"]
    return geometry["out_channels"], inputs, *geometry["kernel_size"]


def _transposed_weight_shape(geometry: Mapping[str, Any]) -> tuple[int, ...]:
    outputs = geometry["out_channels"] // geometry["groups"]
    return geometry["in_channels"], outputs, *geometry["kernel_size"]


def _conv(float_type: type[nn.Module], rank: int) -> Family:
    return Family((float_type,), _FIELDS, _weight_shape, rank)


def _conv_transpose(float_type: type[nn.Module], rank: int) -> Family:
    return Family((float_type,), (*_FIELDS, "output_padding"), _transposed_weight_shape, rank)


CONV1D = _conv(nn.Conv1d, 1)
CONV2D = _conv(nn.Conv2d, 2)
CONV3D = _conv(nn.Conv3d, 3)
CONV_TRANSPOSE1D = _conv_transpose(nn.ConvTranspose1d, 1)
CONV_TRANSPOSE2D = _conv_transpose(nn.ConvTranspose2d, 2)
CONV_TRANSPOSE3D = _conv_transpose(nn.ConvTranspose3d, 3)


@dataclass(frozen=True)
class Padding:
    """How a convolution pads: `packed` by its kernel, `amounts` beforehand as `F.pad` takes them.

    `numbers` is what the module shows as its `padding`; `mode` is a mode of `F.pad`, or "none" for no call.
    """

    numbers: tuple[int, ...]
    packed: tuple[int, ...]
    amounts: tuple[int, ...]
    mode: str


def lower_padding(
    padding: int | Sequence[int] | str,
    padding_mode: str,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
) -> Padding:
    """Turn 'same', 'valid' and numbers in any padding mode into numbers.

    'same' pads the right side by one more where the total is odd, as the float layer does.

    >>> lower_padding("same", "zeros", (4,), (1,), (1,))
    Padding(numbers=(1,), packed=(1,), amounts=(0, 1), mode='constant')
    """
    rank = len(kernel_size)
    if padding == "same":
        if any(step != 1 for step in stride):
            raise InvalidRequest(f"padding='same' needs stride 1, but got stride {tuple(stride)}")
        total = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    elif isinstance(padding, str) and padding != "valid":
        raise InvalidRequest(f"padding must be numbers, 'same' or 'valid', but got {padding!r}")
    else:
        total = [2 * side for side in (_ntuple(rank)(0 if padding == "valid" else padding))]
    left = tuple(amount // 2 for amount in total)
    right = tuple(amount - side for amount, side in zip(total, left, strict=True))
    if padding_mode != "zeros":
        return Padding(left, (0,) * rank, _pad_amounts(left, right), padding_mode)
    surplus = tuple(r - side for r, side in zip(right, left, strict=True))
    mode = "constant" if any(surplus) else "none"
    return Padding(left, left, _pad_amounts((0,) * rank, surplus), mode)


def check_conv(geometry: Mapping[str, Any], transposed: bool) -> None:
    """Refuse channel counts that the groups do not divide, and padding modes that do not exist."""
    for name in ("in_channels", "out_channels"):
        if geometry[name] % geometry["groups"] != 0:
            raise QuantizationError(
                f"{name} must be divisible by groups, but {geometry[name]} is not by {geometry['groups']}"
            )
    modes = ("zeros",) if transposed else _PADDING_MODES
    if geometry["padding_mode"] not in modes:
        allowed = " or ".join(repr(mode) for mode in modes)
        raise QuantizationError(f"padding_mode must be {allowed} here, but got {geometry['padding_mode']!r}")


def _pad_amounts(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """Left and right of each dimension, the last dimension first."""
    pairs = list(zip(left, right, strict=True))
    return tuple(side for pair in reversed(pairs) for side in pair)
