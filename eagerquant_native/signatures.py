"""What each compiled function takes and returns.

Pointers are passed as integers, sizes and flags as 64-bit integers.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

# Raised when a function takes something else. setup.py compiles it in; a library of another is refused.
INTERFACE = 8

_P, _I, _F, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double
_BOOL = ctypes.c_int32


class Signature(NamedTuple):
    """The type of the result, None for nothing, and the types of the arguments."""

    result: Any
    arguments: tuple[Any, ...]


def _takes(*arguments: Any, gives: Any = None) -> Signature:
    return Signature(gives, arguments)


# Compiled for float32, bfloat16 and float16 each.
_SUFFIXES = ("", "_bfloat16", "_half")
_OF_EACH_DTYPE: dict[str, Signature] = {
    "range": _takes(_P, _I, _P),
    "ranges": _takes(_P, _I, _I, _I, _P, _P),
    "update_ranges": _takes(_P, _I, _I, _I, _P, _P, _F, gives=_BOOL),
    "histogram": _takes(_P, _I, _I, _P, _P, _P, _P, gives=_BOOL),
    "round_tensor": _takes(_P, _P, _P, _I, _P, _P, _I, _I, gives=_BOOL),
    "round_channels": _takes(_P, _P, _P, _I, _I, _I, _P, _P, _I, _I, gives=_BOOL),
    "observe_tensor": _takes(_P, _I, _I, _P, _P, _F, _I, _I, _I, _P, _P, gives=_BOOL),
    "observe_and_round": _takes(_P, _P, _P, _I, _I, _I, _P, _P, _F, _I, _I, _I, _P, _P, gives=_BOOL),
}

SIGNATURES: dict[str, Signature] = {
    **{name + suffix: signature for name, signature in _OF_EACH_DTYPE.items() for suffix in _SUFFIXES},
    "upscale": _takes(_P, _I, _I, _P, _P, _P, gives=_BOOL),
    "next_ranges": _takes(_P, _D, _P, _I, _D, _I, _D, _P, _I, _P, _P, gives=_I),
    "observe_and_round_scaled": _takes(
        _P, _P, _P, _P, _I, _I, _I, _P, _P, _F, _I, _I, _I, _P, _P, gives=_BOOL
    ),
    "unscale": _takes(_P, _P, _P, _P, _P, _I, _I, _I),
    "keep_scaled": _takes(_P, _P, _P, _P, _P, _P, _I, _I),
    "keep_scaled_across": _takes(_P, _P, _P, _P, _P, _P, _I, _I, _I),
    "keep_16": _takes(_P, _P, _P, _I, _I),
    "keep_32": _takes(_P, _P, _P, _I, _I),
    "quantize_weight": _takes(_P, _I, _I, _P, _I, _F, _F, _P),
    "pack_size": _takes(_I, _I, _I, gives=_I),
    "pack": _takes(_P, _P, _P, _I, _I, _I, _P),
    "unpack": _takes(_P, _P, _P, _P),
    "linear_dynamic": _takes(_P, _P, _I, _I, _P, gives=_BOOL),
    "linear_static": _takes(_P, _P, _I, _F, _I, _F, _I, _I, _P, gives=_BOOL),
    "recurrent_dynamic": _takes(_P, _P, _P, _I, _I, _I, _P, _P, _P, _I, gives=_BOOL),
    "lstm_static": _takes(_P),
    "gate_functions": _takes(_P, _I, _P, _P),
}
