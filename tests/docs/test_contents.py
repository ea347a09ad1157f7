"""What the documentation promises about the code: names, tests, files and the API reference."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import ROOT

DOCS = ROOT / "docs"
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
NEW_NAME = re.compile(r"^\| `torch\..*\| `([\w.]+)`(?:,.*)? \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
# Where the public names are: a package's facade, or a module that lists them in `__all__`.
PUBLIC = (
    "quantization",
    "observers",
    "quantization.nn.quantized",
    "quantization.nn.dynamic",
    "quantization.nn.qat",
    "quantization.nn.qat_dynamic",
    "quantization.nn.reference",
    "quantization.nn.fused",
    "quantization.nn.functional_modules",
    "quantization.nn.functional",
    "quantization.torchscript",
)


def _find(path: str) -> Any:
    """The object at a dotted path."""
    head, _, name = path.rpartition(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(head), name)


def _public(module: str) -> dict[str, Any]:
    """What a module offers: its `__all__`, or what it defines and what it re-exports as `X as X`."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or [*_defined(loaded), *_reexported(loaded)]
    found = {name: getattr(loaded, name) for name in names if not name.startswith("_")}
    return {name: thing for name, thing in found.items() if not _is_module(thing)}


def _statements(module: Any) -> list[ast.stmt]:
    return ast.parse(Path(module.__file__).read_text()).body


def _defined(module: Any) -> Iterator[str]:
    for node in _statements(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _reexported(module: Any) -> Iterator[str]:
    for node in _statements(module):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.asname == alias.name)


def _is_module(thing: Any) -> bool:
    return type(thing).__name__ == "module"


def _entries() -> list[str]:
    return [
        entry for page in sorted((DOCS / "api").glob("*.md")) for entry in ENTRY.findall(page.read_text())
    ]


def _documented() -> Iterator[int]:
    """The identity of each object that has an entry, or whose module has one; re-exports are not rendered."""
    for entry in _entries():
        thing = _find(entry)
        if _is_module(thing):
            names = getattr(thing, "__all__", None) or list(_defined(thing))
            yield from (id(getattr(thing, name)) for name in names)
        yield id(thing)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_an_entry(module: str) -> None:
    documented = set(_documented())
    assert [name for name, thing in _public(module).items() if id(thing) not in documented] == []


def test_every_entry_exists_once() -> None:
    entries = _entries()
    assert len(entries) == len(set(entries))
    assert [entry for entry in entries if _find(entry) is None] == []


@pytest.mark.parametrize("page", ["README.md", "docs/guide/migrating.md"])
def test_every_new_name_can_be_imported(page: str) -> None:
    names = NEW_NAME.findall((ROOT / page).read_text())
    assert len(names) > 8
    for name in names:
        assert _find(name) is not None


def test_every_difference_from_torch_ao_names_a_test() -> None:
    lines = (DOCS / "parity.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| torch.ao 2.13 ")]
    assert rows
    named = [TEST.findall(row) for row in rows]
    assert [row for row, tests in zip(rows, named, strict=True) if not tests] == []
    for file, test in (pair for tests in named for pair in tests):
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_every_file_in_the_design_exists() -> None:
    tree = re.search(r"```text\n(setup\.py .*?)```", (DOCS / "design.md").read_text(), re.DOTALL)
    assert tree is not None
    missing, folders = [], {0: ROOT}
    for line in filter(None, tree[1].splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.split("  ")[depth:][0].split()
        for name in names:
            path = folders[depth] / name
            folders[depth + 1] = path
            missing += [] if path.exists() else [str(path.relative_to(ROOT))]
    assert missing == []
