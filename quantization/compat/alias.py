"""Serve torch.ao's module names from this library, in `sys.modules` and as attributes, until undone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from mappings.resolve import load
from quantization.backends.decomposed import register
from quantization.compat.names import DECOMPOSED, LEGACY, RENAMED, SOURCES

_ABSENT = object()


class _AliasModule(ModuleType):
    """A module that looks each name up in our modules, and in the module it stands in for last.

    Looking up at each access keeps tables live, and assigning a name assigns it where our code reads it, so
    that a program may patch a function here as it would in torch.ao.
    """

    def __init__(self, name: str, sources: list[ModuleType], original: ModuleType | None) -> None:
        super().__init__(name, doc=f"{name}, served by eagerquant.")
        vars(self).update(_sources=sources, _original=original, _replaced={})
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__package__ = name
        self.__path__ = list(getattr(original, "__path__", []))

    def _owner(self, name: str) -> tuple[ModuleType, str] | None:
        """The module of ours that defines `name`, and what it is called there."""
        return owner_of(self.__name__, name, self._sources)

    def _public(self) -> list[str]:
        """What `from module import *` takes: what it took from torch.ao, else what our modules define."""
        listed = getattr(self._original, "__all__", None)
        if listed is not None:
            return [name for name in listed if hasattr(self, name)]
        return sorted({name for source in self._sources for name in vars(source) if _is_public(source, name)})

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return self._public()
        owner = None if name.startswith("__") else self._owner(name)
        if owner is not None:
            return getattr(*owner)
        if self._original is not None and name != "__wrapped__":
            return getattr(self._original, name)
        raise AttributeError(f"eagerquant has no {name!r} to serve as {self.__name__}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        owner = None if name.startswith("__") or isinstance(value, ModuleType) else self._owner(name)
        if owner is None:
            super().__setattr__(name, value)
            return
        self._replaced.setdefault(name, getattr(*owner))
        setattr(*owner, value)

    def __delattr__(self, name: str) -> None:
        owner = self._owner(name) if name in self._replaced else None
        if owner is None:
            super().__delattr__(name)
        else:
            setattr(*owner, self._replaced.pop(name))

    def __dir__(self) -> list[str]:
        names = {name for module in (*self._sources, self._original) if module for name in vars(module)}
        return sorted(names | set(vars(self)))


def owner_of(
    module: str, name: str, sources: Iterable[ModuleType] | None = None
) -> tuple[ModuleType, str] | None:
    """The module of ours that answers for `name` in torch.ao's `module`, and what it is called there."""
    renamed = RENAMED.get(f"{module}:{name}")
    if renamed is None:
        for source in present(module) if sources is None else sources:
            if name in vars(source):
                return source, name
        renamed = RENAMED.get(name)
    if renamed is None:
        return None
    home, _, ours = renamed.partition(":")
    return load(home), ours


def present(module: str) -> list[ModuleType]:
    """Our modules that answer for a module of torch.ao, without those that do not exist."""
    return [source for source in map(load, SOURCES[module]) if source is not None]


def _is_public(source: ModuleType, name: str) -> bool:
    value = getattr(source, name)
    home = getattr(value, "__module__", None)
    ours = home is None or str(home).partition(".")[0] in ("observers", "mappings", "quantization")
    return not name.startswith("_") and not isinstance(value, ModuleType) and ours


class Alias:
    """What `alias_torch_ao` put in place; `undo()`, or leaving its `with` block, takes it away again."""

    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}
        self._attributes: list[tuple[ModuleType, str, Any]] = []

    def _install(self, name: str, module: ModuleType) -> None:
        self._modules.setdefault(name, sys.modules.get(name, _ABSENT))
        sys.modules[name] = module
        parent_name, _, child = name.rpartition(".")
        parent = sys.modules.get(parent_name)
        # A function of the same name (`torch.ao.quantization.quantize`) hides the submodule, as in torch.ao.
        if parent is None or callable(getattr(parent, child, None)):
            return
        self._attributes.append((parent, child, vars(parent).get(child, _ABSENT)))
        setattr(parent, child, module)

    def undo(self) -> None:
        """Put every module and attribute back; a second call does nothing."""
        while self._attributes:
            parent, child, before = self._attributes.pop()
            if before is not _ABSENT:
                setattr(parent, child, before)
            elif child in vars(parent):
                delattr(parent, child)
        for name, before in self._modules.items():
            if before is _ABSENT:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before
        self._modules.clear()

    def __enter__(self) -> Alias:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def alias_torch_ao() -> Alias:
    """Make `torch.ao.quantization`, `torch.ao.nn.*` and their older names mean this library.

    Programs that import those names afterwards run on our code, unedited; what was imported before keeps
    what it has. Names that this library does not have are still served by torch.ao where it is installed.

    >>> import torch
    >>> with alias_torch_ao():
    ...     from torch.ao.quantization import MinMaxObserver
    >>> MinMaxObserver.__module__
    'observers.minmax'
    """
    # All of torch.ao first: a module of its that was imported halfway through would be built on ours.
    for name in sorted(SOURCES):
        _original(name)
    alias = Alias()
    for name in sorted(SOURCES):
        if name != "torch.ao" or "torch.ao" not in sys.modules:
            alias._install(name, _alias_module(name))
    if _original("torch.ao.quantization.fx") is None:
        register()
        for name, sources in DECOMPOSED.items():
            alias._install(name, _AliasModule(name, [load(source) for source in sources], None))
    for legacy, current in LEGACY.items():
        for name in sorted(SOURCES):
            if name == current or name.startswith(current + "."):
                alias._install(legacy + name.removeprefix(current), sys.modules[name])
    return alias


def _alias_module(name: str) -> _AliasModule:
    original = _original(name)
    if isinstance(original, _AliasModule):
        original = original._original
    return _AliasModule(name, present(name), original)


def _original(name: str) -> ModuleType | None:
    """torch.ao's module of that name, where it can be imported."""
    try:
        return load(name)
    except ImportError:
        return None
