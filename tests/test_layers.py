"""The house keeps its layers: who may import whom, and which file may name which corner of torch.

The rules are read off the syntax tree, so nothing is imported and a rule cannot be dodged by not running the
line. The second half feeds the checker snippets that break each rule: a check that cannot fail is none.
"""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator

import pytest

from tests.house import MODULES, PACKAGES

QCONFIG = ("qconfig", "qconfig_binding", "qconfig_engines", "qconfig_mapping")
BASE = ("errors", *QCONFIG, "quant_type", "qparams", "markers", "stubs")
ROOMS = ("engine", "backends", "nn", "workflows", "torchscript", "compat")  # other modules are tools

# Which rooms a room may import from, besides itself. Read from below: strictly downward.
MAY_IMPORT: dict[str, set[str]] = {
    "eagerquant_native": set(),
    "observers": {"eagerquant_native"},
    "mappings": set(),
    "base": {"observers", "mappings", "eagerquant_native"},
    "engine": {"observers", "base"},
    "backends": {"observers", "base", "eagerquant_native"},
    "nn": {"observers", "base", "engine", "backends"},
    "workflows": {"observers", "mappings", "base", "engine", "backends", "nn"},
    "torchscript": {"observers", "base"},
    "tools": {"observers", "mappings", "base", "engine", "backends", "nn", "workflows", "torchscript"},
}
MAY_IMPORT["facade"] = MAY_IMPORT["tools"] | {"tools"}
MAY_IMPORT["compat"] = MAY_IMPORT["facade"] | {"facade"}

# Installed packages a room may use; the standard library is free to all.
MAY_USE = {"mappings": set[str](), "observers": {"torch"}, "eagerquant_native": {"torch"}}
MAY_USE_BY_DEFAULT = {"torch", "numpy", "typing_extensions"}

RETIRED = re.compile(r"torch\.(ao|quantization|nn\.(quantized|intrinsic|qat|quantizable))(\.[\w.]+)?")
OPS = re.compile(r"torch\.ops(\.(quantized|onednn)\b.*)?")
PASSES = re.compile(r"torch\._C(\._jit_pass_.*)?")


def room_of(module: str) -> str:
    """The room a dotted module name belongs to."""
    head, _, rest = module.partition(".")
    if head != "quantization":
        return head
    name = rest.partition(".")[0]
    if not name:
        return "facade"
    return "base" if name in BASE else name if name in ROOMS else "tools"


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[ast.stmt, str, str]]:
    """Each imported thing: the statement, the name it binds, and the full dotted path it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            source = ".".join([*(above if node.level else []), *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, alias.asname or alias.name, f"{source}.{alias.name}"


def dotted(node: ast.AST, bound: dict[str, str]) -> str | None:
    """The path an attribute chain stands for, with imported names spelled out; None for anything else."""
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute):
        base = dotted(node.value, bound)
        return f"{base}.{node.attr}" if base else None
    return None


def paths(tree: ast.AST, bound: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Every outermost attribute chain that starts at an imported name."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            path = dotted(node, bound)
            if path:
                yield node.lineno, path


def owner(path: str, modules: set[str]) -> str:
    """The module of ours that an import path leads to: itself, or the one it is a name of."""
    while path not in modules and "." in path:
        path = path.rpartition(".")[0]
    return path


def breaches(module: str, source: str, modules: set[str], is_package: bool = False) -> list[str]:
    """Every broken rule in one source text, as 'line: what'."""
    tree = ast.parse(source)
    found = list(imports(tree, module, is_package))
    # `import torch.nn` binds `torch`; with an alias the alias is the whole path.
    bound = {name: path if name != path.partition(".")[0] else name for _, name, path in found}
    complaints = [
        *_placement(tree, found),
        *_direction(module, found, modules),
        *_dynamic(module, tree, bound),
        *_retired(module, tree, found, bound),
        *_reserved(module, tree, found, bound),
    ]
    return sorted(set(complaints))


def _placement(tree: ast.Module, found: list[tuple[ast.stmt, str, str]]) -> Iterator[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    hidden = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node, _, path in found:
        if id(node) in hidden:
            yield f"{node.lineno}: import of {path} inside a function"


def _direction(module: str, found: list[tuple[ast.stmt, str, str]], modules: set[str]) -> Iterator[str]:
    room = room_of(module)
    usable = MAY_USE.get(room, MAY_USE_BY_DEFAULT)
    for node, _, path in found:
        head = path.partition(".")[0]
        if head in PACKAGES:
            other = room_of(owner(path, modules))
            if other != room and other not in MAY_IMPORT[room]:
                yield f"{node.lineno}: {room} imports {path}, which lives in {other}"
        elif head not in sys.stdlib_module_names and head not in usable:
            yield f"{node.lineno}: {room} imports {head}, which it may not use"


def _dynamic(module: str, tree: ast.AST, bound: dict[str, str]) -> Iterator[str]:
    if module == "mappings.resolve":
        return
    for line, path in paths(tree, bound):
        if path in ("importlib.import_module", "importlib.__import__"):
            yield f"{line}: import_module outside mappings/resolve.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "__import__":
            yield f"{node.lineno}: __import__"


def _retired(
    module: str, tree: ast.AST, found: list[tuple[ast.stmt, str, str]], bound: dict[str, str]
) -> Iterator[str]:
    for node, _, path in found:
        if RETIRED.fullmatch(path):
            yield f"{node.lineno}: imports {path}, which is going away"
    if module == "quantization.compat" or module.startswith("quantization.compat."):
        return  # it hangs our modules under the old names, so it has to spell them
    for line, path in paths(tree, bound):
        if RETIRED.fullmatch(path):
            yield f"{line}: names {path}, which is going away"
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and RETIRED.fullmatch(node.value):
            yield f"{node.lineno}: names '{node.value}', which is going away"


def _reserved(
    module: str, tree: ast.AST, found: list[tuple[ast.stmt, str, str]], bound: dict[str, str]
) -> Iterator[str]:
    named = [(node.lineno, path) for node, _, path in found] + list(paths(tree, bound))
    for line, path in named:
        if OPS.fullmatch(path) and room_of(module) != "backends":
            yield f"{line}: {path} outside quantization/backends"
        if PASSES.fullmatch(path) and module != "quantization.torchscript.passes":
            yield f"{line}: {path} outside quantization/torchscript/passes.py"


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_the_layers(module: str) -> None:
    path = MODULES[module]
    assert breaches(module, path.read_text(), set(MODULES), path.name == "__init__.py") == []


def test_imports_between_modules_have_no_cycle() -> None:
    graph = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text())
        reached = {owner(p, set(MODULES)) for _, _, p in imports(tree, module, path.name == "__init__.py")}
        graph[module] = reached & set(MODULES) - {module}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the cycle
    assert set(order) == set(MODULES)


def test_every_package_has_files() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(PACKAGES)


# --- the checker itself ---

KNOWN = {
    "observers",
    "observers.base",
    "mappings",
    "mappings.resolve",
    "quantization",
    "quantization.errors",
    "quantization.qconfig",
    "quantization.engine",
    "quantization.engine.tree",
    "quantization.backends.ops",
    "quantization.nn",
    "quantization.nn.quantized",
    "quantization.workflows.ptq",
    "quantization.summary",
}

BAD = {
    "observers know no quantization": ("observers.base", "from quantization.errors import at"),
    "observers know no mappings": ("observers.base", "import mappings"),
    "mappings know no torch": ("mappings.modules", "import torch"),
    "mappings know no observers": ("mappings.modules", "from observers import base"),
    "base knows no engine": ("quantization.qconfig", "from quantization.engine.tree import walk"),
    "engine knows no tables": ("quantization.engine.swap", "from mappings.resolve import projection"),
    "engine knows no layers": ("quantization.engine.swap", "from quantization.nn import quantized"),
    "engine knows no backend": ("quantization.engine.swap", "import quantization.backends.ops"),
    "relative import upward": ("quantization.engine.swap", "from ..nn import quantized"),
    "relative import of the facade": ("quantization.qconfig", "from . import prepare"),
    "nn knows no workflow": ("quantization.nn.quantized", "from quantization.workflows import ptq"),
    "nn knows no tool": ("quantization.nn.quantized", "from quantization.summary import summary"),
    "workflows know no facade": ("quantization.workflows.ptq", "from quantization import prepare"),
    "workflows know no facade, plain": ("quantization.workflows.ptq", "import quantization"),
    "torchscript knows no nn": ("quantization.torchscript.graph", "from quantization.nn import quantized"),
    "typing is no excuse": (
        "quantization.qconfig",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from quantization.nn import quantized",
    ),
    "undeclared dependency": ("quantization.summary", "import pandas"),
    "in a function": ("quantization.workflows.ptq", "def f():\n    import os"),
    "in a method": (
        "quantization.workflows.ptq",
        "class A:\n    async def f(self):\n        from quantization.nn import quantized",
    ),
    "dynamic": ("quantization.workflows.ptq", "import importlib\nimportlib.import_module('os')"),
    "dynamic by name": ("quantization.nn.quantized", "from importlib import import_module as im\nim('os')"),
    "dynamic builtin": ("quantization.nn.quantized", "__import__('os')"),
    "torch.ao": ("quantization.qconfig", "import torch.ao"),
    "torch.ao from": ("quantization.qconfig", "from torch import ao"),
    "torch.ao deep": ("quantization.qconfig", "from torch.ao.quantization import QConfig"),
    "torch.ao renamed": ("quantization.qconfig", "import torch.ao.nn.quantized as nnq"),
    "torch.ao attribute": ("quantization.qconfig", "import torch\nx = torch.ao.quantization.QConfig"),
    "torch.ao by string": ("mappings.resolve", "PREFIX = {'nni': 'torch.ao.nn.intrinsic'}"),
    "torch.quantization": ("observers.base", "import torch.quantization as tq"),
    "nn.quantized": ("observers.base", "from torch import nn\nx = nn.quantized.Linear"),
    "nn.intrinsic": ("observers.base", "from torch.nn import intrinsic"),
    "nn.qat": ("observers.base", "import torch.nn as nn\nx = nn.qat"),
    "nn.quantizable": ("observers.base", "import torch\nx = torch.nn.quantizable.LSTM"),
    "torch.ao even in compat": ("quantization.compat", "import torch.ao.quantization"),
    "ops": ("quantization.nn.quantized", "import torch\ny = torch.ops.quantized.linear(1)"),
    "ops from": ("quantization.nn.quantized", "from torch import ops\ny = ops.onednn.qlinear"),
    "ops import": ("quantization.nn.quantized", "from torch.ops import quantized"),
    "ops aliased": ("quantization.nn.quantized", "import torch\nq = torch.ops\n"),
    "ops by getattr": ("quantization.engine.swap", "import torch\ny = getattr(torch.ops, 'quantized')"),
    "pass": ("quantization.torchscript.graph", "import torch\ntorch._C._jit_pass_inline(g)"),
    "pass from": ("quantization.torchscript.graph", "from torch._C import _jit_pass_inline"),
    "pass aliased": ("quantization.torchscript.graph", "from torch import _C\n_C._jit_pass_inline(g)"),
    "_C by getattr": ("quantization.torchscript.graph", "import torch\ngetattr(torch._C, 'x')"),
}

GOOD = {
    "observers use torch": ("observers.base", "import math\nimport torch\nfrom observers.errors import E"),
    "mappings use the library": ("mappings.resolve", "from importlib import import_module as i\ni(1)"),
    "base on base": ("quantization.qconfig", "from quantization.errors import at"),
    "nn on engine": ("quantization.nn.quantized", "from quantization.engine import tree"),
    "backends name ops": ("quantization.backends.ops", "import torch\ny = torch.ops.quantized.linear"),
    "other torch.ops": ("quantization.nn.quantized", "import torch\ny = torch.ops.aten.linear"),
    "passes name passes": ("quantization.torchscript.passes", "import torch\ntorch._C._jit_pass_inline(g)"),
    "other torch._C": ("quantization.qconfig", "import torch\nx = torch._C._something()"),
    "our own names": ("quantization.workflows.ptq", "from quantization import nn\nx = nn.quantized.Linear"),
    "facade": ("quantization", "from quantization.summary import summary as summary"),
    "tools": ("quantization.summary", "from quantization.workflows import ptq\nfrom mappings import resolve"),
    "compat spells old names": ("quantization.compat", "import quantization\nOLD = 'torch.ao.quantization'"),
    "prose": ("quantization.qconfig", "'''As torch.ao.quantization does.'''"),
}


@pytest.mark.parametrize("case", BAD)
def test_checker_sees(case: str) -> None:
    module, source = BAD[case]
    assert breaches(module, source, KNOWN | {module}), f"{source!r} in {module} went unnoticed"


@pytest.mark.parametrize("case", GOOD)
def test_checker_lets_pass(case: str) -> None:
    module, source = GOOD[case]
    assert breaches(module, source, KNOWN | {module}) == []
