"""The reference column: layers with a float weight that passes through quantized codes before every use.

    get_weight() = dequantize(quantize(weight)),   real = (code - zero_point) * scale

The arithmetic is float, so these layers run on any device and say what a quantized layer should compute. The
parameters of a weight `w` are the buffers `w_scale`, `w_zero_point` and `w_axis` and the attributes
`w_qscheme`, `w_dtype`, `w_axis_int`; a qscheme of None (float16 or float32) leaves the weight as it is.
"""

# No `from __future__ import annotations`: TorchScript cannot read strings on methods it has to leave out.
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from observers.dtypes import facts_of, to_underlying_dtype
from quantization.errors import InvalidRequest, QuantizationError, Unsupported
from quantization.nn.families.family import Family

_DEFAULT = {"qscheme": torch.per_tensor_affine, "dtype": torch.quint8, "scale": 1.0, "zero_point": 0}
_QSCHEMES = (
    None,
    torch.per_tensor_affine,
    torch.per_channel_affine,
    torch.per_channel_affine_float_qparams,
)
_DTYPES = (torch.quint8, torch.qint8, torch.qint32, torch.quint4x2)


def to_codes(
    weight: Tensor, qscheme: torch.qscheme | None, dtype: torch.dtype, scale: Tensor, zero_point: Tensor,
    axis: int,
) -> Tensor:  # fmt: skip
    """The weight as a quantized tensor, or as a float16 one where that is the type."""
    if qscheme is None:
        if dtype == torch.float16:
            return weight.to(torch.float16)
        raise QuantizationError("Unsupported dtype and qscheme: this weight stays float32 and has no codes")
    if qscheme == torch.per_tensor_affine:
        return torch.quantize_per_tensor(weight.float(), scale, zero_point, dtype)
    return torch.quantize_per_channel(weight.float(), scale, zero_point, axis, dtype)


def through_codes(
    weight: Tensor, qscheme: torch.qscheme | None, dtype: torch.dtype, scale: Tensor, zero_point: Tensor,
    axis: int, codes: tuple[int, int],
) -> Tensor:  # fmt: skip
    """The weight rounded to what its codes can say, in its own float type."""
    if qscheme is None:
        return weight
    if weight.device.type == "cpu" or weight.device.type == "cuda":
        return to_codes(weight, qscheme, dtype, scale, zero_point, axis).dequantize().to(weight.dtype)
    return through_plain_codes(weight, scale, zero_point, axis, codes)


def through_plain_codes(
    weight: Tensor, scale: Tensor, zero_point: Tensor, axis: int, codes: tuple[int, int]
) -> Tensor:
    """The same where torch has no quantized tensors; may differ for a value half way between two codes."""
    if scale.numel() > 1:
        shape = [1] * weight.dim()
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    rounded = torch.round(weight.detach().float() * (1.0 / scale) + zero_point)
    return ((torch.clamp(rounded, codes[0], codes[1]) - zero_point) * scale).to(weight.dtype)


def hold_qparams(module: nn.Module, name: str, qparams: dict[str, Any] | None, device: Any) -> None:
    """Give a module the parameters of its weight `name`, after checking them."""
    qparams = _DEFAULT if qparams is None else qparams
    _check(qparams, module._get_name())
    per_channel = qparams["qscheme"] not in (None, torch.per_tensor_affine)
    axis = int(qparams["axis"]) if per_channel else 0
    setattr(module, f"{name}_qscheme", qparams["qscheme"])
    setattr(module, f"{name}_dtype", qparams["dtype"])
    setattr(module, f"{name}_axis_int", axis)
    setattr(module, f"_{name}_codes", tuple(facts_of(qparams["dtype"]).bounds))
    for part, dtype in (("scale", torch.float32), ("zero_point", torch.int32)):
        value = qparams.get(part, _DEFAULT[part])
        value = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
        module.register_buffer(f"{name}_{part}", value.to(device))
    module.register_buffer(f"{name}_axis", torch.tensor(axis, dtype=torch.int32, device=device))


def _check(qparams: dict[str, Any], target: str) -> None:
    for key in ("qscheme", "dtype"):
        if key not in qparams:
            raise InvalidRequest(
                f"the weight parameters of {target} lack {key!r}; get_qparam_dict(observer) makes them"
            )
    qscheme, dtype = qparams["qscheme"], qparams["dtype"]
    if not any(qscheme is known or qscheme == known for known in _QSCHEMES):
        raise InvalidRequest(
            f"qscheme: {qscheme} is not supported in reference quantized {target}; give one of {_QSCHEMES}, "
            "a symmetric scheme by its affine form"
        )
    if qscheme is None:
        if dtype not in (torch.float16, torch.float32):
            raise InvalidRequest(
                f"a {dtype} weight of {target} needs a qscheme; None is for float16 and float32"
            )
        return
    if dtype not in _DTYPES:
        raise InvalidRequest(
            f"Unsupported dtype and qscheme: {dtype}, {qscheme} for the weight of {target}; "
            f"give a dtype out of {_DTYPES}"
        )
    for key in ("scale", "zero_point", *(() if qscheme == torch.per_tensor_affine else ("axis",))):
        if key not in qparams:
            raise InvalidRequest(f"the {qscheme} weight parameters of {target} lack {key!r}")


def load_qparams(module: nn.Module, name: str, state_dict: Any, prefix: str) -> None:
    """Make room for a checkpoint's scale and zero point, of whatever shape; take over the axis."""
    for part in ("scale", "zero_point"):
        value, held = state_dict.get(f"{prefix}{name}_{part}"), getattr(module, f"{name}_{part}")
        if isinstance(value, Tensor) and (value.shape != held.shape or value.dtype != held.dtype):
            module.register_buffer(f"{name}_{part}", torch.empty_like(value, device=held.device))
    if f"{prefix}{name}_axis" in state_dict:
        setattr(module, f"{name}_axis_int", int(state_dict[f"{prefix}{name}_axis"]))


class ReferenceQuantizedModule(nn.Module):
    """A layer of one `weight`; a cell is this, a family, and torch's float layer.

    With `is_decomposed` in the weight's parameters the weight passes through the operators of
    `torch.ops.quantized_decomposed`, for programs that look for them in a graph; something must have
    registered these operators, and `get_quantized_weight()` then gives plain integers.
    """

    _IS_REFERENCE = True
    _BIAS: ClassVar[str | None] = "bias"

    if (
        TYPE_CHECKING
    ):  # attributes of the float layer and of `hold_qparams`; TorchScript takes no class annotations
        _family: ClassVar[Family]
        weight: Tensor
        weight_qscheme: torch.qscheme | None
        weight_dtype: torch.dtype
        weight_scale: Tensor
        weight_zero_point: Tensor
        weight_axis_int: int
        _weight_codes: tuple[int, int]

    def __init_subclass__(cls, family: Family | None = None) -> None:
        super().__init_subclass__()
        if family is not None:
            cls._family = family

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}(Reference)"

    def _init_weight_qparams(self, weight_qparams: dict[str, Any] | None, device: Any) -> None:
        """Hold the parameters of the weight, by default those of scale 1; call it last in a constructor."""
        hold_qparams(self, "weight", weight_qparams, device)
        given = weight_qparams or {}
        self.is_decomposed = bool(given.get("is_decomposed", False))
        self.weight_quant_min = given.get("quant_min")
        self.weight_quant_max = given.get("quant_max")
        if self.is_decomposed and not hasattr(torch.ops.quantized_decomposed, "quantize_per_tensor"):
            raise Unsupported(
                f"{self._get_name()} with is_decomposed needs the operators torch.ops.quantized_decomposed, "
                "which nothing in this process has registered; import the library that does, or leave "
                "is_decomposed out"
            )

    def get_weight(self) -> Tensor:
        """The weight as it is computed with: rounded to its codes, float."""
        if self.is_decomposed:
            return self._decomposed_weight()
        return through_codes(
            self.weight, self.weight_qscheme, self.weight_dtype, self.weight_scale, self.weight_zero_point,
            self.weight_axis_int, self._weight_codes,
        )  # fmt: skip

    def get_quantized_weight(self) -> Tensor:
        """The weight as a quantized tensor, for a quantized layer to pack."""
        if self.is_decomposed:
            return self._decomposed_codes()
        return to_codes(
            self.weight, self.weight_qscheme, self.weight_dtype, self.weight_scale, self.weight_zero_point,
            self.weight_axis_int,
        )  # fmt: skip

    def _decomposed_arguments(self) -> tuple[Any, ...]:
        low, high = self._weight_codes
        low = low if self.weight_quant_min is None else self.weight_quant_min
        high = high if self.weight_quant_max is None else self.weight_quant_max
        axis = () if self.weight_qscheme == torch.per_tensor_affine else (self.weight_axis_int,)
        storage = to_underlying_dtype(self.weight_dtype)
        return self.weight_scale, self.weight_zero_point, *axis, low, high, storage

    @torch.jit.unused
    def _decomposed_codes(self) -> Tensor:
        ops = torch.ops.quantized_decomposed
        per_tensor = self.weight_qscheme == torch.per_tensor_affine
        op = ops.quantize_per_tensor if per_tensor else ops.quantize_per_channel
        return op(self.weight, *self._decomposed_arguments())

    @torch.jit.unused
    def _decomposed_weight(self) -> Tensor:
        if self.weight_qscheme is None:
            return self.weight
        ops = torch.ops.quantized_decomposed
        per_tensor = self.weight_qscheme == torch.per_tensor_affine
        op = ops.dequantize_per_tensor if per_tensor else ops.dequantize_per_channel
        return op(self._decomposed_codes(), *self._decomposed_arguments())

    @classmethod
    def from_float(cls, mod: nn.Module, weight_qparams: dict[str, Any] | None) -> Any:
        """Make the reference layer; it shares the float layer's tensors, as `detach` does."""
        if not cls._family.describes(mod):
            kinds = " or ".join(kind.__name__ for kind in cls._family.float_types)
            raise InvalidRequest(
                f"reference {cls.__name__} is made from {kinds}, not from {type(mod).__name__}"
            )
        arguments = cls._family.geometry(mod)
        weight: Any = mod.weight  # not get_parameter: a parametrized layer has a property here
        bias = getattr(mod, "bias", None)
        if cls._BIAS is not None:
            arguments[cls._BIAS] = bias is not None
        new = cls(**arguments, device="meta")
        new._init_weight_qparams(weight_qparams, weight.device)
        new.weight = nn.Parameter(weight.detach())
        if bias is not None:
            new.bias = nn.Parameter(bias.detach())
        return new.train(mod.training)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight_qscheme"] = self.weight_qscheme
        destination[prefix + "weight_dtype"] = self.weight_dtype

    # Version 1: the float tensors, the three buffers, and two objects, `weight_qscheme` and `weight_dtype`.
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        for name in ("weight_qscheme", "weight_dtype"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict.pop(prefix + name))
            else:
                missing_keys.append(prefix + name)
        low, high = facts_of(self.weight_dtype).bounds
        self._weight_codes = (low, high)
        load_qparams(self, "weight", state_dict, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
