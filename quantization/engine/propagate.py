"""Give each module the qconfig that applies to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from quantization.engine.tree import Site, restoring, walk
from quantization.errors import InvalidRequest, at
from quantization.qconfig import assert_valid_qconfig, bind_to_device

Key = type | Callable[..., Any] | str


def propagate_qconfig_(
    module: nn.Module,
    qconfig_dict: Mapping[Any, Any] | None = None,
    prepare_custom_config_dict: Mapping[str, Any] | None = None,
) -> None:
    """Set `.qconfig` on every module below `module`, in place.

    The most specific source wins: the parent's qconfig, then `qconfig_dict[type]`, then `qconfig_dict[name]`
    (dotted, from `module`), then a `.qconfig` that the module already carries. Factories are bound to the
    device the module is on.

    Args:
        qconfig_dict: from module types and dotted names to a `QConfig` or None.
        prepare_custom_config_dict: `non_traceable_module_name` and `non_traceable_module_class` list what is
            left alone.

    Raises:
        InvalidRequest: a qconfig that the module cannot use; every module is then as before.
    """
    table = dict(qconfig_dict or {})
    custom = prepare_custom_config_dict or {}
    names = custom.get("non_traceable_module_name", ())
    types = custom.get("non_traceable_module_class", ())

    def visit(site: Site, inherited: Any) -> None:
        module: Any = site.module
        qconfig = table.get(site.path, table.get(site.type, inherited))
        qconfig = getattr(module, "qconfig", qconfig)
        with at(site.path, "setting the qconfig of"):
            _check(qconfig)
            assert_valid_qconfig(qconfig, module)
            module.qconfig = bind_to_device(qconfig, module)
        for name, child in site.children():
            if child.path not in names and name not in names and type(child.module) not in types:
                visit(child, module.qconfig)

    with restoring(module):
        visit(Site(module, ""), None)


def _check(qconfig: Any) -> None:
    if qconfig is None or (hasattr(qconfig, "activation") and hasattr(qconfig, "weight")):
        return
    raise InvalidRequest(
        f"expected a QConfig or None, got {qconfig!r}; "
        "build one with QConfig(activation=..., weight=...) or get_default_qconfig()"
    )


def unmatched(model: nn.Module, keys: Mapping[Any, Any] | set[Any]) -> list[Any]:
    """Those keys (types and dotted names) that no module of `model` answers to."""
    present: set[Any] = {site.type for site in walk(model)}
    present |= {site.path for site in walk(model, every_name=True)}
    return [key for key in keys if key not in present]
