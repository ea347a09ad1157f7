"""Statically quantized layers with block-sparse weights; the names of torch.ao.nn.sparse.quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from typing_extensions import Self

from quantization.backends.torch_sparse import SPARSE_LINEAR
from quantization.errors import InvalidRequest
from quantization.nn.calibrated import calibrated
from quantization.nn.modes.block_sparse import (
    BlockSparseLinear,
    LinearBlockSparsePattern as LinearBlockSparsePattern,
    LinearPackedParams as LinearPackedParams,
    _is_valid_linear_block_sparse_pattern as _is_valid_linear_block_sparse_pattern,
)
from quantization.nn.modes.state import load_output_qparams, save_output_qparams
from quantization.nn.static_cell import expect_quantized
from quantization.qparams import quantize_weight

_run = SPARSE_LINEAR.run


class Linear(BlockSparseLinear):
    """A linear layer with a block-sparse int8 weight: quint8 to quint8, on fbgemm, with blocks of 1 x 4.

    State dict, version 1: `scale`, `zero_point`, then those of `_packed_params`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        row_block_size: int,
        col_block_size: int,
        bias: bool = True,
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        super().__init__(in_features, out_features, row_block_size, col_block_size, bias, dtype)
        self.scale = 1.0
        self.zero_point = 0

    @classmethod
    def _get_name(cls) -> str:
        return "SparseQuantizedLinear"

    def extra_repr(self) -> str:
        """Show sizes, qparams and the weight's qscheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}, "
            f"zero_point={self.zero_point}, qscheme={self.weight().qscheme()}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a quint8 tensor of shape (*, in_features)."""
        expect_quantized(x, "SparseQuantizedLinear")
        return _run(x, self._packed_params._packed_params, self.scale, self.zero_point)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_output_qparams(self, destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        load_output_qparams(self, state_dict, prefix, missing_keys)
        state_dict.pop(prefix + "op_type", None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """Quantize a calibrated linear layer; `mod.sparse_params["sparse_block_shape"]` gives the block."""
        source: Any = mod
        if type_before_parametrizations(mod) is not cls._FLOAT_MODULE:
            raise InvalidRequest(
                f"{cls._get_name()}.from_float only works for Linear, got {type(mod).__name__}"
            )
        block = getattr(mod, "sparse_params", {}).get("sparse_block_shape")
        if block is None:
            raise InvalidRequest(
                "Expecting the Linear to have `sparse_params` with 'sparse_block_shape', such as (1, 4). "
                "Make sure you have provided arguments in the "
                '`sparsifier.squash_mask(params_to_save=("sparse_block_shape",))` method.'
            )
        found = calibrated(mod, use_precomputed_fake_quant)
        weight = quantize_weight(found.weight, found.weight_observer)
        made = cls(source.in_features, source.out_features, *block, bias=found.bias is not None)
        made.set_weight_bias(weight, found.bias, *block)
        made.scale, made.zero_point = found.scale, found.zero_point
        return made
