"""The observed and the quantized LSTM: float results, calls by hand, life cycle, wrong input."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantization
from quantization.errors import InvalidRequest, QuantizationError, QuantizationWarning, Unsupported
from quantization.nn import qat, quantizable, quantized
from quantization.nn.quantizable import parts
from quantization.workflows import tables
from tests.support import quiet_jit

QCONFIG = quantization.default_qconfig


def quant(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.03, 120, torch.quint8)


def lstm(qconfig: Any = QCONFIG, **options: Any) -> nn.LSTM:
    module = nn.LSTM(4, 5, **options).eval()
    if qconfig is not None:
        module.qconfig = qconfig
    return module


def calibrated(**options: Any) -> quantizable.LSTM:
    observed = quantizable.LSTM.from_float(lstm(**options))
    shape = (2, 3, 4)
    observed(torch.randn(shape))
    return observed


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.lstm = nn.LSTM(4, 5, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.lstm(self.quant(x))[0])


@pytest.mark.parametrize("split", [False, True], ids=["joint", "split_gates"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_way", "both_ways"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "sequence"])
def test_observed_equals_float(
    split: bool, batch_first: bool, bidirectional: bool, layers: int, batched: bool
):
    module = lstm(num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    observed = quantizable.LSTM.from_float(module, split_gates=split)
    x = torch.randn((3, 2, 4) if batched else (3, 4))
    expected, (h, c) = module(x)
    output, (oh, oc) = observed(x)
    torch.testing.assert_close((output, oh, oc), (expected, h, c))
    expected, state = module(x, (h, c))
    output, ostate = observed(x, (h, c))
    torch.testing.assert_close((output, ostate), (expected, state))


def test_constructed_bidirectional_layers_fit_each_other():
    output, (h, _) = quantizable.LSTM(4, 5, num_layers=2, bidirectional=True)(torch.ones(3, 2, 4))
    assert output.shape == (3, 2, 10) and h.shape == (4, 2, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_observed_keeps_the_float_type(dtype: torch.dtype):
    module = lstm().to(dtype)
    x = torch.randn(3, 2, 4, dtype=dtype)
    output = quantizable.LSTM.from_float(module)(x)[0]
    assert output.dtype == dtype
    torch.testing.assert_close(output, module(x)[0], atol=2e-2, rtol=2e-2)


def test_from_float_by_hand_prepares_as_the_engine_does():
    by_hand = quantizable.LSTM.from_float(lstm())
    by_engine = quantization.prepare(lstm())
    for a, b in zip(by_hand.named_modules(), by_engine.named_modules(), strict=True):
        assert (
            a[0] == b[0] and type(a[1]) is type(b[1]) and len(a[1]._forward_hooks) == len(b[1]._forward_hooks)
        )


def test_from_float_by_hand_in_training_prepares_for_training():
    module = lstm(quantization.get_default_qat_qconfig("fbgemm")).train()
    observed = quantizable.LSTM.from_float(module)
    cell = observed.layers[0].layer_fw.cell
    assert type(cell.igates) is qat.Linear and cell.igates.weight is module.weight_ih_l0
    assert isinstance(cell.input_gate.activation_post_process, quantization.FixedQParamsFakeQuantize)
    observed(torch.randn(2, 1, 4))[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_parts_agree_with_the_default_tables():
    act = tables.DEFAULT_MODULE_TO_ACT_POST_PROCESS
    assert all(act[kind] is factory for kind, factory in parts.PREPARING.fixed_ranges.items())
    assert all(tables.DEFAULT_QAT_MODULE_MAPPINGS[k] is v for k, v in parts.TRAINING.items())
    static = tables.DEFAULT_STATIC_QUANT_MODULE_MAPPINGS
    for composite in (quantized.LSTM, quantized.MultiheadAttention):
        assert all(static[source] is target for source, target in composite._PARTS.items())


def test_from_float_leaves_its_source_alone():
    module = lstm(num_layers=2)
    before, attributes = copy.deepcopy(module.state_dict()), set(vars(module))
    quantizable.LSTM.from_float(module, split_gates=True)(torch.randn(2, 1, 4))
    assert set(vars(module)) == attributes
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_from_observed_leaves_its_source_alone():
    observed = calibrated()
    quantized.LSTM.from_observed(observed)
    assert type(observed) is quantizable.LSTM and type(observed.layers[0].layer_fw.cell.igates) is nn.Linear
    observed(torch.randn(2, 1, 4))


def test_hooks_of_the_user_survive_convert_once():
    prepared = quantization.prepare(lstm())
    calls: list[int] = []
    prepared.register_forward_hook(lambda *_: calls.append(1))
    prepared(torch.randn(2, 1, 4))
    converted = quantization.convert(prepared)
    calls.clear()
    converted(quant(torch.randn(2, 1, 4)))
    assert calls == [1]


def test_converted_stays_close_to_float(engine: str):
    model = Model(num_layers=2, bidirectional=True).eval()
    model.qconfig = quantization.get_default_qconfig(engine)
    prepared = quantization.prepare(model)
    x = torch.randn(4, 3, 4)
    prepared(x)
    converted = quantization.convert(prepared, strict=True)
    assert type(converted.lstm) is quantized.LSTM
    assert (converted(x) - model(x)).abs().max() < 0.1


def test_qat_trains_every_parameter_and_converts(engine: str):
    model = Model().train()
    model.qconfig = quantization.get_default_qat_qconfig(engine)
    prepared = quantization.prepare_qat(model, strict=True)
    before = copy.deepcopy(dict(prepared.named_parameters()))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.5)
    x = torch.randn(3, 2, 4)
    prepared(x).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in prepared.named_parameters())
    prepared.eval()
    converted = quantization.convert(prepared)
    assert (converted(x) - prepared(x)).abs().max() < 0.2


@pytest.mark.parametrize("split", [False, True], ids=["joint", "split_gates"])
def test_life_cycle(split: bool):
    observed = quantizable.LSTM.from_float(lstm(num_layers=2, bidirectional=True), split_gates=split)
    observed(torch.randn(3, 2, 4))
    module, x = quantized.LSTM.from_observed(observed), quant(torch.randn(3, 2, 4))
    buffer = io.BytesIO()
    with quiet_jit():
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    expected, (h, c) = module(x)
    copies = [copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module)), scripted, loaded]
    for each in copies:
        output, (oh, oc) = each(x)
        for a, b in ((output, expected), (oh, h), (oc, c)):
            assert torch.equal(a.int_repr(), b.int_repr())
    assert dir(copies[2]) == dir(module)


def test_state_dict_is_loadable_without_code():
    module = quantized.LSTM.from_observed(calibrated())
    other = quantized.LSTM.from_observed(calibrated())
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = quant(torch.randn(3, 2, 4))
    assert torch.equal(other(x)[0].int_repr(), module(x)[0].int_repr())


def test_float_composite_scripts():
    module, x = quantizable.LSTM(4, 5, 2, bidirectional=True, split_gates=True), torch.randn(3, 2, 4)
    with quiet_jit():
        scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(x), module(x))


def test_initial_state_of_the_cell_is_used():
    module = quantized.LSTM.from_observed(calibrated())
    x = quant(torch.randn(3, 2, 4))
    expected = module(x)[0].int_repr()
    cell = module.layers[0].layer_fw.cell
    cell.initial_hidden_state_qparams = cell.initial_cell_state_qparams = (0.02, 100)
    h, c = cell.initialize_hidden(2, is_quantized=True)
    assert h.q_scale() == c.q_scale() == 0.02 and h.dequantize().abs().max() == 0
    assert torch.equal(module(x)[0].int_repr(), expected)


def test_user_subclass_with_split_gates():
    class Observed(quantizable.LSTM):
        @classmethod
        def from_float(cls, other: Any, qconfig: Any = None, split_gates: bool = False) -> Any:
            return super().from_float(other, qconfig, split_gates=True)

    model = nn.Sequential(lstm())
    prepared = quantization.prepare(
        model, prepare_custom_config_dict={"float_to_observed_custom_module_class": {nn.LSTM: Observed}}
    )
    prepared(torch.randn(3, 2, 4))
    custom = {"observed_to_quantized_custom_module_class": {Observed: quantized.LSTM}}
    converted = quantization.convert(prepared, convert_custom_config_dict=custom)
    assert type(converted[0]) is quantized.LSTM
    assert type(converted[0].layers[0].layer_fw.cell.igates["cell"]) is quantized.Linear
    converted(quant(torch.randn(3, 2, 4)))


def test_what_a_user_hung_on_the_layer_stays_on_it():
    module = lstm()
    module.tag = "encoder"
    prepared = quantization.prepare(module)
    prepared(torch.randn(3, 2, 4))
    assert prepared.tag == quantization.convert(prepared).tag == "encoder"


def test_reference_convert_takes_the_composite_by_its_parts():
    prepared = quantization.prepare(lstm())
    x = torch.randn(3, 2, 4)
    prepared(x)
    converted = quantization.convert(prepared, is_reference=True)
    torch.testing.assert_close(converted(x)[0], prepared(x)[0], atol=0.05, rtol=0)  # rounded weights


def test_reference_convert_with_a_custom_table_quantizes_the_composite_as_a_whole():
    prepared = quantization.prepare(lstm())
    prepared(torch.randn(3, 2, 4))
    custom = quantization.get_default_custom_config_dict()
    converted = quantization.convert(prepared, is_reference=True, convert_custom_config_dict=custom)
    assert converted(quant(torch.randn(3, 2, 4)))[0].is_quantized


class TestCell:
    @pytest.mark.parametrize("split", [False, True], ids=["joint", "split_gates"])
    @pytest.mark.parametrize("bias", [False, True])
    def test_equals_float(self, split: bool, bias: bool):
        module = nn.LSTMCell(4, 5, bias=bias)
        module.qconfig = QCONFIG
        cell = quantizable.LSTMCell.from_float(module, split_gates=split)
        x, state = torch.randn(2, 4), (torch.randn(2, 5), torch.randn(2, 5))
        torch.testing.assert_close(cell(x), module(x))
        torch.testing.assert_close(cell(x, state), module(x, state))
        assert cell.qconfig is cell.igates.qconfig is QCONFIG

    def test_no_qconfig(self):
        with pytest.raises(AssertionError, match="The float module must have 'qconfig'"):
            quantizable.LSTMCell.from_float(nn.LSTMCell(4, 5))

    def test_one_bias_is_missing(self):
        with pytest.raises(InvalidRequest, match="bi and bh must both be None or both have values"):
            quantizable.LSTMCell.from_params(torch.ones(20, 4), torch.ones(20, 5), bi=torch.ones(20))

    def test_weights_do_not_fit(self):
        with pytest.raises(InvalidRequest, match=r"\(20, 4\) and \(24, 5\)"):
            quantizable.LSTMCell.from_params(torch.ones(20, 4), torch.ones(24, 5))


def test_layer_from_float():
    module = lstm(None, num_layers=2)
    layer = quantizable._LSTMLayer.from_float(module, 1, QCONFIG)
    assert layer.qconfig is QCONFIG and layer.layer_fw.cell.igates.weight is module.weight_ih_l1


class TestErrors:
    def test_no_qconfig(self):
        with pytest.raises(AssertionError, match="qconfig must be provided"):
            quantizable.LSTM.from_float(lstm(None))

    def test_given_qconfig(self):
        assert quantizable.LSTM.from_float(lstm(None), QCONFIG).qconfig is not None

    def test_other_type(self):
        with pytest.raises(InvalidRequest, match=r"Expected module type .*LSTM.*, got .*GRU"):
            quantizable.LSTM.from_float(nn.GRU(4, 5))

    def test_projections_name_the_module(self):
        model = nn.Sequential(lstm(proj_size=3))
        with pytest.raises(Unsupported, match=r"while preparing '0': .*proj_size=3.*quantize_dynamic"):
            quantization.prepare(model)
        assert type(model[0]) is nn.LSTM

    @pytest.mark.parametrize("dropout", [2.0, -0.1, True, "0.5"])
    def test_dropout_out_of_range(self, dropout: Any):
        with pytest.raises(ValueError, match=r"dropout should be a number in range \[0, 1\]"):
            quantizable.LSTM(4, 5, 2, dropout=dropout)

    def test_dropout_is_named_in_training_only(self):
        with pytest.warns(QuantizationWarning, match="dropout option for quantizable LSTM is ignored"):
            quantizable.LSTM(4, 5, 2, dropout=0.5)
        with pytest.warns(QuantizationWarning, match="dropout option for quantizable LSTM is ignored"):
            quantizable.LSTM.from_float(lstm(num_layers=2, dropout=0.5).train())
        assert quantizable.LSTM.from_float(lstm(num_layers=2, dropout=0.5)).dropout == 0.5

    def test_from_observed_of_the_wrong_class(self):
        with pytest.raises(NotImplementedError, match="convert a non-quantizable LSTM module"):
            quantizable.LSTM.from_observed(calibrated())
        with pytest.raises(NotImplementedError, match="convert a non-observed LSTM module"):
            quantized.LSTM.from_float(lstm())
        with pytest.raises(InvalidRequest, match="Expected module type"):
            quantized.LSTM.from_observed(lstm())

    @pytest.mark.parametrize(
        ("x", "state", "error", "message"),
        [
            (torch.ones(4), None, ValueError, "2D or 3D, got 1D"),
            (torch.ones(0, 2, 4), None, ValueError, "sequence length larger than 0"),
            (torch.ones(3, 2, 4), torch.ones(2, 2, 5), ValueError, r"size \[1, 2, 5\], got \[2, 2, 5\]"),
            (torch.ones(3, 4), torch.ones(1, 1, 5), ValueError, r"size \[1, 5\], got \[1, 1, 5\]"),
            (torch.ones(3, 2, 4), quant(torch.ones(1, 2, 5)), ValueError, "must be quantized, or all float"),
        ],
        ids=["1d", "empty", "other_layers", "state_with_batch", "quantized_state"],
    )
    def test_input(self, x: Tensor, state: Tensor | None, error: type[Exception], message: str):
        with pytest.raises(error, match=message):
            quantizable.LSTM(4, 5)(x, None if state is None else (state, state))

    def test_packed_sequence(self):
        packed = nn.utils.rnn.pack_sequence([torch.ones(3, 4)])
        with pytest.raises(TypeError, match="not a PackedSequence"):
            quantizable.LSTM(4, 5)(packed)

    def test_float_input_after_convert(self):
        with pytest.raises(QuantizationError, match="must be quantized"):
            quantized.LSTM.from_observed(calibrated())(torch.ones(3, 2, 4))
