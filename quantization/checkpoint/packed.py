"""Modules that keep weights in objects of an engine: which tensors those are, and how to pack them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantization.nn.modes.automatic_pack import AUTOMATIC_STATE, AutomaticPack
from quantization.nn.recurrent.packed import CellWeights, cell_params


@dataclass(frozen=True)
class Packing:
    """How modules of one kind keep their weights.

    `attributes` hold the engine's objects, the first of them always, but for an `AutomaticPack`;
    `read(module)` gives plain values and tensors, and `pack(module, values)` puts them into a module whose
    other attributes are set.
    """

    name: str
    attributes: tuple[str, ...]
    read: Callable[[Any], dict[str, Any]]
    pack: Callable[[Any, dict[str, Any]], None]


def packing_of(module: nn.Module) -> Packing | None:
    """The entry for a module, if it has packed weights."""
    if isinstance(module, AutomaticPack):
        return PACKINGS[0]
    held = vars(module)
    return next((p for p in PACKINGS if isinstance(held.get(p.attributes[0]), torch.ScriptObject)), None)


def packing_named(name: object) -> Packing | None:
    """The entry of that name, if there is one."""
    return next((packing for packing in PACKINGS if packing.name == name), None)


def _narrow(weight: Any) -> Any:
    """A weight packed as float16 unpacks as float32; its values fit the narrower type."""
    plain = isinstance(weight, Tensor) and not weight.is_quantized
    return weight.to(torch.float16) if plain else weight


def _wide(weight: Any) -> Any:
    plain = isinstance(weight, Tensor) and not weight.is_quantized
    return weight.to(torch.float32) if plain else weight


def _read_pair(module: Any) -> dict[str, Any]:
    weight, bias, *block = module._weight_bias()
    native = getattr(module, "_native", None) is not None
    return {"weight": _narrow(weight), "bias": bias, "block": block, "native": native}


def _pack_pair(module: Any, values: dict[str, Any]) -> None:
    weight, bias = _wide(values["weight"]), values["bias"]
    # Files of before there was a choice do not say which pack the layer used.
    if not (values.get("native", False) and module._pack_natively(weight, bias)):
        module.set_weight_bias(weight, bias, *values["block"])


def _read_rows(module: Any) -> dict[str, Any]:
    return {"weight": module._weight()}


def _pack_rows(module: Any, values: dict[str, Any]) -> None:
    module.set_weight(values["weight"])


def _read_cell(module: Any) -> dict[str, Any]:
    weights = module.cell_weights()
    return {
        **{name: _narrow(weight) for name, weight in weights.weights("").items()},
        **weights.biases(""),
    }


def _cell_weights(values: dict[str, Any]) -> CellWeights:
    weights = {name: _wide(values[name]) for name in values if name.startswith("weight_")}
    return CellWeights(bias_ih=values["bias_ih"], bias_hh=values["bias_hh"], **weights)


def _pack_cell(module: Any, values: dict[str, Any]) -> None:
    module._pack(_cell_weights(values))


def _read_record(module: Any) -> dict[str, Any]:
    return {**_read_cell(module), "reduce_range": module.param.__getstate__()[0][3] == [1]}


def _pack_record(module: Any, values: dict[str, Any]) -> None:
    reduce_range = values.pop("reduce_range")
    weights = _cell_weights(values)
    dtype = torch.qint8 if weights.weight_ih.is_quantized else torch.float16
    module.param = cell_params(weights, dtype, reduce_range)


PACKINGS: tuple[Packing, ...] = (
    Packing("weight and bias", ("_packed_params", *AUTOMATIC_STATE), _read_pair, _pack_pair),
    Packing("rows", ("_packed_weight",), _read_rows, _pack_rows),
    Packing("cell of a layer", ("param",), _read_record, _pack_record),
    Packing("cell", tuple(f"_packed_weight_{part}" for part in ("ih", "hh", "hr")), _read_cell, _pack_cell),
)
