"""Functions on call signatures that torch.ao had: which arguments a function takes, and their defaults."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_EMPTY: dict[Any, Any] = {inspect.Parameter.VAR_POSITIONAL: (), inspect.Parameter.VAR_KEYWORD: {}}


def _get_signature_locals(f: Callable[..., Any], loc: dict[str, Any]) -> dict[str, Any]:
    """The entries of `loc` that `f` takes as arguments."""
    return {name: value for name, value in loc.items() if name in inspect.signature(f).parameters}


def _get_default_kwargs(f: Callable[..., Any]) -> OrderedDict[str, Any]:
    """The arguments of `f` that have a default; `*args` and `**kwargs` count as empty ones."""
    defaults: OrderedDict[str, Any] = OrderedDict()
    for name, parameter in inspect.signature(f).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            defaults[name] = parameter.default
        elif parameter.kind in _EMPTY:
            defaults[name] = type(_EMPTY[parameter.kind])()
    return defaults


def _normalize_kwargs(func: Callable[..., Any], loc: dict[str, Any]) -> OrderedDict[str, Any]:
    """The arguments of `func` that have a default, with the values that `loc` gives them."""
    given = _get_signature_locals(func, loc)
    defaults = _get_default_kwargs(func)
    return OrderedDict((name, given.get(name, default)) for name, default in defaults.items())


def _get_num_pos_args(f: Callable[..., Any]) -> int:
    """How many arguments can be given by position."""
    return len(inspect.getfullargspec(f).args)
