"""Every name of torch.ao is served by our code under the alias; torch.ao itself lists the names."""

from __future__ import annotations

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

import pytest

from mappings.resolve import load
from quantization.compat import alias_torch_ao
from quantization.compat.names import LEGACY, SOURCES
from tests.support import quiet_ao

pytest.importorskip("torch.ao.quantization")

FX = "patterns over FX graphs, which eager mode has not"
# "module:name" or a name in any module, and why our code does not serve it.
NOT_OURS = {
    "torch.ao.quantization:Pattern": "torch.ao lists it in __all__ and does not have it either",
    "torch.ao.quantization.utils:Pattern": FX,
    "torch.ao.quantization.utils:NodePattern": FX,
    "torch.ao.quantization.utils:check_node": FX,
    "torch.ao.quantization.utils:func_list": FX,
    "torch.ao.quantization.utils:method_list": FX,
    "torch.ao.quantization.utils:module_type_list": FX,
    "torch.ao.quantization.quantize:_propagate_qconfig_helper": "one step of a recursion that we have not",
    "torch.ao.ns._numeric_suite:_get_logger_dict_helper": "one step of a recursion that we have not",
    "torch.ao.nn.intrinsic.qat.modules.conv_fused:_BN_CLASS_MAP": "a table of torch's own batch norms",
}
OURS = ("observers", "mappings", "quantization")


def names_of(module: ModuleType) -> set[str]:
    """Public names, and those that the module defines or lists."""
    found = set(getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None)
        made_there = (inspect.isfunction(value) or inspect.isclass(value)) and isinstance(home, str)
        if not name.startswith("__") and made_there and home.startswith("torch.ao"):
            found.add(name)
    return found


def built(module: str) -> bool:
    return not SOURCES[module] or any(load(source) is not None for source in SOURCES[module][:1])


with quiet_ao():
    THEIRS = {name: importlib.import_module(name) for name in SOURCES}
NAMES = {module: sorted(names_of(theirs)) for module, theirs in THEIRS.items()}


def served_by_torch_ao(module: str) -> list[str]:
    """The names under the alias that are missing or still torch.ao's objects."""
    alias, theirs = sys.modules[module], THEIRS[module]
    left: list[str] = []
    for name in NAMES[module]:
        value: Any = getattr(alias, name, None)
        home = str(getattr(value, "__module__", "") or "")
        same = value is getattr(theirs, name, None) and home.startswith("torch.ao")
        if value is None or (same and not isinstance(value, ModuleType)):
            left.append(name)
    return [name for name in left if f"{module}:{name}" not in NOT_OURS]


@pytest.mark.parametrize("module", [module for module in SOURCES if built(module)])
def test_every_name_is_served_by_our_code(module: str) -> None:
    with alias_torch_ao():
        assert served_by_torch_ao(module) == []


@pytest.mark.parametrize("entry", NOT_OURS)
def test_every_exception_is_one(entry: str) -> None:
    module, _, name = entry.partition(":")
    theirs = getattr(THEIRS[module], name, None)
    with alias_torch_ao():
        assert getattr(sys.modules[module], name, None) is theirs


def test_functions_and_classes_are_defined_by_us() -> None:
    """Spot checks that do not rest on what torch.ao lists."""
    with alias_torch_ao():
        for module, name in (
            ("torch.ao.quantization.quantize", "_remove_qconfig"),
            ("torch.ao.nn.intrinsic", "_FusedModule"),
            ("torch.ao.quantization.utils", "get_combined_dict"),
            ("torch.ao.quantization", "get_default_qconfig_dict"),
            ("torch.ao.nn.quantized.modules.utils", "_quantize_weight"),
            ("torch.quantization.fuse_modules", "fuse_known_modules"),
        ):
            assert getattr(sys.modules[module], name).__module__.startswith(OURS)


@pytest.mark.parametrize("legacy", LEGACY)
def test_older_names_lead_to_the_same_modules(legacy: str) -> None:
    with alias_torch_ao():
        assert sys.modules[legacy] is sys.modules[LEGACY[legacy]]


@pytest.mark.parametrize("module", ["torch.ao.quantization", "torch.nn.quantized", "torch.nn.intrinsic"])
def test_import_star_takes_our_names(module: str) -> None:
    with alias_torch_ao():
        taken: dict[str, Any] = {}
        exec(f"from {module} import *", taken)
    functions = [v for k, v in taken.items() if not k.startswith("_") and hasattr(v, "__module__")]
    assert len(functions) > 10
    assert all(not str(v.__module__).startswith("torch.ao") for v in functions)
