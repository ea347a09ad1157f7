"""The table of an embedding: a matrix quantized row by row, to 8 or 4 bits, and its packed form.

Every row has a scale and a float zero point of its own. Rows of 4 bits keep two codes in a byte, so a row
with an odd number of codes gets one more, which no output shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from quantization.backends.ops import PackedOps
from quantization.errors import InvalidRequest, Unsupported
from quantization.nn.modes.state import same_shape, take
from quantization.nn.packaging import ExternalCode

ROW_DTYPES = (torch.quint8, torch.quint4x2)


def codes_of(weight: Tensor) -> Tensor:
    """The codes of a quantized matrix, a byte each, two from each byte of a 4-bit one."""
    stored = weight.int_repr()
    if weight.dtype == torch.quint4x2:
        both = torch.stack([torch.bitwise_and(stored, 15), torch.bitwise_right_shift(stored, 4)], 1)
        return both.reshape(-1)[: weight.numel()].reshape(weight.size(0), weight.size(1))
    return stored


def from_codes(codes: Tensor, scales: Tensor, zero_points: Tensor, dtype: torch.dtype) -> Tensor:
    """The quantized matrix of 8-bit (`quint8`) or 4-bit codes; the inverse of `codes_of`.

    Values of scale 1 and zero point 0 become these very codes; then the scales and zero points are put in
    place. Going through the real values instead would lose codes where a zero point is large.
    """
    one, nought = torch.ones_like(scales), torch.zeros_like(zero_points)
    weight = torch.quantize_per_channel(codes.to(torch.float32), one, nought, 0, dtype)
    scale = weight.q_per_channel_scales().copy_(scales)
    zero_point = weight.q_per_channel_zero_points().copy_(zero_points)
    # TorchScript drops the copies unless their results are looked at.
    placed = torch.equal(scale, weight.q_per_channel_scales())
    if not placed or not torch.equal(zero_point, weight.q_per_channel_zero_points()):
        raise RuntimeError("this version of torch does not let the scales of a quantized tensor be set")
    return weight


def _even(weight: Tensor) -> Tensor:
    """Fill the rows of a 4-bit matrix to an even length: the kernels start each row on a byte."""
    if weight.dtype != torch.quint4x2 or weight.size(1) % 2 == 0:
        return weight
    scales, zero_points = weight.q_per_channel_scales().clone(), weight.q_per_channel_zero_points().clone()
    return from_codes(F.pad(codes_of(weight), [0, 1]), scales, zero_points, weight.dtype)


def _set_weight(ops: PackedOps) -> Any:
    prepack = ops.prepack

    def set_weight(self: Any, weight: Tensor) -> None:
        """Pack a matrix quantized per row with float zero points; its dtype becomes the module's."""
        if not torch.jit.is_scripting():
            _check_weight(weight)
        self.dtype = weight.dtype
        self._packed_weight = prepack(_even(weight))

    return torch.jit.export(set_weight)


def _weight(ops: PackedOps) -> Any:
    unpack = ops.unpack

    def _weight(self: Any) -> Tensor:
        weight = unpack(self._packed_weight)
        # Its scales are the packed weight's own memory, and would not outlive it.
        scales, zero_points = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        return from_codes(codes_of(weight), scales, zero_points, weight.dtype)

    return torch.jit.export(_weight)


class PackedRows(ExternalCode, nn.Module):
    """The packed weight of an embedding; `dtype` is that of the weight, quint8 or quint4x2.

    State dict, version 1: `dtype` and `_packed_weight`, the quantized matrix. A cell states its `ops`.
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are strings
        dtype: torch.dtype
        _packed_weight: Any
        set_weight: Any
        _weight: Any

    _version = 1

    def __init_subclass__(cls, *, ops: PackedOps | None = None) -> None:
        super().__init_subclass__()
        if ops is not None:
            cls.set_weight = _set_weight(ops)
            cls._weight = _weight(ops)

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.quint8) -> None:
        super().__init__()
        if dtype not in ROW_DTYPES:
            raise Unsupported(
                f"Unsupported dtype on quantized embedding! Supports quint8 and quint4x2. Got dtype: {dtype}"
            )
        codes = torch.zeros(num_embeddings, embedding_dim)
        scales, zero_points = torch.ones(num_embeddings), torch.zeros(num_embeddings)
        self.set_weight(from_codes(codes, scales, zero_points, dtype))

    @classmethod
    def holding(cls, weight: Tensor) -> Self:
        """Pack this weight and no other."""
        params = cls.__new__(cls)
        nn.Module.__init__(params)
        params.set_weight(weight)
        return params

    def forward(self, x: Tensor) -> Tensor:
        """Give the input back; the module that owns this child calls the operator."""
        return x

    # TorchScript archives hold codes, not the packed weight: torch 2.13 cannot load quint4x2 tensors from
    # them. Python's own pickling keeps the usual attributes, as torch.ao's does.
    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor, torch.dtype, bool]:
        if not torch.jit.is_scripting():
            return self.__dict__  # pyright: ignore[reportReturnType]
        weight = self._weight()
        scales, zero_points = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        return codes_of(weight), scales, zero_points, self.dtype, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor, torch.dtype, bool]) -> None:
        if not torch.jit.is_scripting():
            nn.Module.__setstate__(self, state)  # pyright: ignore[reportArgumentType]
            return
        self.training = state[4]
        self.set_weight(from_codes(state[0], state[1], state[2], state[3]))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "dtype"] = self.dtype
        destination[prefix + "_packed_weight"] = self._weight()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        take(state_dict, prefix + "dtype", missing_keys)  # the weight itself says its dtype
        weight = take(state_dict, prefix + "_packed_weight", missing_keys)
        if weight is not None and same_shape(
            prefix + "_packed_weight", weight.shape, self._weight().shape, error_msgs
        ):
            self.set_weight(weight)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __repr__(self) -> str:
        return repr(self._weight())


def _check_weight(weight: Tensor) -> None:
    if not weight.is_quantized or weight.dtype not in ROW_DTYPES:
        raise InvalidRequest(
            "the weight of a quantized embedding must be a tensor of quint8 or quint4x2, got "
            f"{weight.dtype}: quantize it, for example by from_float"
        )
    if weight.dim() != 2 or weight.qscheme() != torch.per_channel_affine_float_qparams:
        raise InvalidRequest(
            "Expect embedding_bag weights to be quantized using kPerChannelAffineFloatQParams, as a matrix: "
            f"got {weight.qscheme()} of shape {tuple(weight.shape)}; call torch.quantize_per_channel with "
            "float32 zero points along axis 0"
        )
