"""What the composites are made of, and how the engine prepares and converts such parts.

A composite's parts are few and known here, so `from_float` and `from_observed` need no default table: called
by hand they give what `prepare` and `convert` give. Called by these, they find nothing left to do or leave
nothing to do, because the engine passes over what is observed or converted already.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from observers import (
    FakeQuantizeBase,
    default_fixed_qparams_range_0to1_fake_quant,
    default_fixed_qparams_range_neg1to1_fake_quant,
)
from quantization.engine.observe import Plan, attach
from quantization.engine.propagate import propagate_qconfig_
from quantization.engine.swap import swap_module
from quantization.engine.tree import rewrite
from quantization.errors import InvalidRequest
from quantization.nn import qat
from quantization.stubs import QuantStub

PREPARING = Plan(
    leaves=(nn.Linear, QuantStub),
    units=(qat.Linear,),
    fixed_ranges={
        nn.Sigmoid: default_fixed_qparams_range_0to1_fake_quant,
        nn.Tanh: default_fixed_qparams_range_neg1to1_fake_quant,
    },
)
TRAINING = {nn.Linear: qat.Linear}


def qconfig_of(mod: nn.Module, qconfig: Any = None) -> Any:
    """The qconfig that `mod` carries, else the one given; one of the two must be."""
    if not hasattr(mod, "qconfig") and qconfig is None:
        raise InvalidRequest(
            f"The float module must have 'qconfig', or qconfig must be provided; this {type(mod).__name__} "
            "has none: set its .qconfig, as to get_default_qconfig(), or prepare() the model it is in"
        )
    return getattr(mod, "qconfig", qconfig)


def require_type(mod: object, expected: type[nn.Module], target: str, method: str = "from_float") -> None:
    """Refuse a source module of another kind than `expected`."""
    if not isinstance(mod, expected):
        raise InvalidRequest(
            f"{target}.{method}: Expected module type {expected}, got {type(mod)}; map other types to "
            "classes of their own in prepare_custom_config_dict"
        )


def trains(qconfig: Any) -> bool:
    """Whether the qconfig fake-quantizes weights, as quantization-aware training needs."""
    return (
        qconfig is not None and qconfig.weight is not None and isinstance(qconfig.weight(), FakeQuantizeBase)
    )


def prepare_parts(composite: nn.Module) -> None:
    """Give the parts of a composite, which has its qconfig, their observers."""
    propagate_qconfig_(composite)
    attach(composite, PREPARING)


def prepare_parts_for_training(composite: nn.Module) -> None:
    """Let the linear parts of a composite fake-quantize their weights, and the others their outputs."""
    propagate_qconfig_(composite)
    rewrite(composite, lambda site: swap_module(site.module, TRAINING), whole=lambda site: False)
    attach(composite, PREPARING)
