"""How a linear weight is packed, chosen automatically: by our kernel, or for an engine of torch."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from quantization.backends import native_linear
from quantization.backends.engine_choice import engine, faster_engine

_ENGINE, _NATIVE = "_packed_params", "_native"
AUTOMATIC_STATE = (_NATIVE, "_native_suits", "_shape", "_packed_for", "_calls_against")
# So many calls in a row that another engine does faster make it worth to pack again.
_PATIENCE = 3


class _BeforeScripting:
    """What TorchScript shall pass over; it asks before it reads the attributes, in time to have those it can.

    No property, because it would compile that.
    """

    def __get__(self, module: Any, owner: type) -> list[str]:
        if module is not None and module._native is not None:
            getattr(module, _ENGINE)
        return list(AUTOMATIC_STATE)


class AutomaticPack(nn.Module):
    """Mixin of the child that holds a packed weight: it keeps one pack, and makes the other when asked.

    `_packed_params` is the engine's object, which TorchScript, files and users read. `_native` is the pack of
    the compiled kernel. Once the kernel has been used only `_native` is kept; whoever then asks for
    `_packed_params` gets it, made anew under the engine that is set then, and both are kept from there
    on. All of this is for the engine 'x86', torch's default; any other is used as it is.
    """

    _native: Tensor | None = None
    _native_suits = True
    _shape: tuple[int, ...] | None = None  # of the weight, which it would take long to unpack for that
    _packed_for = "fbgemm"  # what 'x86' packs for
    _calls_against = 0

    def native(self) -> Tensor | None:
        """The kernel's pack, made at the first call; None where torch's operator is to be used."""
        if self._native is None and self._native_suits and torch.backends.quantized.engine == "x86":
            self._keep_native(native_linear.pack(*self._weight_bias()))
        return self._native

    def identity(self) -> int:
        """A number that no other weight has while this one is there: packs are not changed in place."""
        native = self.native()
        return id(self._packed_params if native is None else native)

    def _pack_natively(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Take this weight for the kernel instead of an engine, if it can have it and may."""
        native = native_linear.pack(weight, bias) if torch.backends.quantized.engine == "x86" else None
        if native is not None:
            self._drop_native()
            self._keep_native(native)
        return native is not None

    def _keep_native(self, native: Tensor | None) -> None:
        """Take this pack instead of the engine's object; None says that no kernel takes this weight."""
        if native is None:
            self._native_suits = False
        else:
            self.__dict__[_NATIVE] = native
            self.__dict__.pop(_ENGINE, None)

    def _weight_bias(self) -> Any:
        raise NotImplementedError

    def _weight_shape(self) -> tuple[int, ...]:
        if self._native is not None:
            return native_linear.shape_of(self._native)
        return self._shape or tuple(self._weight_bias()[0].shape)

    def _drop_native(self) -> None:
        """Forget what holds for a weight that is no longer there."""
        for name in AUTOMATIC_STATE:
            self.__dict__.pop(name, None)

    def suit(self, rows: int) -> None:
        """Pack anew for the engine that is faster with so many rows, if the last calls were like this one."""
        if torch.backends.quantized.engine != "x86" or self._native is not None:
            return
        wanted = faster_engine(rows)
        self._calls_against = 0 if wanted == self._packed_for else self._calls_against + 1
        if self._calls_against < _PATIENCE:
            return
        weight, bias = self._weight_bias()
        if weight.is_quantized:
            with engine(wanted):
                self._packed_params = self._pack(weight, bias)
        self._packed_for = wanted

    def __getattr__(self, name: str) -> Any:
        if name == _ENGINE and self._native is not None:
            self.__dict__[_ENGINE] = self._pack(*native_linear.unpack(self._native))
            return self.__dict__[_ENGINE]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == _ENGINE:
            self._drop_native()
        super().__setattr__(name, value)

    def _pack(self, weight: Tensor, bias: Tensor | None) -> Any:
        """The weight as the selected engine packs it."""
        raise NotImplementedError

    __jit_ignored_attributes__ = _BeforeScripting()

    def __getstate__(self) -> dict[str, Any]:
        # Files hold the engine's object: they are read on other machines, and by torch.ao.
        state = {name: value for name, value in self.__dict__.items() if name not in AUTOMATIC_STATE}
        if self._native is not None and _ENGINE not in state:
            state[_ENGINE] = self._pack(*native_linear.unpack(self._native))
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new
