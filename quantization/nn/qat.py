"""Layers for quantization-aware training: the names of `torch.ao.nn.qat` and `torch.ao.nn.intrinsic.qat`.

`prepare_qat` puts them in place of float and fused modules; `convert` makes quantized modules of them.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from quantization.markers import FusedModule
from quantization.nn import fused
from quantization.nn.families.conv import CONV1D, CONV2D, CONV3D
from quantization.nn.families.embedding import EMBEDDING, EMBEDDING_BAG
from quantization.nn.families.linear import LINEAR
from quantization.nn.modes.qat import QatConv, QatConvReLU, QatLinear
from quantization.nn.modes.qat_batchnorm import QatBatchNorm, QatConvBn, QatConvBnReLU, QatLinearBn
from quantization.nn.modes.qat_lookup import QatEmbedding, QatEmbeddingBag

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "Embedding",
    "EmbeddingBag",
    "Linear",
    "LinearBn1d",
    "LinearReLU",
    "freeze_bn_stats",
    "update_bn_stats",
]


class Linear(QatLinear, nn.Linear, family=LINEAR):
    """`nn.Linear` with a fake-quantized weight.

    >>> from quantization.qconfig import get_default_qat_qconfig
    >>> Linear(2, 3, qconfig=get_default_qat_qconfig("fbgemm")).to_float()
    Linear(in_features=2, out_features=3, bias=True)
    """

    _FLOAT_MODULE = nn.Linear


class LinearReLU(Linear, FusedModule):
    """`Linear` followed by ReLU."""

    _FLOAT_MODULE = fused.LinearReLU
    _FLOAT_RELU_MODULE = nn.ReLU

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(F.linear(input, self.weight_fake_quant(self.weight), self.bias))


class LinearBn1d(QatLinearBn, nn.Linear, FusedModule, family=LINEAR):
    """`Linear` with BatchNorm1d folded into the weight it rounds."""

    _FLOAT_MODULE = fused.LinearBn1d


class Conv1d(QatConv, nn.Conv1d, family=CONV1D):
    """`nn.Conv1d` with a fake-quantized weight."""

    _FLOAT_MODULE = _FLOAT_CONV_MODULE = nn.Conv1d


class Conv2d(QatConv, nn.Conv2d, family=CONV2D):
    """`nn.Conv2d` with a fake-quantized weight."""

    _FLOAT_MODULE = _FLOAT_CONV_MODULE = nn.Conv2d


class Conv3d(QatConv, nn.Conv3d, family=CONV3D):
    """`nn.Conv3d` with a fake-quantized weight."""

    _FLOAT_MODULE = _FLOAT_CONV_MODULE = nn.Conv3d


class ConvReLU1d(QatConvReLU, Conv1d, FusedModule):
    """`Conv1d` followed by ReLU."""

    _FLOAT_MODULE = fused.ConvReLU1d


class ConvReLU2d(QatConvReLU, Conv2d, FusedModule):
    """`Conv2d` followed by ReLU."""

    _FLOAT_MODULE = fused.ConvReLU2d


class ConvReLU3d(QatConvReLU, Conv3d, FusedModule):
    """`Conv3d` followed by ReLU."""

    _FLOAT_MODULE = fused.ConvReLU3d


class ConvBn1d(QatConvBn, nn.Conv1d, FusedModule, family=CONV1D):
    """`Conv1d` with BatchNorm1d folded into the weight it rounds."""

    _FLOAT_MODULE = fused.ConvBn1d
    _FLOAT_CONV_MODULE = nn.Conv1d
    _FLOAT_BN_MODULE = nn.BatchNorm1d


class ConvBn2d(QatConvBn, nn.Conv2d, FusedModule, family=CONV2D):
    """`Conv2d` with BatchNorm2d folded into the weight it rounds."""

    _FLOAT_MODULE = fused.ConvBn2d
    _FLOAT_CONV_MODULE = nn.Conv2d
    _FLOAT_BN_MODULE = nn.BatchNorm2d


class ConvBn3d(QatConvBn, nn.Conv3d, FusedModule, family=CONV3D):
    """`Conv3d` with BatchNorm3d folded into the weight it rounds."""

    _FLOAT_MODULE = fused.ConvBn3d
    _FLOAT_CONV_MODULE = nn.Conv3d
    _FLOAT_BN_MODULE = nn.BatchNorm3d


class ConvBnReLU1d(QatConvBnReLU, ConvBn1d):
    """`ConvBn1d` followed by ReLU."""

    _FLOAT_MODULE = fused.ConvBnReLU1d
    _FUSED_FLOAT_MODULE = fused.ConvReLU1d


class ConvBnReLU2d(QatConvBnReLU, ConvBn2d):
    """`ConvBn2d` followed by ReLU."""

    _FLOAT_MODULE = fused.ConvBnReLU2d
    _FUSED_FLOAT_MODULE = fused.ConvReLU2d


class ConvBnReLU3d(QatConvBnReLU, ConvBn3d):
    """`ConvBn3d` followed by ReLU."""

    _FLOAT_MODULE = fused.ConvBnReLU3d
    _FUSED_FLOAT_MODULE = fused.ConvReLU3d


class Embedding(QatEmbedding, nn.Embedding, family=EMBEDDING):
    """`nn.Embedding` with a weight fake-quantized per row."""

    _FLOAT_MODULE = nn.Embedding


class EmbeddingBag(QatEmbeddingBag, nn.EmbeddingBag, family=EMBEDDING_BAG):
    """`nn.EmbeddingBag` with a weight fake-quantized per row."""

    _FLOAT_MODULE = nn.EmbeddingBag


_WITH_NORM = frozenset((ConvBn1d, ConvBn2d, ConvBn3d, ConvBnReLU1d, ConvBnReLU2d, ConvBnReLU3d, LinearBn1d))


def freeze_bn_stats(mod: nn.Module) -> None:
    """Freeze the statistics of a fused QAT layer of exactly one of the types here; for `model.apply`.

    >>> from quantization.qconfig import get_default_qat_qconfig
    >>> model = nn.Sequential(ConvBn2d(1, 1, 1, qconfig=get_default_qat_qconfig("fbgemm")))
    >>> model.apply(freeze_bn_stats)[0].bn.training
    False
    """
    if isinstance(mod, QatBatchNorm) and type(mod) in _WITH_NORM:
        mod.freeze_bn_stats()


def update_bn_stats(mod: nn.Module) -> None:
    """Undo `freeze_bn_stats`: normalize by the statistics of each batch again; for `model.apply`."""
    if isinstance(mod, QatBatchNorm) and type(mod) in _WITH_NORM:
        mod.update_bn_stats()
