"""The grid: a row per source type, a column per way of quantizing it.

A source is "namespace:Name"; `mappings.resolve` knows the namespaces. A cell is a bare class name in the
column's own namespace, or "namespace:Name" where the class lives elsewhere. None: the type stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What becomes of the type `source` in static, dynamic, quantization-aware and reference quantization."""

    source: str
    static: str | None = None
    dynamic: str | None = None
    qat: str | None = None
    reference: str | None = None


GRID: tuple[Row, ...] = (
    # stubs and functional modules
    Row("stubs:QuantStub", static="Quantize", reference="quantized:Quantize"),
    Row("stubs:DeQuantStub", static="DeQuantize", reference="quantized:DeQuantize"),
    Row("functional:FloatFunctional", static="functional:QFunctional"),
    # weighted layers
    Row("nn:Linear", static="Linear", dynamic="Linear", qat="Linear", reference="Linear"),
    Row("nn:NonDynamicallyQuantizableLinear", static="Linear", dynamic="Linear", qat="Linear"),
    Row("nn:Conv1d", static="Conv1d", reference="Conv1d"),
    Row("nn:Conv2d", static="Conv2d", qat="Conv2d", reference="Conv2d"),
    Row("nn:Conv3d", static="Conv3d", qat="Conv3d", reference="Conv3d"),
    Row("nn:ConvTranspose1d", static="ConvTranspose1d", reference="ConvTranspose1d"),
    Row("nn:ConvTranspose2d", static="ConvTranspose2d", reference="ConvTranspose2d"),
    Row("nn:ConvTranspose3d", static="ConvTranspose3d", reference="ConvTranspose3d"),
    Row("nn:Embedding", static="Embedding", dynamic="quantized:Embedding", reference="Embedding"),
    Row("nn:EmbeddingBag", static="EmbeddingBag", dynamic="quantized:EmbeddingBag", reference="EmbeddingBag"),
    # recurrent layers
    Row("nn:LSTM", dynamic="LSTM", reference="LSTM"),
    Row("nn:GRU", dynamic="GRU"),
    Row("nn:LSTMCell", dynamic="LSTMCell", reference="LSTMCell"),
    Row("nn:GRUCell", dynamic="GRUCell", reference="GRUCell"),
    Row("nn:RNNCell", dynamic="RNNCell", reference="RNNCell"),
    # normalisation
    Row("nn:BatchNorm2d", static="BatchNorm2d"),
    Row("nn:BatchNorm3d", static="BatchNorm3d"),
    Row("nn:GroupNorm", static="GroupNorm"),
    Row("nn:InstanceNorm1d", static="InstanceNorm1d"),
    Row("nn:InstanceNorm2d", static="InstanceNorm2d"),
    Row("nn:InstanceNorm3d", static="InstanceNorm3d"),
    Row("nn:LayerNorm", static="LayerNorm"),
    # activations
    Row("nn:Dropout", static="Dropout"),
    Row("nn:ELU", static="ELU"),
    Row("nn:Hardswish", static="Hardswish"),
    Row("nn:LeakyReLU", static="LeakyReLU"),
    Row("nn:PReLU", static="PReLU"),
    Row("nn:ReLU6", static="ReLU6"),
    # fused float modules
    Row("fused:BNReLU2d", static="BNReLU2d"),
    Row("fused:BNReLU3d", static="BNReLU3d"),
    Row("fused:ConvReLU1d", static="ConvReLU1d"),
    Row("fused:ConvReLU2d", static="ConvReLU2d", qat="ConvReLU2d"),
    Row("fused:ConvReLU3d", static="ConvReLU3d", qat="ConvReLU3d"),
    Row("fused:ConvAdd2d", static="ConvAdd2d"),
    Row("fused:ConvAddReLU2d", static="ConvAddReLU2d"),
    Row("fused:ConvBn1d", qat="ConvBn1d"),
    Row("fused:ConvBn2d", qat="ConvBn2d"),
    Row("fused:ConvBn3d", qat="ConvBn3d"),
    Row("fused:ConvBnReLU1d", qat="ConvBnReLU1d"),
    Row("fused:ConvBnReLU2d", qat="ConvBnReLU2d"),
    Row("fused:ConvBnReLU3d", qat="ConvBnReLU3d"),
    Row("fused:LinearReLU", static="LinearReLU", dynamic="LinearReLU", qat="LinearReLU"),
    Row("fused:LinearBn1d", qat="LinearBn1d"),
    Row("fused:LinearLeakyReLU", static="LinearLeakyReLU"),
    Row("fused:LinearTanh", static="LinearTanh"),
    # quantization-aware modules, once trained
    Row("qat:Linear", static="Linear"),
    Row("qat:Conv2d", static="Conv2d"),
    Row("qat:Conv3d", static="Conv3d"),
    Row("qat:ConvBn1d", static="Conv1d"),
    Row("qat:ConvBn2d", static="Conv2d"),
    Row("qat:ConvBn3d", static="Conv3d"),
    Row("qat:ConvBnReLU1d", static="ConvReLU1d"),
    Row("qat:ConvBnReLU2d", static="ConvReLU2d"),
    Row("qat:ConvBnReLU3d", static="ConvReLU3d"),
    Row("qat:ConvReLU2d", static="ConvReLU2d"),
    Row("qat:ConvReLU3d", static="ConvReLU3d"),
    Row("qat:LinearReLU", static="LinearReLU"),
    Row("qat:LinearBn1d", static="Linear"),
    Row("qat_dynamic:Linear", dynamic="Linear"),
)

# Rows that only the embedding variants of the static and QAT tables have: training embeddings is opt-in.
EMBEDDING: tuple[Row, ...] = (
    Row("nn:Embedding", qat="Embedding"),
    Row("nn:EmbeddingBag", qat="EmbeddingBag"),
    Row("qat:Embedding", static="Embedding"),
    Row("qat:EmbeddingBag", static="EmbeddingBag"),
)

# What torch.ao's tables lack and the workflows use when they are given no table: torch.ao trains no lone
# Conv1d, though it has the layer, and has no dynamic RNN.
MORE: tuple[Row, ...] = (
    Row("nn:Conv1d", qat="Conv1d"),
    Row("fused:ConvReLU1d", qat="ConvReLU1d"),
    Row("qat:Conv1d", static="Conv1d"),
    Row("qat:ConvReLU1d", static="ConvReLU1d"),
    Row("nn:RNN", dynamic="RNN"),
)

# The block-sparse variants of the static and dynamic tables.
SPARSE: tuple[Row, ...] = (Row("nn:Linear", static="sparse:Linear", dynamic="sparse_dynamic:Linear"),)
