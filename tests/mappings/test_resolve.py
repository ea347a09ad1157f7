"""Names resolve to classes; what is not built yet is named when it is used, and never hidden."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
from torch import nn

from mappings import fusion, observation, recipes
from mappings.modules import EMBEDDING, GRID, SPARSE, Row
from mappings.resolve import NAMESPACES, UnbuiltCell, cell_name, class_at, find, projection

ROWS = (*GRID, *EMBEDDING)
CELLS = sorted(
    {
        cell_name(column, getattr(row, column))
        for row in ROWS
        for column in ("static", "dynamic", "qat", "reference")
        if getattr(row, column) is not None
    }
    | {name for row in observation.CUSTOM for name in (row.observed, row.quantized)}
    | {name for row in fusion.FUSIONS for name in (row.training, row.eval) if name}
)
EMPTY = {**NAMESPACES, "quantized": ("quantization.nn.no_such_backend",)}


@pytest.mark.parametrize("name", sorted({row.source for row in ROWS}))
def test_every_source_exists(name: str) -> None:
    assert isinstance(find(name), type)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_built(name: str) -> None:
    found = find(name)
    assert isinstance(found, type)
    assert found.__name__ == name.rpartition(":")[2]


@pytest.mark.parametrize(
    "name", sorted({name for recipe in recipes.DYNAMIC.values() for name in recipe.types})
)
def test_every_type_of_a_recipe_exists(name: str) -> None:
    assert issubclass(find(name), nn.Module)


def test_a_linear_that_torch_hides_is_found() -> None:
    assert find("nn:NonDynamicallyQuantizableLinear").__name__ == "NonDynamicallyQuantizableLinear"


def test_a_projection_maps_classes() -> None:
    table = projection("qat", (Row("nn:Linear", qat="nn:Identity"), Row("nn:ReLU")))
    assert table == {nn.Linear: nn.Identity}


def test_a_source_that_does_not_exist_has_no_entry() -> None:
    assert projection("static", (Row("nn:NoSuchLayer", static="nn:Identity"),)) == {}


def test_a_cell_that_does_not_exist_has_a_stand_in() -> None:
    table = projection("static", GRID, EMPTY)
    assert len(table) == 49
    assert table[nn.Linear].__name__ == "Linear"
    assert table[nn.Linear] is class_at("quantized:Linear", EMPTY)


@pytest.mark.parametrize("method", ["from_float", "from_observed", "from_reference"])
def test_using_a_stand_in_names_the_source_and_the_class(method: str) -> None:
    stand_in = class_at("quantized:Linear", EMPTY)
    expected = (
        r"torch\.nn\.modules\.linear\.Linear would become quantization\.nn\.no_such_backend\.Linear, "
        r"which is not built yet; .*qconfig to None"
    )
    with pytest.raises(UnbuiltCell, match=expected):
        getattr(stand_in, method)(nn.Linear(1, 1))
    with pytest.raises(NotImplementedError, match="not built yet"):
        stand_in(1, 1)


def test_a_stand_in_survives_copies_of_the_table() -> None:
    table = projection("static", GRID, EMPTY)
    assert copy.deepcopy(table) == table


def test_an_unknown_namespace_is_a_mistake_in_the_tables() -> None:
    with pytest.raises(KeyError, match="no namespace 'bogus'"):
        find("bogus:Linear")


def test_an_error_inside_a_namespace_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_namespace.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_namespace", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        find("broken:Linear", {"broken": ("broken_namespace",)})


@pytest.mark.parametrize("row", SPARSE)
def test_sparse_cells_resolve_to_something(row: Row) -> None:
    for column in ("static", "dynamic"):
        assert projection(column, (row,))[nn.Linear].__name__ == "Linear"
