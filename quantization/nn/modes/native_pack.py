"""A packed linear weight in the form of the compiled kernel, in place of the engine's object."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from quantization.backends import native_linear

_ENGINE, _NATIVE, _SUITS = "_packed_params", "_native", "_native_suits"


class _BeforeScripting:
    """What TorchScript shall pass over; it asks before it reads the attributes, in time to have those it can.

    No property, because it would compile that.
    """

    def __get__(self, module: Any, owner: type) -> list[str]:
        if module is not None and module._native is not None:
            getattr(module, _ENGINE)
        return [_NATIVE, _SUITS]


class HoldsNativePack(nn.Module):
    """Mixin of the child that holds a packed weight: it keeps one pack, and makes the other when asked.

    `_packed_params` is the engine's object, which TorchScript, files and users read. `_native` is the compiled
    kernel's pack. Once the kernel has been used only `_native` is kept; whoever then asks for `_packed_params`
    gets it, made anew under the engine that is set at that time, and both are kept from there on.
    """

    _native: Tensor | None = None
    _native_suits = True

    def native(self) -> Tensor | None:
        """The kernel's pack, made at the first call; None where torch's operator is to be used.

        The engine decides: 'x86', torch's default, leaves the choice to us; any other is used as it is.
        """
        if self._native is None and self._native_suits and torch.backends.quantized.engine == "x86":
            self._keep_native(native_linear.pack(*self._weight_bias()))
        return self._native

    def _keep_native(self, native: Tensor | None) -> None:
        """Take this pack instead of the engine's object; None says that no kernel takes this weight."""
        if native is None:
            self.__dict__[_SUITS] = False
        else:
            self.__dict__[_NATIVE] = native
            self.__dict__.pop(_ENGINE, None)

    def _weight_bias(self) -> Any:
        raise NotImplementedError

    def _drop_native(self) -> None:
        """Forget the kernel's pack, because another weight was packed."""
        self.__dict__.pop(_NATIVE, None)
        self.__dict__.pop(_SUITS, None)

    def __getattr__(self, name: str) -> Any:
        if name == _ENGINE and self._native is not None:
            packed = self._engine_object()
            self.__dict__[_ENGINE] = packed
            return packed
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == _ENGINE:
            self._drop_native()
        super().__setattr__(name, value)

    def _engine_object(self) -> Any:
        """The weight as the engine packs it."""
        raise NotImplementedError

    __jit_ignored_attributes__ = _BeforeScripting()

    def __getstate__(self) -> dict[str, Any]:
        # Files hold the engine's object: they are read on other machines, and by torch.ao.
        state = self.__dict__.copy()
        state.pop(_SUITS, None)
        if state.pop(_NATIVE, None) is not None and _ENGINE not in state:
            state[_ENGINE] = self._engine_object()
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new
