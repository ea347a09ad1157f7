"""What the observers know about dtypes and qschemes: one table of bounds and storage, and the predicates.

The functions used by scripted observers stay in TorchScript's subset, where a dtype is an int and a dict of
dtypes cannot be read: that is why the zero point of symmetric schemes is a function and not a column.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from observers.errors import InvalidRequest, Unsupported


class Bounds(NamedTuple):
    """The smallest and the largest value of an integer dtype, both included."""

    low: int
    high: int


class DtypeFacts(NamedTuple):
    """What is known about one quantized dtype.

    `reduced` is the range under `reduce_range`, one bit less, which keeps pairs of products inside 16 bits on
    CPUs without VNNI. `widest` is the most levels a user's own range may have, None where nothing is checked.
    """

    storage: torch.dtype
    bounds: Bounds
    reduced: Bounds
    widest: int | None = None


_UNSIGNED_4 = Bounds(0, 15)
_UNSIGNED_8 = Bounds(0, 255)
_SIGNED_8 = Bounds(-128, 127)
_UNSIGNED_16 = Bounds(0, 2**16 - 1)
_SIGNED_16 = Bounds(-(2**15), 2**15 - 1)
_SIGNED_32 = Bounds(-(2**31), 2**31 - 1)

FACTS: dict[torch.dtype, DtypeFacts] = {
    torch.qint8: DtypeFacts(torch.int8, _SIGNED_8, Bounds(-64, 63), widest=2**8),
    torch.int8: DtypeFacts(torch.int8, _SIGNED_8, Bounds(-64, 63), widest=2**8),
    torch.quint8: DtypeFacts(torch.uint8, _UNSIGNED_8, Bounds(0, 127)),
    torch.uint8: DtypeFacts(torch.uint8, _UNSIGNED_8, Bounds(0, 127)),
    torch.qint32: DtypeFacts(torch.int32, _SIGNED_32, _SIGNED_32, widest=2**32),
    torch.int32: DtypeFacts(torch.int32, _SIGNED_32, _SIGNED_32, widest=2**32),
    torch.int16: DtypeFacts(torch.int16, _SIGNED_16, _SIGNED_16),
    torch.uint16: DtypeFacts(torch.uint16, _UNSIGNED_16, _UNSIGNED_16),
    torch.quint4x2: DtypeFacts(torch.uint8, _UNSIGNED_4, _UNSIGNED_4),
    # The float8 dtypes have no integer levels; these bounds only keep the constructors working.
    torch.float8_e5m2: DtypeFacts(torch.float8_e5m2, _UNSIGNED_4, _UNSIGNED_4),
    torch.float8_e4m3fn: DtypeFacts(torch.float8_e4m3fn, _UNSIGNED_4, _UNSIGNED_4),
}

_FALLBACK = DtypeFacts(torch.uint8, _UNSIGNED_4, _UNSIGNED_4)


def facts_of(dtype: torch.dtype) -> DtypeFacts:
    """Return the table's row for `dtype`; a dtype that is not listed counts as four unsigned bits.

    >>> facts_of(torch.qint8).bounds
    Bounds(low=-128, high=127)
    """
    return FACTS.get(dtype, _FALLBACK)


def to_underlying_dtype(qdtype: torch.dtype) -> torch.dtype:
    """Return the plain dtype in which values of `qdtype` are stored.

    >>> to_underlying_dtype(torch.quint8)
    torch.uint8
    """
    if qdtype == torch.quint2x4:
        return torch.uint8
    if qdtype not in FACTS:
        known = ", ".join(str(dtype) for dtype in FACTS)
        raise InvalidRequest(f"Unsupported dtype: {qdtype}; the quantized dtypes are {known}")
    return FACTS[qdtype].storage


def integer_info(dtype: torch.dtype) -> torch.iinfo:
    """Return the bits and the bounds of an integer or quantized `dtype`; Unsupported for any other."""
    try:
        return torch.iinfo(dtype)
    except TypeError as error:
        raise Unsupported(
            f"{dtype} has no integer levels; use an integer dtype such as torch.quint8"
        ) from error


def is_per_tensor(qscheme: torch.qscheme) -> bool:
    """Whether `qscheme` has one scale and zero point for the whole tensor.

    >>> is_per_tensor(torch.per_tensor_symmetric)
    True
    """
    return qscheme == torch.per_tensor_affine or qscheme == torch.per_tensor_symmetric


def is_per_channel(qscheme: torch.qscheme) -> bool:
    """Whether `qscheme` has a scale and zero point for each index along one axis.

    >>> is_per_channel(torch.per_channel_affine_float_qparams)
    True
    """
    return (
        qscheme == torch.per_channel_affine
        or qscheme == torch.per_channel_symmetric
        or qscheme == torch.per_channel_affine_float_qparams
    )


def is_symmetric(qscheme: torch.qscheme) -> bool:
    """Whether `qscheme` fixes the zero point at the middle of the range.

    >>> is_symmetric(torch.per_channel_affine)
    False
    """
    return qscheme == torch.per_tensor_symmetric or qscheme == torch.per_channel_symmetric


def is_float_qparams(qscheme: torch.qscheme) -> bool:
    """Whether `qscheme` keeps its zero points as floats (the scheme of embedding tables).

    >>> is_float_qparams(torch.per_channel_affine_float_qparams)
    True
    """
    return qscheme == torch.per_channel_affine_float_qparams


def symmetric_zero_point(dtype: torch.dtype, quant_min: int, quant_max: int, customized: bool) -> int:
    """Return the middle of the range: 0 for signed dtypes, half the levels for unsigned ones.

    `customized` says that the user chose `quant_min` and `quant_max`, whose middle then counts.

    >>> symmetric_zero_point(torch.quint8, 0, 127, True), symmetric_zero_point(torch.qint8, -128, 127, False)
    (63, 0)
    """
    if dtype == torch.quint8 or dtype == torch.uint8:
        return (quant_min + quant_max) // 2 if customized else 128
    if dtype == torch.uint16:
        return 32768
    return 0
