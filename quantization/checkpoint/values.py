"""Attributes as json, tensors as plain tensors: what a file can hold, and the way back.

A quantized tensor becomes its integer codes and, beside them, its scales and zero points; nothing that comes
out of a file is ever called.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quantization.errors import QuantizationError
from quantization.nn.modes.packed_rows import codes_of, from_codes

_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_QSCHEMES = {str(q): q for q in vars(torch).values() if isinstance(q, torch.qscheme)}
_ROWS = (torch.quint8, torch.quint4x2)


class Damaged(QuantizationError):
    """What is in a file does not fit together."""


class CannotStore(QuantizationError):
    """A value that a file of plain data has no form for."""


class Writer:
    """Turns values into json and collects the tensors among them, by key."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def value(self, key: str, value: Any) -> Any:
        """The json form of a value; its tensors go under `key` and below."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, torch.dtype | torch.qscheme | torch.device):
            return {type(value).__name__: str(value)}
        if isinstance(value, Tensor):
            return self._tensor(key, value.detach())
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {"dict": [[name, self.value(f"{key}.{name}", item)] for name, item in value.items()]}
        if isinstance(value, torch.Size) or type(value) in (list, tuple):
            items = [self.value(f"{key}.{i}", item) for i, item in enumerate(value)]
            return items if isinstance(value, list) else {type(value).__name__: items}
        raise CannotStore(f"{type(value).__name__} is neither plain data nor a tensor")

    def _tensor(self, key: str, value: Tensor) -> dict[str, Any]:
        if value.is_meta or value.layout != torch.strided:
            raise CannotStore(
                f"the tensor '{key}' is on the meta device or sparse, so it has no plain values"
            )
        if not value.is_quantized:
            self._put(key, _own_copy(value))
            return {"tensor": key}
        per_tensor = value.qscheme() == torch.per_tensor_affine
        self._put(f"{key}.codes", codes_of(value).contiguous())  # already a copy
        if per_tensor:
            self._put(f"{key}.scale", torch.tensor(value.q_scale(), dtype=torch.float64))
            self._put(f"{key}.zero_point", torch.tensor(value.q_zero_point()))
        else:
            self._put(f"{key}.scale", _own_copy(value.q_per_channel_scales()))
            self._put(f"{key}.zero_point", _own_copy(value.q_per_channel_zero_points()))
        axis = 0 if per_tensor else value.q_per_channel_axis()
        return {"quantized": key, "dtype": str(value.dtype), "qscheme": str(value.qscheme()), "axis": axis}

    def _put(self, key: str, value: Tensor) -> None:
        if key in self.tensors:
            raise CannotStore(f"two tensors would be called '{key}'")
        self.tensors[key] = value


def _own_copy(value: Tensor) -> Tensor:
    """Files hold no two tensors that share memory."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


class Reader:
    """Turns json back into values, with the tensors of a file, from which it takes the codes it has used."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def value(self, form: Any) -> Any:
        """The value of a json form; an unknown form is `Damaged`."""
        if form is None or isinstance(form, bool | int | float | str):
            return form
        if isinstance(form, list):
            return [self.value(item) for item in form]
        kind, content = next(iter(form.items()), ("", None)) if isinstance(form, dict) else ("", None)
        if kind not in _FORMS:
            raise Damaged(f"{form!r} is no form of a value")
        return _FORMS[kind](self, content, form)

    def tensor(self, key: str) -> Tensor:
        """The tensor of that key; `Damaged` if there is none."""
        if not isinstance(key, str) or key not in self._tensors:
            raise Damaged(f"the tensor {key!r} is missing")
        return self._tensors[key]

    def _quantized(self, key: str, form: dict[str, Any]) -> Tensor:
        parts = (self.tensor(f"{key}.{part}") for part in ("codes", "scale", "zero_point"))
        dtype, qscheme = _DTYPES.get(form.get("dtype", "")), _QSCHEMES.get(form.get("qscheme", ""))
        try:
            joined = _joined(*parts, dtype=dtype, qscheme=qscheme, axis=form.get("axis"))
            if joined.dtype != dtype:
                raise ValueError(f"codes of {joined.dtype} for {dtype}")
            del parts, self._tensors[f"{key}.codes"]
            return joined
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise Damaged(f"the quantized tensor {key!r} does not fit together: {reason}") from error


def _joined(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: Any, qscheme: Any, axis: Any) -> Tensor:
    if qscheme == torch.per_tensor_affine:
        return torch._make_per_tensor_quantized_tensor(codes, float(scale), int(zero_point))
    if scale.numel() != codes.size(axis) or zero_point.numel() != codes.size(axis):
        raise ValueError(f"{codes.size(axis)} channels, {scale.numel()} scales")
    if qscheme == torch.per_channel_affine_float_qparams:
        if dtype not in _ROWS or codes.dim() != 2 or axis != 0:
            raise ValueError(f"float zero points on {dtype} of {codes.dim()} dimensions along axis {axis}")
        return from_codes(codes, scale, zero_point, dtype)
    if qscheme != torch.per_channel_affine:
        raise ValueError(f"unknown qscheme {qscheme}")
    return torch._make_per_channel_quantized_tensor(codes, scale, zero_point, axis)


def _one_of(table: Mapping[str, Any]) -> Any:
    def read(_reader: Reader, content: Any, _form: Any) -> Any:
        if content not in table:
            raise Damaged(f"{content!r} is unknown to this version of torch")
        return table[content]

    return read


def _device(_reader: Reader, content: Any, _form: Any) -> torch.device:
    try:
        return torch.device(content)
    except (RuntimeError, TypeError) as error:
        raise Damaged(f"{content!r} is no device") from error


_FORMS: dict[str, Any] = {
    "float": _one_of({"inf": math.inf, "-inf": -math.inf, "nan": math.nan}),
    "dtype": _one_of(_DTYPES),
    "qscheme": _one_of(_QSCHEMES),
    "device": _device,
    "tensor": lambda reader, content, _: reader.tensor(content),
    "quantized": Reader._quantized,
    "dict": lambda reader, content, _: {name: reader.value(item) for name, item in content},
    "tuple": lambda reader, content, _: tuple(map(reader.value, content)),
    "Size": lambda reader, content, _: torch.Size(map(reader.value, content)),
}
