"""Quantization-aware training: prepare_qat, train, convert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from quantization.engine.copying import copied
from quantization.engine.propagate import propagate_qconfig_
from quantization.engine.tree import check_model, restoring
from quantization.errors import InvalidRequest, notify
from quantization.workflows import findings
from quantization.workflows.conversion import convert_modules
from quantization.workflows.ptq import convert_calibrated, prepare
from quantization.workflows.tables import MORE_QAT_MODULE_MAPPINGS, get_default_qat_module_mappings


def prepare_qat(
    model: nn.Module,
    mapping: Mapping[Any, Any] | None = None,
    inplace: bool = False,
    *,
    strict: bool = False,
) -> nn.Module:
    """Swap in modules that fake-quantize their weights, and attach fake quantizers to activations.

    Args:
        mapping: from float types to QAT types; default `get_default_qat_module_mappings()` and, beyond
            torch.ao, `nn.Conv1d` and its fusion with ReLU.
        inplace: change `model` itself instead of a copy. The parameters stay the same objects, so an
            optimizer made before keeps working.
        strict: raise if a qconfig does not fake-quantize, instead of warning.

    Raises:
        QuantizationError: `model` is in evaluation mode, or a module cannot be prepared; names the module,
            and `model` is then as before.
    """
    check_model(model)
    if not model.training:
        raise InvalidRequest(
            "prepare_qat only works on models in training mode, and this one is in evaluation mode: call "
            "model.train() first, or prepare(model) for post-training quantization"
        )
    if mapping is None:
        mapping = {**MORE_QAT_MODULE_MAPPINGS, **get_default_qat_module_mappings()}
    if not inplace:
        model = copied(model)
    with restoring(model):
        propagate_qconfig_(model)
        model = convert_modules(model, mapping)
        model = prepare(
            model, inplace=True, observer_non_leaf_module_list=set(mapping.values()), strict=strict
        )
        message = findings.not_fake_quantized(model)
        if message:
            notify(message, strict)
    return model


def quantize_qat(
    model: nn.Module,
    run_fn: Callable[..., Any],
    run_args: Iterable[Any],
    inplace: bool = False,
    *,
    strict: bool = False,
) -> nn.Module:
    """Prepare `model` for QAT, train it with `run_fn(model, *run_args)` and convert it."""
    check_model(model)
    if not inplace:
        model = copied(model)
    with restoring(model) as way_back:
        model.train()
        model = prepare_qat(model, inplace=True, strict=strict)
        run_fn(model, *run_args)
        return convert_calibrated(model, None, way_back, strict)
