"""Find the compiled library, choose what suits the CPU, and hand out its functions.

A kernel is compiled for several levels of CPU and carries the level in its name. Pointers are passed as
integers, `tensor.data_ptr()`; a call costs half a microsecond.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # before the library: it lends its OpenMP

from eagerquant_native.signatures import INTERFACE, SIGNATURES

try:  # torch has no public way to ask for the transform of torch.func that is being applied
    from torch._C._functorch import maybe_current_level as _transform
except ImportError:

    def _transform() -> int | None:
        return None


# From any CPU up; each level includes the ones before it.
LEVELS = ("portable", "avx2", "avx512", "vnni", "amx")

_PATH = Path(__file__).with_name("_kernels.so")


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, or None where it is turned off, was not built, or was built from other sources."""
    if os.environ.get("EAGERQUANT_NATIVE") == "0" or not _PATH.exists():
        return None
    try:
        library = ctypes.CDLL(str(_PATH))
        built_for = library.eq_interface()
    except (OSError, AttributeError) as error:
        return _unusable(str(error))
    if built_for != INTERFACE:
        return _unusable(f"it was built from other sources (interface {built_for}, expected {INTERFACE})")
    return library


def _unusable(reason: str) -> None:
    warnings.warn(
        f"eagerquant runs without its compiled kernels: {_PATH} cannot be used: {reason}. Install the "
        "package again to rebuild it; EAGERQUANT_NATIVE=0 says that none are wanted",
        RuntimeWarning,
        stacklevel=4,
    )


@functools.cache
def levels() -> tuple[str, ...]:
    """The levels this machine can run, best last; empty without the library.

    >>> set(levels()) <= set(LEVELS)
    True
    """
    library = _library()
    if library is None:
        return ()
    found = library.eq_cpu()
    return LEVELS[:1] + tuple(name for bit, name in enumerate(LEVELS[1:]) if found >> bit & 1)


@functools.cache
def kernel(name: str, level: str | None = None) -> Callable[..., Any] | None:
    """The compiled function of that name for the best level this machine has, or exactly for `level`.

    None where there is none: the caller then takes its way through torch.

    >>> kernel("range") is None or callable(kernel("range"))
    True
    """
    library = _library()
    for candidate in reversed(levels()):
        if level in (None, candidate):
            function = getattr(library, f"eq_{name}_{candidate}", None)
            if function is not None:
                function.restype, function.argtypes = SIGNATURES[name]
                return function
    return None


def is_plain(x: torch.Tensor) -> bool:
    """Whether a kernel may read `x` through its address: an ordinary dense tensor in this process's memory.

    Not under tracing, compilation and the transforms of `torch.func`: they would not see what a kernel does.
    """
    return (
        type(x) in _PLAIN_TYPES
        and x.is_cpu
        and x.layout is torch.strided
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _transform() is None
    )


_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)
