"""Linear layers keep their packed weight in a child, `_packed_params`, with a state dict of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantization.backends import native_linear
from quantization.backends.ops import PackedOps
from quantization.nn.modes.automatic_pack import AutomaticPack
from quantization.nn.modes.state import (
    explain_other_stage,
    load_output_qparams,
    packing,
    plain_weight,
    same_shape,
    save_output_qparams,
    take,
)
from quantization.nn.modes.weighted import WeightedQuantizedModule
from quantization.nn.packaging import ExternalCode


class PackedParams(nn.Module):
    """The child of a linear layer, dense or sparse, that holds the packed weight and bias."""

    if TYPE_CHECKING:
        # Of the subclasses. Annotations at run time would reach TorchScript.
        dtype: torch.dtype
        _weight_bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """Give the input back; the layer that owns this child calls the operator."""
        return x

    def __repr__(self) -> str:
        return repr(self._weight_bias())

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "dtype"] = self.dtype
        destination[prefix + "_packed_params"] = self._weight_bias()

    def _weight_shape(self) -> tuple[int, ...]:
        return tuple(self._weight_bias()[0].shape)

    def _fits(self, prefix: str, weight: Tensor, error_msgs: list[str]) -> bool:
        """Whether a loaded weight has the shape of the present one, or that is the one of a new child."""
        present = self._weight_shape()
        stand_in = present == (1, 1)
        return stand_in or same_shape(prefix + "_packed_params", weight.shape, present, error_msgs)


class PackedLinearParams(ExternalCode, AutomaticPack, PackedParams):
    """The packed weight and bias of a linear layer, as int8 or float16 (`dtype`).

    State dict: `dtype` and `_packed_params`, the pair `(weight, bias)`. Versions: 1 has `weight` and `bias`
    and no `dtype`; 2 adds `dtype`; 3, the present one, joins the two in a pair.
    """

    _version = 3
    _ops: ClassVar[tuple[PackedOps, PackedOps]]

    def __init_subclass__(cls, *, int8: PackedOps | None = None, fp16: PackedOps | None = None) -> None:
        super().__init_subclass__()
        if int8 is not None and fp16 is not None:
            cls._ops = (int8, fp16)
            cls.set_weight_bias = _set_weight_bias(int8, fp16)
            cls._weight_bias = _weight_bias(int8, fp16)
            cls._pack = _pack(int8)

    def __init__(self, dtype: torch.dtype = torch.qint8) -> None:
        super().__init__()
        self.dtype = dtype
        self.set_weight_bias(plain_weight((1, 1), dtype), None)

    @classmethod
    def holding(cls, weight: Tensor, bias: Tensor | None) -> PackedLinearParams:
        """Pack a weight once, as int8 if it is quantized and as float16 if it is float."""
        params = cls.__new__(cls)
        nn.Module.__init__(params)
        params.dtype = torch.qint8 if weight.is_quantized else torch.float16
        params.set_weight_bias(weight, bias)
        return params

    @classmethod
    def holding_native(cls, weight: Tensor, bias: Tensor | None) -> PackedLinearParams:
        """Pack a weight once, for the compiled kernel if that is there for it, else as `holding` does."""
        params = cls.__new__(cls)
        nn.Module.__init__(params)
        params.dtype = torch.qint8
        return params if params._pack_natively(weight, bias) else cls.holding(weight, bias)

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
        loaded = self._of_version(state_dict, prefix, local_metadata.get("version"), missing_keys)
        if loaded is not None and self._fits(prefix, loaded[1], error_msgs):
            self.dtype, weight, bias = loaded
            if self._native is None or not self._pack_natively(weight, bias):
                self.set_weight_bias(weight, bias)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @staticmethod
    def _of_version(state_dict: Any, prefix: str, version: int | None, missing_keys: list[str]) -> Any:
        """`(dtype, weight, bias)`, or None if keys are missing; without a version the keys tell it."""
        if version is None:
            version = 1 if prefix + "weight" in state_dict else 3
        absent = len(missing_keys)
        dtype = torch.qint8 if version < 2 else take(state_dict, prefix + "dtype", missing_keys)
        if version < 3:
            weight = take(state_dict, prefix + "weight", missing_keys)
            bias = take(state_dict, prefix + "bias", missing_keys)
        else:
            weight, bias = take(state_dict, prefix + "_packed_params", missing_keys) or (None, None)
        return None if len(missing_keys) > absent else (dtype, weight, bias)


def _set_weight_bias(int8: PackedOps, fp16: PackedOps) -> Any:
    ready, prepack, prepack_fp16 = {torch.float16: fp16.ready}, int8.prepack, fp16.prepack

    def set_weight_bias(self: Any, weight: Tensor, bias: Tensor | None) -> None:
        if not torch.jit.is_scripting():
            ready.get(self.dtype, int8.ready)()
        if self.dtype == torch.qint8:
            self._packed_params = prepack(weight, bias)
        elif self.dtype == torch.float16:
            self._packed_params = prepack_fp16(weight, bias)
        else:
            raise RuntimeError("Unsupported dtype specified for quantized Linear!")
        if not torch.jit.is_scripting():
            self._shape = tuple(weight.shape)

    return torch.jit.export(set_weight_bias)


def _weight_bias(int8: PackedOps, fp16: PackedOps) -> Any:
    unpack, unpack_fp16 = int8.unpack, fp16.unpack

    def _weight_bias(self: Any) -> tuple[Tensor, Tensor | None]:
        if not torch.jit.is_scripting():
            if self._native is not None:
                return native_linear.unpack(self._native)
        if self.dtype == torch.qint8:
            return unpack(self._packed_params)
        return unpack_fp16(self._packed_params)

    return torch.jit.export(_weight_bias)


def _pack(int8: PackedOps) -> Any:
    def _pack(self: Any, weight: Tensor, bias: Tensor | None) -> Any:
        int8.ready()
        return int8.prepack(weight, bias)

    return _pack


class PackedLinear(WeightedQuantizedModule):
    """Storage of a linear layer: a child `_packed_params`, an output scale and zero point.

    State dict: `scale`, `zero_point`, then the child's. In version 1 weight and bias were the layer's own.
    """

    _version = 3
    _params: ClassVar[type[PackedLinearParams]]
    # What the compiled kernel does beyond the product; None where there is no kernel for the layer.
    _native_flags: ClassVar[int | None] = None

    def __init_subclass__(cls, *, params: type[PackedLinearParams] | None = None, **kwargs: Any) -> None:
        if params is not None:
            cls._params = params
        super().__init_subclass__(**kwargs)

    def __init__(
        self, in_features: int, out_features: int, bias_: bool = True, dtype: torch.dtype = torch.qint8
    ) -> None:
        super().__init__()
        weight = plain_weight((out_features, in_features), dtype)
        bias = torch.zeros(out_features) if bias_ else None
        self._fill(weight, bias, in_features=in_features, out_features=out_features)

    def _fill(self, weight: Tensor, bias: Tensor | None, in_features: int, out_features: int) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.scale = 1.0
        self.zero_point = 0
        with packing(self._get_name()):
            self._packed_params = self._hold(weight, bias)

    def _for_kernel(self) -> Tensor | None:
        """The weight as the compiled kernel reads it; None where there is none for layer or weight."""
        if self._native_flags is None:
            return None
        params: Any = self._modules["_packed_params"]  # sooner found than as an attribute
        return params.native()

    def _hold(self, weight: Tensor, bias: Tensor | None) -> PackedLinearParams:
        held = self._params.holding if self._native_flags is None else self._params.holding_native
        return held(weight, bias)

    @classmethod
    def _constructor_extras(cls, weight: Tensor, _bias: Tensor | None) -> dict[str, Any]:
        return {"dtype": torch.qint8 if weight.is_quantized else torch.float16}

    def _weight_facts(self) -> tuple[torch.dtype, tuple[int, ...]]:
        dtype = torch.qint8 if self._packed_params.dtype == torch.qint8 else torch.float32
        return dtype, (self.out_features, self.in_features)

    def _bias_facts(self) -> tuple[torch.dtype, tuple[int, ...]]:
        return torch.float32, (self.out_features,)

    def _weight_bias(self) -> tuple[Tensor, Tensor | None]:
        return self._packed_params._weight_bias()

    def set_weight_bias(self, w: Tensor, b: Tensor | None) -> None:
        """Pack another weight, of the same shape, and bias."""
        self._packed_params.set_weight_bias(w, b)

    def __repr__(self) -> str:
        return f"{self._get_name()}({self.extra_repr()})"

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
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        version = local_metadata.get("version")
        # A float layer has version 1 too.
        own = getattr(state_dict.get(prefix + "weight"), "is_quantized", False)
        if own and (version is None or version == 1):
            for name in ("weight", "bias"):
                if prefix + name in state_dict:
                    state_dict[f"{prefix}_packed_params.{name}"] = state_dict.pop(prefix + name)
        explain_other_stage(self, ("scale", "_packed_params.dtype"), state_dict, prefix, error_msgs)
        load_output_qparams(self, state_dict, prefix, missing_keys)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
