"""Requests that cannot be met: one error that names the module and the cure, and a model left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import quantization as q
from quantization import DeQuantStub, QuantizationError, QuantStub


def model() -> nn.Sequential:
    layers = nn.Sequential(QuantStub(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), DeQuantStub()).eval()
    layers.qconfig = q.default_qconfig
    return layers


def facts(module: nn.Module) -> list[Any]:
    """Structure, modes, hooks, attributes and tensors, by identity."""
    return [
        (
            name, id(m), m.training, sorted(vars(m)), list(m._forward_hooks.values()),
            [id(t) for t in (*m._parameters.values(), *m._buffers.values())],
        )
        for name, m in module.named_modules()
    ]  # fmt: skip


def refused(module: nn.Module, message: str, call: Any, *args: Any, **kwargs: Any) -> None:
    before = facts(module)
    with pytest.raises(QuantizationError, match=message):
        call(module, *args, **kwargs)
    assert facts(module) == before


@pytest.mark.parametrize(("spec", "shown"), [(nn.Linear, "{Linear}"), ("1", "{'1'}")], ids=["type", "name"])
def test_a_spec_that_is_one_key_is_refused(spec: Any, shown: str) -> None:
    refused(model(), f"got .*: write {shown}", q.quantize_dynamic, spec, inplace=True)
    with pytest.raises(TypeError, match="qconfig_spec must be a set"):
        q.quantize_dynamic(model(), spec)


def test_a_factory_that_makes_no_observer_is_refused() -> None:
    float_model = model()
    float_model.qconfig = q.QConfig(activation=lambda: 3, weight=q.default_weight_observer)
    refused(float_model, "while preparing '0': .* made 3", q.prepare, inplace=True)


def test_a_model_partly_on_meta_is_refused() -> None:
    float_model = model()
    float_model[3].to("meta")
    refused(float_model, "while preparing '3': Linear is on the meta device", q.prepare, inplace=True)


def test_weights_without_values_are_refused() -> None:
    float_model = nn.Sequential(nn.Linear(4, 2)).to("meta")
    refused(
        float_model, "while converting '0': Linear is on the meta device", q.quantize_dynamic, inplace=True
    )


@pytest.mark.parametrize("target", [nn.Linear, "Linear"], ids=["float_class", "text"])
def test_a_mapping_to_what_cannot_convert_is_refused(target: Any) -> None:
    prepared = q.prepare(model())
    prepared(torch.randn(3, 4))
    refused(prepared, "while converting '1': .*no from_float", q.convert, {nn.Linear: target}, inplace=True)


def test_fusing_after_preparing_is_refused() -> None:
    refused(
        q.prepare(model()), "cannot fuse '1': it has an observer", q.fuse_modules, ["1", "2"], inplace=True
    )


def test_fusing_across_devices_is_refused() -> None:
    float_model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2).to("meta")).eval()
    message = (
        "while fusing '0, 1': modules to fuse must be on one device, got Conv2d on cpu, BatchNorm2d on meta"
    )
    refused(float_model, message, q.fuse_modules, ["0", "1"], inplace=True)


def test_quantizing_what_is_no_tensor_is_refused() -> None:
    prepared = q.prepare(model())
    prepared(torch.randn(3, 4))
    with pytest.raises(QuantizationError, match="Quantize takes a float tensor, got NoneType"):
        q.convert(prepared)(None)


def test_a_quantized_model_is_said_to_be_quantized_already() -> None:
    prepared = q.prepare(model())
    prepared(torch.randn(3, 4))
    converted = q.convert(prepared)
    with pytest.warns(q.QuantizationWarning, match="quantized already"):
        again = q.convert(converted)
    x = torch.randn(3, 4)
    assert torch.equal(again(x), converted(x))
    converted.qconfig = q.default_qconfig
    with pytest.warns(q.QuantizationWarning, match="quantized already"):
        prepared_again = q.prepare(converted)
    with pytest.raises(QuantizationError, match="quantized already"):
        q.convert(prepared_again, strict=True)


def test_a_subclass_is_told_apart_from_a_module_without_qconfig() -> None:
    class Mine(nn.Linear):
        """Another type, to the tables."""

    with pytest.warns(q.QuantizationWarning, match="quantized nothing"):
        left = q.quantize_dynamic(nn.Sequential(Mine(2, 2), nn.ReLU()))
    assert [row.note for row in q.summary(left).rows] == [
        "a subclass of Linear, but tables match exact types: none for Mine",
        "no qconfig",
    ]
