"""Which classes a file may name: those of this library's tables, and torch's layers inside a composite."""

from __future__ import annotations

from typing import Any

from torch import nn

from mappings.fusion import FUSIONS
from mappings.resolve import NAMESPACES, find
from quantization.nn.functional_modules import FloatFunctional, FXFloatFunctional

# In the order in which a class is looked up when its name is written.
_QUANTIZED = ("quantized", "dynamic", "reference", "functional", "sparse", "sparse_dynamic", "recurrent")
NAMED = {
    **{name: NAMESPACES[name] for name in (*_QUANTIZED[:-1], "quantizable", "nn")},
    "recurrent": ("quantization.nn.recurrent", "quantization.nn.recurrent.cells"),
}
# Float classes that the namespaces above may also name.
_FLOAT = (FloatFunctional, FXFloatFunctional)
_FLOAT_HOMES = (
    "quantization.stubs",
    "quantization.nn.fused",
    "quantization.nn.qat",
    "quantization.nn.qat_dynamic",
)


def name_of(module: nn.Module) -> str | None:
    """The name of the module's class in a file; None if no table has exactly that class."""
    kind = type(module)
    for namespace in (*_QUANTIZED, "quantizable", "nn"):
        name = f"{namespace}:{kind.__name__}"
        if find(name, NAMED) is kind:
            return name
    return None


def class_of(name: Any) -> type[nn.Module] | None:
    """The class of that name; None if no table has it, or it is no module."""
    namespace, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
    found = find(name, NAMED) if namespace in NAMED and attribute.isidentifier() else None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def is_quantized(module: nn.Module) -> bool:
    """Whether the module is what `convert` or `quantize_dynamic` makes, and not a part of torch."""
    kind = type(module)
    if kind in _FLOAT or kind.__module__ in _FLOAT_HOMES or kind.__module__.startswith("torch."):
        return False
    name = name_of(module)
    return name is not None and name.partition(":")[0] in _QUANTIZED


def head_of(type_name: str) -> str:
    """The first layer of a fused type, by name; any other type is its own.

    >>> head_of("ConvBnReLU2d"), head_of("Linear")
    ('Conv2d', 'Linear')
    """
    return _HEADS.get(type_name, type_name)


def _bare(name: str) -> str:
    return name.partition(":")[2]


_HEADS = {
    _bare(fused): _bare(fusion.pattern[0])
    for fusion in FUSIONS
    for fused in (fusion.training, fusion.eval)
    if fused is not None
}
# What fusing leaves an Identity in the place of.
TAILS = {_bare(part) for fusion in FUSIONS for part in fusion.pattern[1:]} | {"Identity", "SyncBatchNorm"}
