"""Observers on the device of the module they are for."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def on_device_of(module: nn.Module, factory: Any) -> Any:
    """The factory, with its observers made on the device of `module`; as it is without `factory_kwargs`."""
    try:
        sample(factory.with_args(factory_kwargs=None))
    except (AttributeError, TypeError):
        return factory
    return factory.with_callable_args(factory_kwargs=_DeviceOf(module))


def sample(factory: Any) -> Any:
    """An observer made only to be looked at; its warnings are for the one that will be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return factory()


class _DeviceOf:
    """Computes the `factory_kwargs` of an observer: the device its module is on when the observer is made.

    The module is referred to weakly, so that a qconfig keeps no replaced module alive; a deep copy or an
    unpickled copy of the module has a qconfig that refers to the copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Callable[[], nn.Module | None] = weakref.ref(module)

    def __call__(self) -> dict[str, torch.device] | None:
        module = self._module()
        if module is None:
            return None
        devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        real = devices - {torch.device("meta")} or devices
        return {"device": real.pop()} if len(real) == 1 else None

    def __deepcopy__(self, memo: dict[int, Any]) -> _DeviceOf:
        module = self._module()
        return self if module is None else _DeviceOf(memo.get(id(module), module))

    def __getstate__(self) -> tuple[nn.Module | None]:
        return (self._module(),)

    def __setstate__(self, state: tuple[nn.Module | None]) -> None:
        (module,) = state
        self._module = _nothing if module is None else weakref.ref(module)


def _nothing() -> None:
    """What a dead weak reference returns."""
