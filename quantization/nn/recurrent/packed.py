"""The weights of one recurrent cell: their shapes, their quantization, and their packed forms.

A cell has `gates` blocks of rows in each weight: 4 in an LSTM, 3 in a GRU, 1 in a plain RNN. Layers keep such
records per layer and direction, cells keep one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from observers import default_weight_observer
from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest, Unsupported
from quantization.nn.calibrated import seen
from quantization.nn.modes.state import packing, plain_weight, same_shape, take
from quantization.nn.packaging import ExternalCode
from quantization.qparams import WeightQuantizer

GATES: dict[str, int] = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_PACK = {torch.qint8: q.LINEAR_DYNAMIC, torch.float16: q.LINEAR_DYNAMIC_FP16}


def pack_weight_bias(qweight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Any:
    """Pack a weight, qint8 or float according to `dtype` (qint8 or float16), and its bias."""
    ops = _PACK[checked_dtype(dtype)]
    if qweight.is_quantized != (dtype == torch.qint8):
        raise InvalidRequest(
            f"a recurrent weight to be packed as {dtype} must be a tensor of "
            f"{'qint8' if dtype == torch.qint8 else 'float32'}, got {qweight.dtype}"
        )
    ops.ready()
    with packing("a dynamic recurrent layer"):
        return ops.prepack(qweight if qweight.is_quantized else qweight.float(), bias)


def unpack_weight_bias(packed: Any) -> tuple[Tensor, Tensor]:
    """The weight, qint8, or float32 if it is packed as float16, and the bias."""
    weight, bias = q.LINEAR_DYNAMIC.unpack(packed)
    return weight, torch.zeros(weight.size(0)) if bias is None else bias


def packed_dtype(packed: Any) -> torch.dtype:
    """qint8 or float16: how a packed weight is stored."""
    return torch.qint8 if unpack_weight_bias(packed)[0].is_quantized else torch.float16


def checked_dtype(dtype: Any) -> torch.dtype:
    """The dtype if recurrent weights can have it."""
    if dtype not in _PACK:
        raise Unsupported(
            f"Unsupported dtype for dynamic RNN quantization: {dtype}. Weights can be torch.qint8 or "
            "torch.float16: use default_dynamic_qconfig, per_channel_dynamic_qconfig or "
            "float16_dynamic_qconfig"
        )
    return dtype


@dataclass(frozen=True)
class CellWeights:
    """The tensors of one cell: weights of shape (gates * hidden, ...), ready to be packed, and float biases.

    `weight_hr`, of shape (projected, hidden), is there only in an LSTM with `proj_size`.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    weight_hr: Tensor | None = None

    @classmethod
    def blank(cls, rows: int, inputs: int, hidden: int, projected: int, dtype: torch.dtype) -> CellWeights:
        """Zeros."""
        checked_dtype(dtype)
        return cls(
            plain_weight((rows, inputs), dtype),
            plain_weight((rows, projected or hidden), dtype),
            torch.zeros(rows),
            torch.zeros(rows),
            plain_weight((projected, hidden), dtype) if projected else None,
        )

    @classmethod
    def named(cls, tensors: Mapping[str, Tensor], suffix: str) -> CellWeights:
        """Those of a dictionary, `weight_ih` + suffix and so on; biases that are not there are zero."""
        names = ["weight_ih" + suffix, "weight_hh" + suffix]
        missing = [name for name in names if tensors.get(name) is None]
        if missing:
            raise InvalidRequest(
                f"the weights of a recurrent layer lack {missing}; given are {sorted(tensors)}"
            )
        zeros = torch.zeros(tensors[names[0]].size(0))
        biases = [tensors.get(bias + suffix) for bias in ("bias_ih", "bias_hh")]
        bias_ih, bias_hh = (zeros if bias is None else bias.detach().float() for bias in biases)
        return cls(tensors[names[0]], tensors[names[1]], bias_ih, bias_hh, tensors.get("weight_hr" + suffix))

    def weights(self, suffix: str) -> dict[str, Tensor]:
        """The weights under the names of the float module."""
        named = {"weight_ih": self.weight_ih, "weight_hh": self.weight_hh, "weight_hr": self.weight_hr}
        return {name + suffix: weight for name, weight in named.items() if weight is not None}

    def biases(self, suffix: str) -> dict[str, Tensor]:
        """The biases under the names of the float module."""
        return {"bias_ih" + suffix: self.bias_ih, "bias_hh" + suffix: self.bias_hh}


@dataclass(frozen=True)
class FloatWeights:
    """The named tensors of a float module, found fit to become weights of `dtype`, qint8 or float16."""

    module: nn.Module
    dtype: torch.dtype
    quantizers: Mapping[str, Callable[[Tensor], Tensor]]

    @classmethod
    def of(cls, mod: nn.Module, names: list[str]) -> FloatWeights:
        """Look at each weight with a new observer of the module's qconfig."""
        make = _weight_observer_of(mod)
        dtype = checked_dtype(make().dtype)
        quantizers: dict[str, Callable[[Tensor], Tensor]] = {}
        for name in names:
            tensor = getattr(mod, name).detach()
            if not name.startswith("weight"):
                quantizers[name] = _float_copy
            elif dtype == torch.float16:
                quantizers[name] = Tensor.float
            else:
                quantizers[name] = WeightQuantizer.of(tensor, seen(tensor.float(), make()))
        return cls(mod, dtype, quantizers)

    def tensors(self) -> dict[str, Tensor]:
        """By name: weights as they are to be packed, biases as copies."""
        return {name: how(getattr(self.module, name).detach()) for name, how in self.quantizers.items()}

    def try_packing(self) -> None:
        """Pack a column of each weight, to hear what the engine says of it."""
        for name, how in self.quantizers.items():
            if name.startswith("weight"):
                weight = getattr(self.module, name).detach()
                if not isinstance(how, WeightQuantizer) or how.by_columns:
                    weight = weight[:, :1].contiguous()
                pack_weight_bias(how(weight), None, self.dtype)


class FromFloat:
    """Mixin of layers and cells: how one comes out of a float module, which stays as it is.

    `_read(mod)` gives the class to make and the weights, found fit; `_made_of` makes it.
    """

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """Quantize the weights of a float module; no bias becomes one of zeros."""
        target, weights = cls._read(mod)
        return target._made_of(mod, weights.tensors(), weights.dtype)

    @classmethod
    def planned(cls, mod: Any, _use_precomputed_fake_quant: bool) -> Callable[[], Any]:
        """`from_float` in two steps: the checks now and the rest when called."""
        target, weights = cls._read(mod)
        weights.try_packing()
        return lambda: target._made_of(mod, weights.tensors(), weights.dtype)

    @classmethod
    def _read(cls, mod: Any) -> tuple[Any, FloatWeights]:
        raise NotImplementedError


def _float_copy(bias: Tensor) -> Tensor:
    return bias.to(torch.float32, copy=True)


def _weight_observer_of(mod: nn.Module) -> Callable[[], Any]:
    if not hasattr(mod, "qconfig"):
        raise InvalidRequest(
            f"Input float module must have qconfig defined: {type(mod).__name__} has none. Set "
            "module.qconfig, or call quantize_dynamic on the whole model"
        )
    qconfig: Any = mod.qconfig
    if qconfig is None or qconfig.weight is None:
        return default_weight_observer
    return qconfig.weight


def counterpart(cls: type[Any], mod: nn.Module, table: Mapping[Any, type[Any]], call: str) -> Any:
    """The class to make of `mod`: `cls`, or where `cls` is the common base the one that the table lists."""
    got = type_before_parametrizations(mod)
    listed = table.get(got)
    if listed is not None and issubclass(cls, listed):
        return cls
    if listed is not None and issubclass(listed, cls):
        return listed
    raise InvalidRequest(
        f"{call}, but {cls.__name__}.from_float got {got.__module__}.{got.__name__}; subclasses need a "
        "mapping entry of their own"
    )


def cell_params(weights: CellWeights, dtype: torch.dtype, reduce_range: bool) -> Any:
    """The packed record that `quantized_lstm` and `quantized_gru` take for one layer and direction."""
    ih = pack_weight_bias(weights.weight_ih, weights.bias_ih, dtype)
    hh = pack_weight_bias(weights.weight_hh, weights.bias_hh, dtype)
    if dtype == torch.float16:
        return q.cell_params_fp16(ih, hh)
    return q.cell_params_int8(ih, hh, weights.bias_ih, weights.bias_hh, reduce_range)


class PackedParameter(ExternalCode, nn.Module):
    """One `cell_params` record as a module, so that it has a place in the state dict, as `param`."""

    def __init__(self, param: Any) -> None:
        super().__init__()
        self.param = param

    def packed_pair(self) -> list[Any]:
        """The packed input and hidden weights in the record."""
        return self.param.__getstate__()[0][4]

    def reduce_range(self) -> bool:
        """Whether the codes of the input have half of their range; int8 only."""
        return bool(self.param.__getstate__()[0][3][0])

    def cell_weights(self) -> CellWeights:
        """The tensors in the record."""
        (ih, bias_ih), (hh, bias_hh) = (unpack_weight_bias(packed) for packed in self.packed_pair())
        return CellWeights(ih, hh, bias_ih, bias_hh)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "param"] = self.param

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
        param = take(state_dict, prefix + "param", missing_keys)
        if param is not None and _same_weights(self, PackedParameter(param), prefix, error_msgs):
            self.param = param
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _same_weights(present: Any, loaded: Any, prefix: str, error_msgs: list[str]) -> bool:
    """Whether all shapes agree; a message for each that does not."""
    old, new = present.cell_weights().weights(""), loaded.cell_weights().weights("")
    return all([same_shape(prefix + name, new[name].shape, old[name].shape, error_msgs) for name in old])
