"""Block-sparse linear layers: torch.ao's numbers and keys, and state that survives every way to save it."""

from __future__ import annotations

import copy
import importlib
import io
import pickle

import pytest
import torch
from torch import nn

import quantization as q
from quantization.nn import sparse, sparse_dynamic
from quantization.workflows.tables import (
    get_default_dynamic_sparse_quant_module_mappings,
    get_default_static_sparse_quant_module_mappings,
)
from tests.parity.libraries import assert_same
from tests.support import ENGINES, quiet_jit

CASES = {"static": (sparse.Linear, "fbgemm", ""), "dynamic": (sparse_dynamic.Linear, "qnnpack", ".dynamic")}


@pytest.fixture(params=CASES)
def case(request, monkeypatch):
    """The class, torch.ao's module name, and an input, on the engine that has the kernels."""
    cls, engine, name = CASES[request.param]
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not on this machine")
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    x = torch.randn(3, 8)
    if request.param == "static":
        x = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
    return cls, "torch.ao.nn.sparse.quantized" + name, x


def float_layer(qconfig=q.default_qconfig, bias=True):
    torch.manual_seed(1)
    layer = nn.Linear(8, 16, bias=bias)
    with torch.no_grad():
        layer.weight[::2] = 0
    layer.qconfig = qconfig
    layer.sparse_params = {"sparse_block_shape": (1, 4)}
    layer.activation_post_process = q.MinMaxObserver()
    layer.activation_post_process(torch.tensor([-2.0, 3.0]))
    return layer


def result(y):
    return y.int_repr() if y.is_quantized else y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "qconfig", [q.default_qconfig, q.default_per_channel_qconfig], ids=["tensor", "channel"]
)
def test_as_in_torch_ao(case, qconfig, bias):
    cls, name, x = case
    theirs = pytest.importorskip(name).Linear
    ours, expected = cls.from_float(float_layer(qconfig, bias)), theirs.from_float(float_layer(qconfig, bias))
    assert torch.equal(result(ours(x)), result(expected(x)))
    assert repr(ours) == repr(expected)
    state, expected_state = ours.state_dict(), expected.state_dict()
    assert list(state) == list(expected_state)
    for key in state:
        assert_same(state[key], expected_state[key], key)


def test_result_is_that_of_the_float_layer(case):
    cls, _, x = case
    layer = float_layer()
    y = cls.from_float(layer)(x).dequantize() if x.is_quantized else cls.from_float(layer)(x)
    assert (y - layer(x.dequantize() if x.is_quantized else x)).abs().max() < 0.05


def test_state_dicts_load_from_here_and_from_torch_ao(case):
    cls, name, x = case
    made = cls.from_float(float_layer())
    states = [made.state_dict(), pytest.importorskip(name).Linear.from_float(float_layer()).state_dict()]
    for state in states:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        fresh = cls(8, 16, 1, 4)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(result(fresh(x)), result(made(x)))


def test_missing_keys_and_other_shapes_are_named(case):
    cls, _, _ = case
    fresh = cls(8, 16, 1, 4)
    with pytest.raises(RuntimeError, match=r"_packed_params\._packed_params"):
        fresh.load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch"):
        cls(8, 8, 1, 4).load_state_dict(fresh.state_dict())


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "save", "script"])
def test_copies_run(case, how):
    cls, _, x = case
    module = cls.from_float(float_layer())
    file = io.BytesIO()
    if how in ("deepcopy", "copy"):
        other = getattr(copy, how)(module)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(module))
    elif how == "save":
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        with quiet_jit():
            torch.jit.save(torch.jit.script(module), file)
            file.seek(0)
            other = torch.jit.load(file)
    assert torch.equal(result(other(x)), result(module(x)))


def test_through_the_workflows(case):
    cls, _, _ = case
    model = nn.Sequential(q.QuantStub(), float_layer(), q.DeQuantStub()).eval()
    x = torch.randn(16, 8)
    if cls is sparse.Linear:
        del model[1].qconfig, model[1].activation_post_process
        model.qconfig = q.default_qconfig
        prepared = q.prepare(model)
        expected = prepared(x)
        mapping = get_default_static_sparse_quant_module_mappings()
        quantized = q.convert(prepared, mapping={**q.get_default_static_quant_module_mappings(), **mapping})
    else:
        model = nn.Sequential(nn.Linear(8, 16)).eval()
        expected = model(x)
        mapping = get_default_dynamic_sparse_quant_module_mappings()
        quantized = q.quantize_dynamic(model, {nn.Linear}, mapping=mapping)
    assert cls in {type(m) for m in quantized.modules()}
    assert (quantized(x) - expected).abs().max() < 0.1


def test_half_precision_input_of_the_dynamic_layer(monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    module = sparse_dynamic.Linear.from_float(float_layer())
    assert module(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_what_cannot_be_is_said(monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    layer = float_layer()
    del layer.sparse_params
    with pytest.raises(AssertionError, match="sparse_params"):
        sparse.Linear.from_float(layer)
    with pytest.raises(NotImplementedError, match="Only QINT8"):
        sparse.Linear(8, 4, 1, 4, dtype=torch.quint8)
    with pytest.raises(q.QuantizationError, match="block sizes"):
        sparse.Linear(8, 4, 2, 2)
    for cls in (sparse.Linear, sparse_dynamic.Linear):
        with pytest.raises(AssertionError, match="only works for Linear"):
            cls.from_float(nn.Conv2d(2, 2, 1))
    monkeypatch.setattr(torch.backends.quantized, "engine", "x86")
    with pytest.raises(q.QuantizationError, match="'fbgemm' for static"):
        sparse.Linear(8, 4, 1, 4)


def test_pattern_as_in_torch_ao():
    theirs = pytest.importorskip("torch.ao.nn.sparse.quantized.utils").LinearBlockSparsePattern
    for pattern in (sparse.LinearBlockSparsePattern, theirs):
        assert pattern.block_size() == (1, 4)
        with pattern(8, 1):
            assert pattern.block_size() == (8, 1)
        assert pattern.block_size() == (1, 4)
        with pytest.raises(AssertionError, match="Invalid linear block sparse pattern"):
            pattern(2, 3)


def test_patterns_nest():
    """In torch.ao the outer pattern is forgotten."""
    pattern = sparse.LinearBlockSparsePattern
    with pattern(8, 1):
        with pattern(1, 4):
            assert pattern.block_size() == (1, 4)
        assert pattern.block_size() == (8, 1)
    assert pattern.block_size() == (1, 4)


def test_names_of_torch_ao():
    from quantization.compat import alias_torch_ao

    with alias_torch_ao():
        module = importlib.import_module("torch.ao.nn.sparse.quantized")
        assert module.Linear is sparse.Linear
        assert module.LinearPackedParams is sparse.LinearPackedParams
        assert importlib.import_module("torch.ao.nn.sparse.quantized.dynamic").Linear is sparse_dynamic.Linear
