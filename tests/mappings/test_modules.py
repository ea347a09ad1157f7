"""The grid against torch.ao's tables, by name: no class of ours needs to exist for these to hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mappings.modules import EMBEDDING, GRID, SPARSE, Row
from mappings.resolve import Column, cell_name

COLUMNS: tuple[Column, ...] = ("static", "dynamic", "qat", "reference")
SIZES = {"static": 49, "dynamic": 11, "qat": 14, "reference": 15}

# Where torch.ao keeps a class -> the namespace we keep its counterpart in; the longest prefix decides.
HOMES = {
    "torch.nn": "nn",
    "torch.ao.quantization.stubs": "stubs",
    "torch.ao.nn.intrinsic": "fused",
    "torch.ao.nn.intrinsic.qat": "qat",
    "torch.ao.nn.intrinsic.quantized": "quantized",
    "torch.ao.nn.intrinsic.quantized.dynamic": "dynamic",
    "torch.ao.nn.qat": "qat",
    "torch.ao.nn.qat.dynamic": "qat_dynamic",
    "torch.ao.nn.quantized": "quantized",
    "torch.ao.nn.quantized.dynamic": "dynamic",
    "torch.ao.nn.quantized.reference": "reference",
    "torch.ao.nn.quantized.modules.functional_modules": "functional",
    "torch.ao.nn.quantizable": "quantizable",
    "torch.ao.nn.sparse.quantized": "sparse",
    "torch.ao.nn.sparse.quantized.dynamic": "sparse_dynamic",
}


def our_name(cls: Any) -> str:
    """The name the mappings use for a class of torch.ao."""
    home = max((prefix for prefix in HOMES if f"{cls.__module__}.".startswith(f"{prefix}.")), key=len)
    return f"{HOMES[home]}:{cls.__name__}"


def named(table: dict[Any, Any]) -> dict[str, str]:
    return {our_name(source): our_name(target) for source, target in table.items()}


def column(which: Column, grid: Iterable[Row] = GRID) -> dict[str, str]:
    cells = ((row.source, getattr(row, which)) for row in grid)
    return {source: cell_name(which, cell) for source, cell in cells if cell is not None}


@pytest.mark.parametrize("which", COLUMNS)
def test_each_column_is_the_table_of_torch_ao(which: Column) -> None:
    tables = pytest.importorskip("torch.ao.quantization.quantization_mappings")
    title = {"static": "STATIC_", "dynamic": "DYNAMIC_", "qat": "QAT_", "reference": "REFERENCE_STATIC_"}[
        which
    ]
    quant = "" if which == "qat" else "QUANT_"
    assert column(which) == named(getattr(tables, f"DEFAULT_{title}{quant}MODULE_MAPPINGS"))


def test_the_embedding_variants_are_those_of_torch_ao() -> None:
    tables = pytest.importorskip("torch.ao.quantization.quantization_mappings")
    static = column("static") | column("static", EMBEDDING)
    assert static == named(tables.get_embedding_static_quant_module_mappings())
    qat = column("qat") | column("qat", EMBEDDING)
    assert qat == named(tables.get_embedding_qat_module_mappings())


def test_the_sparse_variants_are_those_of_torch_ao() -> None:
    tables = pytest.importorskip("torch.ao.quantization.quantization_mappings")
    assert column("static", SPARSE) == named(tables.DEFAULT_STATIC_SPARSE_QUANT_MODULE_MAPPINGS)
    assert column("dynamic", SPARSE) == named(tables.DEFAULT_DYNAMIC_SPARSE_QUANT_MODULE_MAPPINGS)


@pytest.mark.parametrize("which", COLUMNS)
def test_each_column_has_its_size(which: Column) -> None:
    assert len(column(which)) == SIZES[which]


def test_no_source_has_two_rows() -> None:
    sources = [row.source for row in GRID]
    assert len(sources) == len(set(sources))


def test_every_row_leads_somewhere() -> None:
    empty = [row.source for row in (*GRID, *EMBEDDING, *SPARSE) if not any(getattr(row, c) for c in COLUMNS)]
    assert empty == []


def test_whatever_is_trained_can_be_converted() -> None:
    """A QAT cell of the grid is the source of a static row, or training would lead nowhere."""
    static = column("static")
    assert [cell for cell in column("qat").values() if cell not in static] == []
