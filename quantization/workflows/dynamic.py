"""Dynamic quantization: int8 or float16 weights, activations quantized as they come. One call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from quantization.engine.propagate import propagate_qconfig_, unmatched
from quantization.engine.tree import check_model, restoring
from quantization.errors import QuantizationError, notify
from quantization.workflows import findings
from quantization.workflows.conversion import Conversion, borrowed
from quantization.workflows.ptq import remove_qconfig_
from quantization.workflows.tables import (
    MORE_DYNAMIC_QUANT_MODULE_MAPPINGS,
    default_dynamic_spec,
    get_default_dynamic_quant_module_mappings,
)


class _UnknownDtype(QuantizationError, RuntimeError):
    """A dtype that has no default dynamic recipe."""


class _NotASpec(QuantizationError, TypeError):
    """One key where a collection of keys is due; iterating over a name would give its letters."""


def quantize_dynamic(
    model: nn.Module,
    qconfig_spec: Mapping[Any, Any] | Collection[Any] | None = None,
    dtype: torch.dtype = torch.qint8,
    mapping: Mapping[Any, Any] | None = None,
    inplace: bool = False,
    *,
    strict: bool = False,
) -> nn.Module:
    """A copy of `model` whose weights are quantized and whose activations are quantized on the fly.

    Args:
        qconfig_spec: what to quantize: types and dotted names (a set uses the default qconfig of `dtype`,
            a dict gives each its own), or None for every type that has a recipe for `dtype`.
        dtype: `torch.qint8`, `torch.float16`, or for embeddings `torch.quint8` and `torch.quint4x2`.
        mapping: from float types to dynamic types; default `get_default_dynamic_quant_module_mappings()`
            and, beyond torch.ao, `nn.RNN`.
        inplace: change `model` itself; each float weight goes when its layer is made. Use the return value
            either way: a bare `nn.Linear` is replaced.
        strict: raise if a key of `qconfig_spec` matches nothing or nothing is quantized, instead of warning.

    Raises:
        QuantizationError: an unknown `dtype`, or a module that cannot be quantized; `model` is as before.
            Only an interrupt or lack of memory can leave it, in place, with some layers quantized.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> quantized = quantize_dynamic(model, {nn.Linear})
    >>> quantized(torch.randn(3, 4)).shape
    torch.Size([3, 2])
    """
    check_model(model)
    spec = _spec(qconfig_spec, dtype)
    if mapping is None:
        mapping = {**MORE_DYNAMIC_QUANT_MODULE_MAPPINGS, **get_default_dynamic_quant_module_mappings()}
    asked = set(qconfig_spec or ())
    missing = unmatched(model, asked)
    loan = None if inplace else borrowed(model, mapping)
    if loan is not None:
        model = loan.model
    with restoring(model) as way_back:
        model.eval()
        propagate_qconfig_(model, spec)
        conversion = Conversion(model, mapping)
        if loan is not None:
            loan.settle(conversion.reads())
        model = conversion.begin()
        for message in (
            findings.without_effect(model, asked, missing, mapping, conversion.is_pending),
            None if conversion.swaps_later else findings.nothing_swapped(model, "quantize_dynamic"),
        ):
            if message:
                notify(message, strict)
                break
        way_back.cut()
        model = conversion.finish()
        findings.record_left_float(model, mapping)
        remove_qconfig_(model)
    return model


def _spec(qconfig_spec: Mapping[Any, Any] | Collection[Any] | None, dtype: torch.dtype) -> dict[Any, Any]:
    """Every key with its qconfig."""
    if isinstance(qconfig_spec, (type, str)):
        key = qconfig_spec.__name__ if isinstance(qconfig_spec, type) else repr(qconfig_spec)
        raise _NotASpec(
            "qconfig_spec must be a set of types and dotted names, or a dict from these to qconfigs, got "
            f"{key}: write {{{key}}}"
        )
    if isinstance(qconfig_spec, Mapping):
        return {key: qconfig_spec[key] for key in qconfig_spec}
    recipe = default_dynamic_spec(dtype)
    if recipe is None:
        raise _UnknownDtype(
            f"Unknown dtype specified for quantize_dynamic: {dtype}. There are defaults for torch.qint8, "
            "torch.float16, torch.quint8 and torch.quint4x2; for anything else pass qconfig_spec as a dict "
            "from types or names to QConfigs"
        )
    types, qconfig = recipe
    return dict.fromkeys(types if qconfig_spec is None else qconfig_spec, qconfig)
