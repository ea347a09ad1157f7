"""Small functions on module paths and dictionaries that torch.ao had and programs call by their old names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from quantization.engine.observe import is_observed
from quantization.engine.tree import Site, walk
from quantization.errors import InvalidRequest
from quantization.quant_type import get_quant_type


def get_combined_dict(default_dict: Mapping[Any, Any], additional_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries of both, the second one's where a key is in both.

    >>> get_combined_dict({"a": 1, "b": 2}, {"b": 3})
    {'a': 1, 'b': 3}
    """
    return {**default_dict, **additional_dict}


def getattr_from_fqn(obj: Any, fqn: str) -> Any:
    """What a dotted name leads to, attribute by attribute.

    >>> getattr_from_fqn(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0")
    ReLU()
    """
    for name in fqn.split("."):
        obj = getattr(obj, name)
    return obj


def parent_name(target: str) -> tuple[str, str]:
    """A dotted name without its last part, and that part.

    >>> parent_name("layer1.0.conv")
    ('layer1.0', 'conv')
    """
    parent, _, name = target.rpartition(".")
    return parent, name


def path_of_module(root: nn.Module, submodule: nn.Module) -> str | None:
    """The dotted name of a module in `root`, or None.

    >>> relu = nn.ReLU()
    >>> path_of_module(nn.Sequential(nn.Sequential(relu)), relu)
    '0.0'
    """
    return next((site.path for site in walk(root) if site.module is submodule), None)


def get_fqn_to_example_inputs(
    model: nn.Module, example_inputs: tuple[Any, ...]
) -> dict[str, tuple[Any, ...]]:
    """The positional arguments that each submodule gets when `model(*example_inputs)` runs.

    >>> seen = get_fqn_to_example_inputs(nn.Sequential(nn.Linear(2, 3)), (torch.ones(1, 2),))
    >>> {name: inputs[0].shape for name, inputs in seen.items()}
    {'': torch.Size([1, 2]), '0': torch.Size([1, 2])}
    """
    seen: dict[str, tuple[Any, ...]] = {}

    def recorder(path: str) -> Any:
        def record(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen[path] = inputs

        return record

    handles = [site.module.register_forward_pre_hook(recorder(site.path)) for site in walk(model)]
    try:
        model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def get_swapped_custom_module_class(
    custom_module: nn.Module, custom_module_class_mapping: Mapping[Any, Any], qconfig: Any
) -> Any:
    """The class that a custom module becomes, from a table by `QuantType` and then by type."""
    table = custom_module_class_mapping.get(get_quant_type(qconfig), {})
    if type(custom_module) not in table:
        raise InvalidRequest(
            f"did not find corresponding observed module class for {type(custom_module)} in mapping: {table}"
        )
    return table[type(custom_module)]


def observers_by_name(mod: nn.Module, target_dict: dict[str, Any], prefix: str = "") -> None:
    """Put every observer of an output into `target_dict`, under the dotted name it has in `mod`."""
    start = prefix + "." if prefix else ""
    for path, module in mod.named_modules():
        if is_observed(module):
            name = ".".join(part for part in (path, "activation_post_process") if part)
            target_dict[start + name] = Site(module, path).module.activation_post_process
