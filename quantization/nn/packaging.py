"""torch.package takes this library's code as external, as it takes torch's own, without being told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_OURS = ("quantization.**", "observers.**", "mappings.**")


def _reduce_package(part: Any, exporter: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    exporter.extern(_OURS)
    make, arguments, state = part.__reduce_ex__(2)[:3]
    return _rebuild, (make, arguments, state)


def _rebuild(importer: Any, make: Callable[..., Any], arguments: tuple[Any, ...], state: Any) -> Any:
    """What unpickling does, called by the importer of the package."""
    part = make(*arguments)
    part.__setstate__(state)
    return part


class _OnInstances:
    """A method that the class itself lacks: the exporter looks for it on classes it meets as well."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is None:
            raise AttributeError(f"only instances of {owner.__name__} have this method")
        return self._method.__get__(instance, owner)


class ExternalCode:
    """Base of the parts that hold packed weights, one of which is in almost every converted model.

    Saved by `torch.package.PackageExporter`, such a part declares this library external code: the package
    holds the object, and the library is imported where it is loaded. Patterns that the exporter was given
    before that, such as `exporter.intern("quantization.**")`, win.
    """

    __reduce_package__ = _OnInstances(_reduce_package)
