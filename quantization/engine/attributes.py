"""Attributes that a program hung on a module, and that shall outlive the module's replacement."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

# Set by the workflows, which remove or renew them themselves.
_OURS = frozenset({"qconfig", "training"})


def carry_attributes(source: nn.Module, target: nn.Module) -> None:
    """Set on `target` the attributes that a user set on `source`, the same objects.

    Those are the public ones that are no parameter, buffer or module, that no constructor of the class takes
    as an argument and no `__constants__` lists, and that mean nothing to `target` yet. What a constructor of
    the user's own class computes counts as set by the user.

    >>> source, target = nn.Linear(2, 2), nn.Identity()
    >>> source.tag = "head"
    >>> carry_attributes(source, target)
    >>> target.tag, hasattr(target, "in_features")
    ('head', False)
    """
    fresh = [name for name in vars(source) if not name.startswith("_") and not hasattr(target, name)]
    if not fresh:
        return
    own = _OURS | _class_attributes(type(source))
    for name in fresh:
        if name not in own:
            setattr(target, name, vars(source)[name])


def _class_attributes(cls: type[Any]) -> set[str]:
    """Names that instances have because of their class."""
    names: set[str] = set()
    for base in cls.__mro__:
        names.update(vars(base).get("__constants__", ()))
        if "__init__" in vars(base) and base is not object:
            names.update(inspect.signature(vars(base)["__init__"]).parameters)
    return names
