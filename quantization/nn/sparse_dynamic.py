"""Dynamically quantized layers with block-sparse weights; torch.ao.nn.sparse.quantized.dynamic's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from typing_extensions import Self

from quantization.backends.torch_sparse import SPARSE_LINEAR_DYNAMIC
from quantization.errors import InvalidRequest
from quantization.nn.calibrated import calibrated_weight
from quantization.nn.modes.block_sparse import BlockSparseLinear, LinearBlockSparsePattern
from quantization.nn.modes.dynamic import expect_float
from quantization.qparams import quantize_weight

_run = SPARSE_LINEAR_DYNAMIC.run


class Linear(BlockSparseLinear):
    """A linear layer with a block-sparse int8 weight: float to float, on the engine qnnpack.

    State dict, version 1: `op_type`, which is always "sparse_dynamic", then those of `_packed_params`.
    """

    _op_type = "sparse_dynamic"

    def _get_name(self) -> str:
        return "SparseQuantizedDynamicLinear"

    def extra_repr(self) -> str:
        """Show sizes and the weight's qscheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"qscheme={self.weight().qscheme()}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a float tensor of shape (*, in_features), whose dtype the output has too."""
        expect_float(x, "SparseQuantizedDynamicLinear")
        return _run(x.to(torch.float32), self._packed_params._packed_params).to(x.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "op_type"] = self._op_type

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict.pop(prefix + "op_type", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """Quantize a linear layer; `LinearBlockSparsePattern` gives the block."""
        source: Any = mod
        if type_before_parametrizations(mod) is not cls._FLOAT_MODULE:
            raise InvalidRequest(
                f"SparseQuantizedDynamicLinear.from_float only works for Linear, got {type(mod).__name__}"
            )
        found = calibrated_weight(mod)
        weight = quantize_weight(found.weight, found.weight_observer)
        block = LinearBlockSparsePattern.block_size()
        made = cls(source.in_features, source.out_features, *block, bias=found.bias is not None)
        made.set_weight_bias(weight, found.bias, *block)
        return made
