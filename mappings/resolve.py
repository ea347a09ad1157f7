"""From names to objects: the only code among the mappings, and the only place that imports by name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Literal, NoReturn

from mappings.modules import GRID, Row

Column = Literal["static", "dynamic", "qat", "reference"]
Namespaces = Mapping[str, tuple[str, ...]]

NAMESPACES: Namespaces = {
    "nn": ("torch.nn", "torch.nn.modules.linear"),
    "F": ("torch.nn.functional",),
    "torch": ("torch",),
    "stubs": ("quantization.stubs",),
    "functional": ("quantization.nn.functional_modules",),
    "fused": ("quantization.nn.fused",),
    "qat": ("quantization.nn.qat",),
    "qat_dynamic": ("quantization.nn.qat_dynamic",),
    "quantizable": ("quantization.nn.quantizable",),
    "quantized": ("quantization.nn.quantized",),
    "dynamic": ("quantization.nn.dynamic",),
    "reference": ("quantization.nn.reference",),
    "sparse": ("quantization.nn.sparse",),
    "sparse_dynamic": ("quantization.nn.sparse_dynamic",),
}
# The namespace of the bare names in each column.
_HOME: dict[Column, str] = {
    "static": "quantized",
    "dynamic": "dynamic",
    "qat": "qat",
    "reference": "reference",
}


class UnbuiltCell(NotImplementedError):
    """A mapping names a class that does not exist in its namespace."""


class Unbuilt:
    """Stands in for a class that does not exist, to keep tables complete; using it raises `UnbuiltCell`."""

    wanted: ClassVar[str] = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UnbuiltCell(f"{self.wanted} is not built yet, so it cannot be constructed; {_CURE}")

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> NoReturn:
        """Raise `UnbuiltCell`."""
        cls._refuse(mod)

    @classmethod
    def from_observed(cls, mod: Any) -> NoReturn:
        """Raise `UnbuiltCell`."""
        cls._refuse(mod)

    @classmethod
    def from_reference(cls, mod: Any, *args: Any) -> NoReturn:
        """Raise `UnbuiltCell`."""
        cls._refuse(mod)

    @classmethod
    def _refuse(cls, mod: Any) -> NoReturn:
        source = f"{type(mod).__module__}.{type(mod).__qualname__}"
        raise UnbuiltCell(f"{source} would become {cls.wanted}, which is not built yet; {_CURE}")


_CURE = "leave the module out (set its qconfig to None) or pass a mapping without it"


def find(name: str, namespaces: Namespaces = NAMESPACES) -> Any:
    """The object called "namespace:Name"; None if it does not exist.

    >>> find("nn:Linear").__name__
    'Linear'
    >>> find("nn:NoSuchLayer") is None
    True
    """
    namespace, _, attribute = name.rpartition(":")
    if namespace not in namespaces:
        raise KeyError(f"{name!r}: no namespace {namespace!r}, expected one of {sorted(namespaces)}")
    for module in namespaces[namespace]:
        found = getattr(load(module), attribute, None)
        if found is not None:
            return found
    return None


def class_at(name: str, namespaces: Namespaces = NAMESPACES) -> Any:
    """The class called "namespace:Name", or a stand-in that raises `UnbuiltCell` when it is used.

    >>> class_at("nn:Linear").__name__
    'Linear'
    """
    found = find(name, namespaces)
    if found is not None:
        return found
    namespace, _, attribute = name.rpartition(":")
    return _stand_in(namespaces[namespace][0], attribute)


def projection(
    column: Column, grid: Iterable[Row] = GRID, namespaces: Namespaces = NAMESPACES
) -> dict[type[Any], Any]:
    """One column of the grid as a table of classes, source -> quantized.

    A source that does not exist has no row in the result; a cell that does not exist is a stand-in.

    >>> projection("qat", (Row("nn:Linear", qat="stubs:QuantStub"), Row("nn:GELU")))
    {<class 'torch.nn.modules.linear.Linear'>: <class 'quantization.stubs.QuantStub'>}
    """
    table: dict[type[Any], Any] = {}
    for row in grid:
        cell: str | None = getattr(row, column)
        source = find(row.source, namespaces)
        if cell is not None and source is not None:
            table[source] = class_at(cell_name(column, cell), namespaces)
    return table


def cell_name(column: Column, cell: str) -> str:
    """The full "namespace:Name" of a cell.

    >>> cell_name("static", "Linear")
    'quantized:Linear'
    """
    return cell if ":" in cell else f"{_HOME[column]}:{cell}"


def load(module: str) -> Any:
    """The module, or None if it does not exist; an error inside an existing module is not hidden.

    >>> load("torch.nn").__name__
    'torch.nn'
    >>> load("torch.no_such_module") is None
    True
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        return None


@functools.cache
def _stand_in(module: str, attribute: str) -> type[Unbuilt]:
    return type(attribute, (Unbuilt,), {"wanted": f"{module}.{attribute}", "__module__": module})
