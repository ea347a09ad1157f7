"""A qconfig in words, for reports and for files that must not hold code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def qconfig_text(qconfig: Any) -> str:
    """Both observers with their arguments.

    >>> from quantization.qconfig import default_dynamic_qconfig
    >>> qconfig_text(default_dynamic_qconfig).partition(", weight=")[2]
    'MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)'
    """
    return ", ".join(f"{side}={_text(getattr(qconfig, side, None))}" for side in ("activation", "weight"))


def _text(factory: Callable[..., Any] | None) -> str:
    name, arguments = _parts(factory)
    listed = ", ".join(f"{key}={_argument(value)}" for key, value in arguments.items())
    return f"{name}({listed})" if listed else name


def _parts(factory: Any) -> tuple[str, dict[str, Any]]:
    """The class that a factory makes objects of, and the arguments collected on the way."""
    inner = getattr(factory, "p", factory)
    if isinstance(inner, partial):
        name, arguments = _parts(inner.func)
        return name, {**arguments, **inner.keywords}
    return getattr(inner, "__name__", type(inner).__name__ if inner is not None else "None"), {}


def _argument(value: Any) -> str:
    return _text(value) if callable(value) else repr(value)
