"""d2go: default tables changed in place, `type` patched, float checkpoints loaded into QAT models."""

from __future__ import annotations

import copy
import importlib
import re
from unittest import mock

import pytest
import torch
from torch import nn


class Pooled(nn.Linear):
    """A linear layer of the project's own, with a quantized and a QAT form of its own."""


@pytest.fixture
def tables(names):
    """Both default tables, put back afterwards."""
    mappings = names.q.quantization_mappings if hasattr(names.q, "quantization_mappings") else names.q
    static = mappings.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS
    qat = mappings.DEFAULT_QAT_MODULE_MAPPINGS
    with mock.patch.dict(static), mock.patch.dict(qat):
        yield static, qat


def custom_classes(names):
    class PooledQat(names.nnqat.Linear):
        _FLOAT_MODULE = Pooled

    class QuantizedPooled(names.nnq.Linear):
        @classmethod
        def from_float(cls, mod):
            if type(mod) is PooledQat:
                mod = copy.copy(mod)
                mod.__class__ = names.nnqat.Linear
            else:
                mod = copy.copy(mod)
                mod.__class__ = nn.Linear
            return super().from_float(mod)

    return PooledQat, QuantizedPooled


def model_of(names):
    return nn.Sequential(names.q.QuantStub(), Pooled(6, 4), nn.Linear(4, 3), names.q.DeQuantStub())


def test_tables_changed_in_place_reach_post_training(names, tables):
    _, quantized_class = custom_classes(names)
    tables[0][Pooled] = quantized_class
    model = model_of(names).eval()
    model.qconfig = names.q.get_default_qconfig()
    prepared = names.q.prepare(model)
    x = torch.randn(16, 6)
    expected = prepared(x)
    quantized = names.q.convert(prepared, inplace=False)
    assert type(quantized[1]) is quantized_class
    assert type(prepared[1]) is Pooled
    assert (quantized(x) - expected).abs().max() < 0.1


def test_tables_changed_in_place_reach_training(names, tables):
    qat_class, quantized_class = custom_classes(names)
    tables[1][Pooled] = qat_class
    tables[0][qat_class] = quantized_class
    model = model_of(names).train()
    model.qconfig = names.q.get_default_qat_qconfig()
    prepared = names.q.prepare_qat(model)
    assert type(prepared[1]) is qat_class
    x = torch.randn(16, 6)
    prepared(x).sum().backward()
    expected = prepared.eval()(x)
    quantized = names.q.convert(prepared, inplace=False)
    assert type(quantized[1]) is quantized_class
    assert (quantized(x) - expected).abs().max() < 0.1


def test_tables_are_back_afterwards(names):
    assert Pooled not in names.q.get_default_static_quant_module_mappings()
    assert Pooled not in names.q.get_default_qat_module_mappings()


@pytest.mark.parametrize("module", ["torch.nn.quantized.modules.linear", "torch.nn.qat.modules.linear"])
def test_type_can_be_patched_where_the_project_patches_it(names, module):
    """The project lets subclasses pass an exact-type check; here patching must do no harm."""
    target = importlib.import_module(module)

    def lenient(value):
        return nn.Linear if isinstance(value, nn.Linear) else type(value)

    with mock.patch.object(target, "type", lenient, create=True):
        model = nn.Sequential(names.q.QuantStub(), nn.Linear(4, 3), names.q.DeQuantStub()).train()
        model.qconfig = names.q.get_default_qat_qconfig()
        prepared = names.q.prepare_qat(model)
        prepared(torch.randn(4, 4))
        assert type(names.q.convert(prepared)[1]) is names.nnq.Linear
    assert "type" not in vars(target)


def test_float_checkpoint_loaded_into_a_training_model(names):
    model = model_of(names).train()
    checkpoint = model.state_dict()
    model.qconfig = names.q.get_default_qat_qconfig()
    prepared = names.q.prepare_qat(model)
    missing, unexpected = prepared.load_state_dict(checkpoint, strict=False)
    extra = re.compile("activation_post_process|weight_fake_quant")
    assert missing and all(extra.search(key) for key in missing)
    assert unexpected == []
    assert torch.equal(prepared[2].weight, checkpoint["2.weight"])


def test_schedule_in_a_training_hook(names):
    """QAT starts late, observers stop, then batch norms freeze: all by `apply`, at given iterations."""
    q = names.q
    model = nn.Sequential(q.QuantStub(), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), q.DeQuantStub()).train()
    model = q.fuse_modules_qat(model, ["1", "2"])
    model.qconfig = q.get_default_qat_qconfig()
    model = q.prepare_qat(model)
    model.apply(q.disable_fake_quant)
    at = {1: q.enable_fake_quant, 2: q.disable_observer, 3: names.nniqat.freeze_bn_stats}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for iteration in range(4):
        if iteration in at:
            model.apply(at[iteration])
        optimizer.zero_grad()
        model(torch.randn(4, 2, 6, 6)).sum().backward()
        optimizer.step()
        state = model[1].weight_fake_quant
        seen.append((int(state.fake_quant_enabled), int(state.observer_enabled), model[1].bn.training))
    assert seen == [(0, 1, True), (1, 1, True), (1, 0, True), (1, 0, False)]
