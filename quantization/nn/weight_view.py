"""`.weight` and `.bias` of a layer whose weight is packed: callable as in torch.ao, readable as a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightView:
    """A packed tensor seen from outside: `view()` unpacks it, `view.shape` and the like read it.

    `dtype`, `device` and `shape` are known without unpacking; every other attribute is the unpacked tensor's.
    Torch functions take a view as the float tensor it stands for. Code that asks torch whether all tensors
    are plain ones, such as the fast path of `nn.TransformerEncoderLayer`, is told no and steps aside.
    """

    def __init__(self, unpack: Callable[[], Any], dtype: torch.dtype, shape: Sequence[int]) -> None:
        self._unpack = unpack
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.shape = torch.Size(shape)
        self.requires_grad = False

    def __call__(self) -> Any:
        """Unpack: a tensor, or None for a layer without bias."""
        return self._unpack()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_unpack" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._unpack(), name)

    def __repr__(self) -> str:
        return repr(self._unpack())

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        plain = {name: _as_float(value) for name, value in (kwargs or {}).items()}
        return function(*_as_float(args), **plain)


class ViewOf:
    """The class attribute that makes `module.weight` a `WeightView`; TorchScript passes it over.

    `read` names the module's method that unpacks, `facts` the one that gives `(dtype, shape)` without it.
    """

    def __init__(self, read: str, facts: str, doc: str) -> None:
        self._read = read
        self._facts = facts
        self.__doc__ = doc

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> Any:
        if module is None:
            return self
        dtype, shape = getattr(module, self._facts)()
        return WeightView(getattr(module, self._read), dtype, shape)


def _as_float(value: Any) -> Any:
    """Replace every view in nested lists and tuples by the float tensor it stands for."""
    if isinstance(value, WeightView):
        tensor = value()
        return tensor.dequantize() if isinstance(tensor, Tensor) and tensor.is_quantized else tensor
    if type(value) in (list, tuple):
        return type(value)(_as_float(item) for item in value)
    return value
