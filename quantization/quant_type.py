"""Kinds of quantization, and what a qconfig says about dtypes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch

from quantization.errors import InvalidRequest
from quantization.qconfig import QConfigAny


class QuantType(IntEnum):
    """Kind of quantization; the numbers are those of TorchScript's quantization passes.

    >>> QuantType.STATIC == 1
    True
    """

    DYNAMIC = 0
    STATIC = 1
    QAT = 2
    WEIGHT_ONLY = 3


_quant_type_to_str: dict[QuantType, str] = {
    QuantType.STATIC: "static",
    QuantType.DYNAMIC: "dynamic",
    QuantType.QAT: "qat",
    QuantType.WEIGHT_ONLY: "weight_only",
}


def _get_quant_type_to_str(quant_type: QuantType) -> str:
    """The name of a kind, e.g. 'static'."""
    return _quant_type_to_str[quant_type]


def _quant_type_from_str(name: str) -> QuantType:
    """The kind with a name, e.g. 'static'; `InvalidRequest` for any other name."""
    for quant_type, known in _quant_type_to_str.items():
        if known == name:
            return quant_type
    raise InvalidRequest(
        f"Unknown QuantType name {name!r}, expected one of {sorted(_quant_type_to_str.values())}"
    )


_INT8 = frozenset({torch.quint8, torch.qint8, torch.uint8, torch.int8})
_INT32 = frozenset({torch.qint32, torch.int32})
_FLOAT8 = frozenset({torch.float8_e5m2, torch.float8_e4m3fn})
# Which dtypes count as quantized differs between activations and weights; these are torch.ao's answers.
_STATIC_ACTIVATIONS = _INT8 | _INT32 | _FLOAT8 | {torch.float16, torch.int16}
_WEIGHTS = _INT8 | _FLOAT8 | {torch.float16, torch.quint4x2, torch.int16, torch.int32}
_INTEGERS = _INT8 | _INT32 | _FLOAT8 | {torch.quint4x2, torch.int16}


def activation_dtype(qconfig: QConfigAny) -> torch.dtype:
    """The dtype that activations are quantized to.

    >>> from quantization.qconfig import default_qconfig
    >>> activation_dtype(default_qconfig)
    torch.quint8
    """
    return _observers(qconfig, "determine activation dtype", "activation")[0].dtype


def weight_dtype(qconfig: QConfigAny) -> torch.dtype:
    """The dtype that weights are quantized to.

    >>> from quantization.qconfig import default_qconfig
    >>> weight_dtype(default_qconfig)
    torch.qint8
    """
    return _observers(qconfig, "determine weight dtype", "weight")[0].dtype


def get_qconfig_dtypes(qconfig: QConfigAny) -> tuple[torch.dtype, torch.dtype, bool]:
    """Activation dtype, weight dtype, and whether activations are quantized dynamically.

    >>> from quantization.qconfig import default_dynamic_qconfig
    >>> get_qconfig_dtypes(default_dynamic_qconfig)
    (torch.quint8, torch.qint8, True)
    """
    activation, weight = _observers(qconfig, "extract dtypes", "activation", "weight")
    return activation.dtype, weight.dtype, bool(getattr(activation, "is_dynamic", False))


def activation_is_statically_quantized(qconfig: QConfigAny) -> bool:
    """Whether activations have scale and zero point fixed beforehand, or are stored in float16 or float8.

    >>> from quantization.qconfig import default_qconfig, default_dynamic_qconfig
    >>> activation_is_statically_quantized(default_qconfig)
    True
    >>> activation_is_statically_quantized(default_dynamic_qconfig)
    False
    """
    dynamic = activation_is_dynamically_quantized(qconfig)
    return activation_dtype(qconfig) in _STATIC_ACTIVATIONS and not dynamic


def activation_is_dynamically_quantized(qconfig: QConfigAny) -> bool:
    """Whether activations get their scale and zero point from each batch anew.

    >>> from quantization.qconfig import default_dynamic_qconfig
    >>> activation_is_dynamically_quantized(default_dynamic_qconfig)
    True
    """
    return get_qconfig_dtypes(qconfig)[2]


def activation_is_int8_quantized(qconfig: QConfigAny) -> bool:
    """Whether activations become 8-bit integers, signed or not.

    >>> from quantization.qconfig import default_qconfig
    >>> activation_is_int8_quantized(default_qconfig)
    True
    """
    return activation_dtype(qconfig) in _INT8


def activation_is_int32_quantized(qconfig: QConfigAny) -> bool:
    """Whether activations become 32-bit integers.

    >>> from quantization.qconfig import default_qconfig
    >>> activation_is_int32_quantized(default_qconfig)
    False
    """
    return activation_dtype(qconfig) in _INT32


def weight_is_quantized(qconfig: QConfigAny) -> bool:
    """Whether weights are quantized at all, float16 and float8 included.

    >>> from quantization.qconfig import float16_dynamic_qconfig
    >>> weight_is_quantized(float16_dynamic_qconfig)
    True
    """
    return weight_dtype(qconfig) in _WEIGHTS


def weight_is_statically_quantized(qconfig: QConfigAny) -> bool:
    """Whether weights become 8-bit integers.

    >>> from quantization.qconfig import float16_dynamic_qconfig
    >>> weight_is_statically_quantized(float16_dynamic_qconfig)
    False
    """
    return weight_dtype(qconfig) in _INT8


def op_is_int8_dynamically_quantized(qconfig: QConfigAny) -> bool:
    """Whether the module runs on unsigned 8-bit activations quantized per batch, and signed 8-bit weights.

    >>> from quantization.qconfig import default_dynamic_qconfig
    >>> op_is_int8_dynamically_quantized(default_dynamic_qconfig)
    True
    """
    activation, weight, dynamic = get_qconfig_dtypes(qconfig)
    return dynamic and activation in (torch.quint8, torch.uint8) and weight in (torch.qint8, torch.int8)


def get_quant_type(qconfig: QConfigAny) -> QuantType:
    """The kind of quantization a qconfig stands for.

    >>> from quantization.qconfig import default_dynamic_qconfig
    >>> get_quant_type(default_dynamic_qconfig).name
    'DYNAMIC'
    """
    activation, weight = _observers(qconfig, "determine quant type", "activation", "weight")
    dynamic = getattr(activation, "is_dynamic", False)
    if weight.dtype in _INTEGERS:
        if dynamic:
            return QuantType.DYNAMIC
        return QuantType.STATIC if activation.dtype in _INTEGERS else QuantType.WEIGHT_ONLY
    if weight.dtype is torch.float16 and (dynamic or activation.dtype is torch.float16):
        return QuantType.DYNAMIC if dynamic else QuantType.STATIC
    raise InvalidRequest(
        f"Unrecognized dtype combination in get_quant_type: activation({activation.dtype}),"
        f"weight({weight.dtype}); expected an integer or float8 weight, or float16 for both"
    )


def _observers(qconfig: QConfigAny, purpose: str, *fields: str) -> list[Any]:
    """One observer per field, made to read its dtype; their warnings are for the ones that will be used."""
    if qconfig is None:
        raise InvalidRequest(f"qconfig must be provided to {purpose}, got None")
    made: list[Any] = []
    for field in fields:
        factory: Callable[[], Any] | None = getattr(qconfig, field)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            observer = None if factory is None else factory()
        if not hasattr(observer, "dtype"):
            raise InvalidRequest(
                f"cannot {purpose}: qconfig.{field} makes {type(observer).__name__}, which has no dtype; "
                "an observer or fake quantizer was expected"
            )
        made.append(observer)
    return made
