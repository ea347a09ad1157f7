"""torch's own quantized kernels, `torch.ops.quantized`, under the names the layers use.

The only file that names that namespace. Upper case: a `PackedOps` record of a weighted layer. Lower case: a
plain operator; layers may capture either in closures that TorchScript compiles.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quantization.backends.ops import PackedOps
from quantization.errors import QuantizationError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_q = torch.ops.quantized


def _meet_the_warnings() -> None:
    """Make two notes of torch, each given once per process, fall due here and unheard.

    One says that quantized dtypes are deprecated; the other, that typed storages are, which is what loading
    or copying a quantized tensor uses inside torch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
        torch.zeros(1).storage()


_meet_the_warnings()


def require_engine() -> None:
    """Raise a `QuantizationError` when no quantized engine is selected, naming those this machine has."""
    if torch.backends.quantized.engine == "none":
        names = [name for name in torch.backends.quantized.supported_engines if name != "none"]
        cure = f"choose one of {names}" if names else "this build of torch has none"
        raise QuantizationError(f"torch.backends.quantized.engine is 'none', expected a real engine: {cure}")


def require_float16_engine() -> None:
    """Raise an `Unsupported` when the selected engine has no kernels for float16 weights."""
    require_engine()
    engine = torch.backends.quantized.engine
    if engine in ("qnnpack", "onednn"):
        raise Unsupported(
            f"torch.backends.quantized.engine is '{engine}', which has no kernels for float16 weights: "
            "use dtype torch.qint8, or the engine 'fbgemm' or 'x86'"
        )


def _packed(prepack: Callable[..., Any], unpack: Callable[..., Any], run: Callable[..., Any]) -> PackedOps:
    return PackedOps(prepack, unpack, run, require_engine)


def _packed_fp16(run: Callable[..., Any]) -> PackedOps:
    return PackedOps(_q.linear_prepack_fp16, _q.linear_unpack_fp16, run, require_float16_engine)


# Static: run(x, packed, scale, zero_point); linear_leaky_relu takes the slope last, conv_add a second summand
# after x.
LINEAR = _packed(_q.linear_prepack, _q.linear_unpack, _q.linear)
LINEAR_RELU = _packed(_q.linear_prepack, _q.linear_unpack, _q.linear_relu)
LINEAR_LEAKY_RELU = _packed(_q.linear_prepack, _q.linear_unpack, _q.linear_leaky_relu)
LINEAR_TANH = _packed(_q.linear_prepack, _q.linear_unpack, _q.linear_tanh)
CONV1D = _packed(_q.conv1d_prepack, _q.conv1d_unpack, _q.conv1d)
CONV2D = _packed(_q.conv2d_prepack, _q.conv2d_unpack, _q.conv2d)
CONV3D = _packed(_q.conv3d_prepack, _q.conv3d_unpack, _q.conv3d)
CONV1D_RELU = _packed(_q.conv1d_prepack, _q.conv1d_unpack, _q.conv1d_relu)
CONV2D_RELU = _packed(_q.conv2d_prepack, _q.conv2d_unpack, _q.conv2d_relu)
CONV3D_RELU = _packed(_q.conv3d_prepack, _q.conv3d_unpack, _q.conv3d_relu)
CONV2D_ADD = _packed(_q.conv2d_prepack, _q.conv2d_unpack, _q.conv2d_add)
CONV2D_ADD_RELU = _packed(_q.conv2d_prepack, _q.conv2d_unpack, _q.conv2d_add_relu)
CONV_TRANSPOSE1D = _packed(_q.conv_transpose1d_prepack, _q.conv_transpose1d_unpack, _q.conv_transpose1d)
CONV_TRANSPOSE2D = _packed(_q.conv_transpose2d_prepack, _q.conv_transpose2d_unpack, _q.conv_transpose2d)
CONV_TRANSPOSE3D = _packed(_q.conv_transpose3d_prepack, _q.conv_transpose3d_unpack, _q.conv_transpose3d)

# Dynamic: float in, float out; run(x, packed, reduce_range), and run(x, packed) in float16.
LINEAR_DYNAMIC = _packed(_q.linear_prepack, _q.linear_unpack, _q.linear_dynamic)
LINEAR_RELU_DYNAMIC = _packed(_q.linear_prepack, _q.linear_unpack, _q.linear_relu_dynamic)
LINEAR_DYNAMIC_FP16 = _packed_fp16(_q.linear_dynamic_fp16)
LINEAR_RELU_DYNAMIC_FP16 = _packed_fp16(_q.linear_relu_dynamic_fp16)
CONV1D_DYNAMIC = _packed(_q.conv1d_prepack, _q.conv1d_unpack, _q.conv1d_dynamic)
CONV2D_DYNAMIC = _packed(_q.conv2d_prepack, _q.conv2d_unpack, _q.conv2d_dynamic)
CONV3D_DYNAMIC = _packed(_q.conv3d_prepack, _q.conv3d_unpack, _q.conv3d_dynamic)
CONV_TRANSPOSE1D_DYNAMIC = _packed(
    _q.conv_transpose1d_prepack, _q.conv_transpose1d_unpack, _q.conv_transpose1d_dynamic
)
CONV_TRANSPOSE2D_DYNAMIC = _packed(
    _q.conv_transpose2d_prepack, _q.conv_transpose2d_unpack, _q.conv_transpose2d_dynamic
)
CONV_TRANSPOSE3D_DYNAMIC = _packed(
    _q.conv_transpose3d_prepack, _q.conv_transpose3d_unpack, _q.conv_transpose3d_dynamic
)

# Embeddings: run(packed, indices) gives float rows of a table of 8 or 4 bits; bags take more arguments.
EMBEDDING_BYTE = PackedOps(_q.embedding_bag_prepack, _q.embedding_bag_unpack, _q.embedding_byte)
EMBEDDING_4BIT = PackedOps(_q.embedding_bag_prepack, _q.embedding_bag_unpack, _q.embedding_4bit)
EMBEDDING_BAG_BYTE = PackedOps(_q.embedding_bag_prepack, _q.embedding_bag_unpack, _q.embedding_bag_byte)
EMBEDDING_BAG_4BIT = PackedOps(_q.embedding_bag_prepack, _q.embedding_bag_unpack, _q.embedding_bag_4bit)

# Recurrent layers, on a list of one record of packed weights for each layer and direction, and single cells.
cell_params_int8 = _q.make_quantized_cell_params_dynamic
cell_params_fp16 = _q.make_quantized_cell_params_fp16
lstm = torch.quantized_lstm
gru = torch.quantized_gru
lstm_cell = _q.quantized_lstm_cell_dynamic
gru_cell = _q.quantized_gru_cell_dynamic
rnn_tanh_cell = _q.quantized_rnn_tanh_cell_dynamic
rnn_relu_cell = _q.quantized_rnn_relu_cell_dynamic
linear_dynamic = _q.linear_dynamic
linear_dynamic_fp16 = _q.linear_dynamic_fp16

# Normalisation: (x, weight, bias, ..., eps, scale, zero_point)
batch_norm = _q.batch_norm
batch_norm1d = _q.batch_norm1d
batch_norm2d = _q.batch_norm2d
batch_norm3d = _q.batch_norm3d
batch_norm1d_relu = _q.batch_norm1d_relu
batch_norm2d_relu = _q.batch_norm2d_relu
batch_norm3d_relu = _q.batch_norm3d_relu
group_norm = _q.group_norm
instance_norm = _q.instance_norm
layer_norm = _q.layer_norm

# Activations
celu = _q.celu
clamp = _q.clamp
dropout = _q.dropout
elu = _q.elu
hardswish = _q.hardswish
leaky_relu = _q.leaky_relu
prelu = _q.prelu
relu6 = _q.relu6
sigmoid = _q.sigmoid
softmax = _q.softmax
threshold = _q.threshold

# Arithmetic
add = _q.add
add_relu = _q.add_relu
add_scalar = _q.add_scalar
add_scalar_relu = _q.add_scalar_relu
cat = _q.cat
cat_relu = _q.cat_relu
matmul = _q.matmul
mul = _q.mul
mul_relu = _q.mul_relu
mul_scalar = _q.mul_scalar
mul_scalar_relu = _q.mul_scalar_relu

# Functional convolution: the same operators as in the records, by name
conv1d_prepack = _q.conv1d_prepack
conv2d_prepack = _q.conv2d_prepack
conv3d_prepack = _q.conv3d_prepack
conv1d = _q.conv1d
conv2d = _q.conv2d
conv3d = _q.conv3d


def transposed_kernel_is_right(in_channels: int, out_channels: int, groups: int, rank: int) -> bool:
    """Whether the selected engine's transposed convolution gives the float one's values, found by trying.

    In torch 2.13 oneDNN's, which x86 uses too, does not where a group's input and output channels differ in
    number and neither is one; nor does QNNPACK's of rank 3. Nothing is raised, the values are other ones.
    """
    return _tried_transposed(torch.backends.quantized.engine, in_channels, out_channels, groups, rank)


@functools.cache
def _tried_transposed(_engine: str, in_channels: int, out_channels: int, groups: int, rank: int) -> bool:
    """Compare one output: small whole numbers, so that rounding the output is the only error there can be."""
    ops = {1: CONV_TRANSPOSE1D, 2: CONV_TRANSPOSE2D, 3: CONV_TRANSPOSE3D}[rank]
    run_float = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    x = _small_numbers((1, in_channels, *[2] * rank), 4)
    weight = _small_numbers((in_channels, out_channels // groups, *[1] * rank), 5) - 2
    expected = run_float(x, weight, groups=groups)
    scale = max(float(expected.abs().max()) / 120, 1e-3)
    ones, zeros = [1] * rank, [0] * rank
    packed = ops.prepack(
        torch.quantize_per_tensor(weight, 1.0, 0, torch.qint8), None, ones, zeros, zeros, ones, groups
    )
    y = ops.run(torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), packed, scale, 128)
    return bool((y.dequantize() - expected).abs().max() <= scale)


def _small_numbers(shape: tuple[int, ...], count: int) -> Tensor:
    """Whole numbers from 0 to count - 1 without a pattern that a permutation would keep."""
    n = torch.arange(math.prod(shape))
    return ((n * n + n // 3) % 7 % count).reshape(shape).float()


def pad(x: Tensor, amounts: list[int], mode: str) -> Tensor:
    """`F.pad` for quantized and float tensors; where torch cannot pad codes, it pads values: exact too."""
    if not x.is_quantized or mode == "constant" or (mode == "reflect" and x.dim() < 5):
        return torch.nn.functional.pad(x, amounts, mode)
    padded = torch.nn.functional.pad(x.dequantize(), amounts, mode)
    return torch.quantize_per_tensor(padded, x.q_scale(), x.q_zero_point(), x.dtype)
