"""Copies of models: whole ones, and ones that borrow the tensors of what is about to be replaced."""

# pyright: reportPrivateUsage=false
# nn.Module has no public access to its own children by name and to its hooks.
from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Generator
from typing import Any

from torch import nn

from quantization.errors import QuantizationError

_TENSORS = ("_parameters", "_buffers")
# A recurrent layer lists its parameters once more, and keeps the list up to date.
_SHARED = (*_TENSORS, "_flat_weights")


class _CannotCopy(QuantizationError, RuntimeError):
    """`copy.deepcopy` of the model failed, as it does for tensors with a gradient history."""


@contextlib.contextmanager
def _explained() -> Generator[None]:
    try:
        yield
    except RuntimeError as error:
        message = f"the model cannot be deep-copied ({error}); pass inplace=True, or detach() what it holds"
        raise _CannotCopy(message) from error


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of the model, or an error that says what to do when it cannot be copied."""
    with _explained():
        return copy.deepcopy(model)


class Loan:
    """A deep copy, `model`, in which some modules still have the tensors of the original.

    Those are the modules that `lent` holds for. Call `settle` before anyone writes into a tensor of the copy
    or hands it on.
    """

    def __init__(self, original: nn.Module, lent: Callable[[nn.Module], bool]) -> None:
        self._memo: dict[int, Any] = {}
        self._borrowers: list[nn.Module] = []
        pairs = [(module, _blank(module)) for module in original.modules() if lent(module)]
        with _explained():
            # deepcopy takes what is in the memo for the copy; the tensors are not in it, so that anything
            # else that refers to them gets tensors of its own.
            self._memo.update({id(module): blank for module, blank in pairs})
            self.model: nn.Module = copy.deepcopy(original, self._memo)
            for module, blank in pairs:
                self._fill(module, blank)

    def _fill(self, module: Any, blank: Any) -> None:
        state: dict[str, Any] = {}
        before: dict[str, Any] = module.__getstate__()
        for name, value in before.items():
            if name in _SHARED:
                state[name] = copy.copy(value)
            else:
                state[name] = copy.deepcopy(value, self._memo)
        blank.__setstate__(state)
        self._borrowers.append(blank)

    def settle(self, may_borrow: Collection[int] = ()) -> None:
        """Give all borrowers but those with these ids tensors of their own."""
        with _explained():
            for module in self._borrowers:
                if id(module) not in may_borrow:
                    for kind in _TENSORS:
                        for name, tensor in vars(module)[kind].items():
                            if tensor is not None:
                                setattr(module, name, copy.deepcopy(tensor, self._memo))
        self._borrowers, self._memo = [], {}


def _blank(module: nn.Module) -> Any:
    return type(module).__new__(type(module))


def is_plainly_copied(module: nn.Module) -> bool:
    """Whether deepcopy copies the module attribute by attribute, as `Loan` does."""
    return not hasattr(type(module), "__deepcopy__")
