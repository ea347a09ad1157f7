"""Which runs of adjacent modules fuse, and into what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fusion:
    """A run of module types and the type it becomes.

    `training` is the fused module that quantization-aware training starts from (None: there is none).
    `eval` is what inference needs: where a batch norm folds into the layer before it, that layer's own type
    or its fusion with the ReLU.
    """

    pattern: tuple[str, ...]
    training: str | None
    eval: str


FUSIONS: tuple[Fusion, ...] = (
    Fusion(("nn:Conv1d", "nn:BatchNorm1d"), "fused:ConvBn1d", "nn:Conv1d"),
    Fusion(("nn:Conv1d", "nn:BatchNorm1d", "nn:ReLU"), "fused:ConvBnReLU1d", "fused:ConvReLU1d"),
    Fusion(("nn:Conv2d", "nn:BatchNorm2d"), "fused:ConvBn2d", "nn:Conv2d"),
    Fusion(("nn:Conv2d", "nn:BatchNorm2d", "nn:ReLU"), "fused:ConvBnReLU2d", "fused:ConvReLU2d"),
    Fusion(("nn:Conv3d", "nn:BatchNorm3d"), "fused:ConvBn3d", "nn:Conv3d"),
    Fusion(("nn:Conv3d", "nn:BatchNorm3d", "nn:ReLU"), "fused:ConvBnReLU3d", "fused:ConvReLU3d"),
    Fusion(("nn:Conv1d", "nn:ReLU"), "fused:ConvReLU1d", "fused:ConvReLU1d"),
    Fusion(("nn:Conv2d", "nn:ReLU"), "fused:ConvReLU2d", "fused:ConvReLU2d"),
    Fusion(("nn:Conv3d", "nn:ReLU"), "fused:ConvReLU3d", "fused:ConvReLU3d"),
    Fusion(("nn:Linear", "nn:BatchNorm1d"), "fused:LinearBn1d", "nn:Linear"),
    Fusion(("nn:Linear", "nn:ReLU"), "fused:LinearReLU", "fused:LinearReLU"),
    Fusion(("nn:BatchNorm2d", "nn:ReLU"), "fused:BNReLU2d", "fused:BNReLU2d"),
    Fusion(("nn:BatchNorm3d", "nn:ReLU"), "fused:BNReLU3d", "fused:BNReLU3d"),
    Fusion(("nn:ConvTranspose1d", "nn:BatchNorm1d"), None, "nn:ConvTranspose1d"),
    Fusion(("nn:ConvTranspose2d", "nn:BatchNorm2d"), None, "nn:ConvTranspose2d"),
    Fusion(("nn:ConvTranspose3d", "nn:BatchNorm3d"), None, "nn:ConvTranspose3d"),
)
