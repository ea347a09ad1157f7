"""Whole models that `torch.save(model)` wrote with torch.ao, read without torch.ao.

A pickle names the classes to build. torch.ao's names lead to this library's classes, those of torch's own
layers, tensors and dtypes to themselves; a program's own classes are taken only where the caller lists them.
Any other name is refused before anything is called.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import _utils, nn

from mappings.resolve import load as import_module_by_name
from quantization.compat.alias import owner_of
from quantization.compat.names import LEGACY, SOURCES
from quantization.engine.observe import observer_forward_hook, observer_forward_pre_hook
from quantization.errors import QuantizationError

Allowed = Iterable[type[Any] | ModuleType]
_OURS = ("observers", "mappings", "quantization")
_HOOKS = (observer_forward_hook, observer_forward_pre_hook)
_PLAIN: dict[str, Any] = {
    "collections OrderedDict": OrderedDict,
    "functools partial": partial,
    "torch._utils _rebuild_tensor_v2": _utils._rebuild_tensor_v2,
    "torch._utils _rebuild_qtensor": _utils._rebuild_qtensor,
    "torch._utils _rebuild_parameter": _utils._rebuild_parameter,
    **{f"builtins {kind.__name__}": kind for kind in (set, frozenset, slice, complex, bytearray, range)},
    **{f"torch {name}": getattr(torch, name) for name in ("Size", "device", "ScriptObject", "Tensor")},
}


class _Refused(QuantizationError, pickle.UnpicklingError):
    """A pickle names something that was not allowed, or is not one."""


def load(path: Any, classes: Allowed = (), map_location: Any = "cpu") -> Any:
    """Read a whole model that was saved by `torch.save(model, path)` with torch.ao, or by this library.

    Args:
        path: a file name or an open binary file.
        classes: the program's own classes in the file, or modules and packages that define them
            (`torchvision`). A class is found by its full name, or, if it has moved since, by its name alone.
            Their code runs: list only what you would run anyway.
        map_location: as in `torch.load`.

    Raises:
        QuantizationError: the file names a class or function that is not a layer of torch, not one of
            torch.ao's, and not listed; nothing of it has run.

    >>> import io
    >>> file = io.BytesIO()
    >>> torch.save(quantize_dynamic(nn.Sequential(nn.Linear(4, 2))), file)
    >>> _ = file.seek(0)
    >>> type(load(file)[0]).__module__
    'quantization.nn.dynamic'
    """
    names = Names(classes)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return names.find(module, name)

    def read(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader = SimpleNamespace(__name__="quantization.compat", Unpickler=Unpickler, load=read)
    try:
        return torch.load(path, map_location=map_location, pickle_module=reader, weights_only=False)
    except pickle.UnpicklingError as error:
        if isinstance(error, _Refused):
            raise
        raise _Refused(f"{path} is not a file that torch.save wrote: {error}") from error


class Names:
    """What each name in a pickle stands for; `classes` are what the caller allows besides."""

    def __init__(self, classes: Allowed) -> None:
        self._classes: dict[str, Any] = {}
        self._packages: list[str] = []
        for one in classes:
            if isinstance(one, ModuleType):
                self._packages.append(one.__name__)
            elif isinstance(one, type):
                self._classes[f"{one.__module__}.{one.__qualname__}"] = one
                self._classes.setdefault(one.__qualname__, one)
            else:
                raise TypeError(f"classes takes classes and modules, got {one!r}")

    def find(self, module: str, name: str) -> Any:
        """The object of that name, or an error that says how to allow it."""
        module = {"__builtin__": "builtins"}.get(module, module)
        found = self._allowed(module, name)
        if found is None:
            found = counterpart(module, name)
        if found is None:
            found = _of_torch(module, name)
        if found is None:
            raise _Refused(
                f"the file names {module}.{name}, which is neither a layer of torch nor one of torch.ao's. "
                "If it is a class of your own program, pass it: quantization.compat.load(path, "
                "classes=[Model]), or the module that defines it. If you do not know it, do not load the file"
            )
        return found

    def _allowed(self, module: str, name: str) -> Any:
        listed = self._classes.get(f"{module}.{name}", self._classes.get(name))
        inside = any(module == package or module.startswith(package + ".") for package in self._packages)
        if listed is not None and not _is_known(module):
            return listed
        found = getattr(import_module_by_name(module), name, None) if inside else None
        return found if isinstance(found, type) else None


def _is_known(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "builtins", "collections", *_OURS)


def counterpart(module: str, name: str) -> Any:
    """Our class for a class of torch.ao, under any of its module names; None for other names.

    >>> counterpart("torch.nn.quantized.modules.linear", "Linear").__module__
    'quantization.nn.quantized'
    """
    for old, current in LEGACY.items():
        if module == old or module.startswith(old + "."):
            module = current + module.removeprefix(old)
            break
    if module.partition(".")[0] in _OURS:
        return _own(getattr(import_module_by_name(module), name, None))
    owner = owner_of(module, name) if module in SOURCES else None
    return None if owner is None else _own(getattr(*owner, None))


def _own(found: Any) -> Any:
    """The object if it is one of our classes, or a hook of ours; functions could do anything."""
    is_class = isinstance(found, type) and found.__module__.partition(".")[0] in _OURS
    return found if is_class or found in _HOOKS else None


def _of_torch(module: str, name: str) -> Any:
    """torch's layers, storages, dtypes and pure functions; None for anything else."""
    if f"{module} {name}" in _PLAIN:
        return _PLAIN[f"{module} {name}"]
    if module in ("torch", "torch.storage"):
        found = getattr(torch if module == "torch" else torch.storage, name, None)
        return found if isinstance(found, torch.dtype | torch.qscheme) or name.endswith("Storage") else None
    if module == "torch.nn.functional" or module == "torch._C._nn":
        found = getattr(torch.nn.functional, name, None)
        pure = getattr(found, "__module__", None) in ("torch.nn.functional", "torch._C._nn")
        return found if pure and not name.startswith("_") and not isinstance(found, type) else None
    if module.startswith("torch.nn."):
        found = getattr(import_module_by_name(module), name, None)
        return found if isinstance(found, type) and issubclass(found, nn.Module | nn.Parameter) else None
    return None
