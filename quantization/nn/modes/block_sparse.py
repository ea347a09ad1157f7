"""Linear layers whose weight consists of blocks, most of them zero; kernels skip those.

Storage is a child `_packed_params`, as of the dense layers, that also knows the block's shape.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantization.backends.torch_sparse import SPARSE_LINEAR
from quantization.errors import InvalidRequest, Unsupported
from quantization.nn.modes.packed_linear import PackedParams
from quantization.nn.modes.state import packing, take

_prepack = SPARSE_LINEAR.prepack
_unpack = SPARSE_LINEAR.unpack


class LinearPackedParams(PackedParams):
    """The packed weight and bias of a block-sparse linear layer.

    State dict, version 1: `dtype`, and `_packed_params` = (weight, bias, rows and columns of a block).
    """

    _version = 1

    def __init__(
        self, row_block_size: int = 1, col_block_size: int = 4, dtype: torch.dtype = torch.qint8
    ) -> None:
        super().__init__()
        require_qint8(dtype)
        self.dtype = dtype
        weight = torch.quantize_per_tensor(torch.zeros(1, 1), 1.0, 0, torch.qint8)
        self.set_weight_bias(weight, None, row_block_size, col_block_size)

    def _get_name(self) -> str:
        return "SparseQuantizedLinearPackedParams"

    @torch.jit.export
    def set_weight_bias(
        self,
        weight: Tensor,
        bias: torch.Tensor | None,
        row_block_size: int | None,
        col_block_size: int | None,
    ) -> None:
        """Pack a qint8 weight and a float bias; both block sizes must be given."""
        if row_block_size is None or col_block_size is None:
            raise ValueError("set_weight_bias needs both row_block_size and col_block_size")
        if not torch.jit.is_scripting():
            SPARSE_LINEAR.ready()
        self._packed_params = _prepack(weight, bias, row_block_size, col_block_size)

    @torch.jit.export
    def _weight_bias(self) -> tuple[Tensor, torch.Tensor | None, int, int]:
        weight, bias, block = _unpack(self._packed_params)
        return weight, bias, block[0], block[1]

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
        dtype = take(state_dict, prefix + "dtype", missing_keys)
        packed = take(state_dict, prefix + "_packed_params", missing_keys)
        if dtype is not None and packed is not None:
            weight, bias, rows, columns = packed
            if self._fits(prefix, weight, error_msgs):
                self.dtype = dtype
                self.set_weight_bias(weight, bias, rows, columns)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class BlockSparseLinear(nn.Module):
    """What the static and the dynamic layer share."""

    _version = 1
    _FLOAT_MODULE: ClassVar[Any] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        row_block_size: int,
        col_block_size: int,
        bias: bool = True,
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        super().__init__()
        require_qint8(dtype)
        self.in_features = in_features
        self.out_features = out_features
        weight = torch.quantize_per_tensor(torch.zeros(out_features, in_features), 1.0, 0, torch.qint8)
        with packing(type(self).__name__):
            self._packed_params = LinearPackedParams(row_block_size, col_block_size, dtype)
            self._packed_params.set_weight_bias(
                weight, torch.zeros(out_features) if bias else None, row_block_size, col_block_size
            )

    def _weight_bias(self) -> tuple[Tensor, Tensor | None, int, int]:
        return self._packed_params._weight_bias()

    def weight(self) -> Tensor:
        """The quantized weight."""
        return self._weight_bias()[0]

    def bias(self) -> Tensor | None:
        """The float bias, or None."""
        return self._weight_bias()[1]

    def set_weight_bias(
        self, w: Tensor, b: Tensor | None, row_block_size: int | None, col_block_size: int | None
    ) -> None:
        """Pack another weight, of the same shape, and bias."""
        self._packed_params.set_weight_bias(w, b, row_block_size, col_block_size)

    def __repr__(self) -> str:
        return f"{self._get_name()}({self.extra_repr()})"


def require_qint8(dtype: torch.dtype) -> None:
    """Raise unless the weight's dtype is the one that has kernels."""
    if dtype != torch.qint8:
        raise Unsupported(f"Only QINT8 is supported for Sparse Quantized Linear; got {dtype}")


_PATTERNS = ((1, 4), (8, 1))


def _is_valid_linear_block_sparse_pattern(row_block_size: int, col_block_size: int) -> bool:
    return (row_block_size, col_block_size) in _PATTERNS


class LinearBlockSparsePattern:
    """The block's shape that dynamic layers take in `from_float`, for all of the process; a context manager.

    1 x 4 by default; 8 x 1 is the other pattern that there are kernels for.

    >>> with LinearBlockSparsePattern(8, 1):
    ...     LinearBlockSparsePattern.block_size()
    (8, 1)
    >>> LinearBlockSparsePattern.block_size()
    (1, 4)
    """

    row_block_size: ClassVar[int] = 1
    col_block_size: ClassVar[int] = 4

    def __init__(self, row_block_size: int = 1, col_block_size: int = 4) -> None:
        if not _is_valid_linear_block_sparse_pattern(row_block_size, col_block_size):
            raise InvalidRequest(
                f"Invalid linear block sparse pattern: row_block_size={row_block_size}, "
                f"col_block_size={col_block_size}; expected one of {_PATTERNS}"
            )
        self._before = LinearBlockSparsePattern.block_size()
        self._set((row_block_size, col_block_size))

    @staticmethod
    def block_size() -> tuple[int, int]:
        """The pattern in force: rows and columns of a block."""
        return LinearBlockSparsePattern.row_block_size, LinearBlockSparsePattern.col_block_size

    @staticmethod
    def _set(pattern: tuple[int, int]) -> None:
        LinearBlockSparsePattern.row_block_size, LinearBlockSparsePattern.col_block_size = pattern

    def __enter__(self) -> None:
        """The pattern is in force since the constructor."""

    def __exit__(self, *error: object) -> None:
        self._set(self._before)
