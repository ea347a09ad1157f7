"""The observed and the quantized attention: every path against torch's float one, life cycle, wrong input."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantization
from quantization.errors import InvalidRequest, QuantizationError, Unsupported
from quantization.nn import qat, quantizable, quantized
from tests.support import quiet_jit

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "other_widths": {"kdim": 6, "vdim": 7},
    "everything": {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True, "kdim": 6, "vdim": 7},
}
MASK = torch.zeros(3, 5, dtype=torch.bool)
MASK[0, 1] = MASK[2, 3] = True
PADDING = torch.zeros(2, 5, dtype=torch.bool)
PADDING[1, 4] = True
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_weights": {"need_weights": False},
    "weights_per_head": {"average_attn_weights": False},
    "float_mask": {"attn_mask": torch.where(MASK, -3.0, 0.0)},
    "bool_mask": {"attn_mask": MASK},
    "mask_per_head": {"attn_mask": torch.stack([MASK, MASK.roll(1, 1), MASK, MASK.roll(1, 0)])},
    "padding": {"key_padding_mask": PADDING},
    "float_padding": {"key_padding_mask": torch.where(PADDING, float("-inf"), 0.0)},
    "mask_and_padding": {"attn_mask": MASK, "key_padding_mask": PADDING},
}
QCONFIG = quantization.default_qconfig


def quant(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.03, 120, torch.quint8)


def attention(**options: Any) -> nn.MultiheadAttention:
    module = nn.MultiheadAttention(8, 2, **options).eval()
    for name, param in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(param, std=0.3)
    module.qconfig = QCONFIG
    return module


def inputs_of(module: nn.MultiheadAttention) -> list[Tensor]:
    inputs = [torch.randn(3, 2, 8), torch.randn(5, 2, module.kdim), torch.randn(5, 2, module.vdim)]
    return [x.transpose(0, 1) for x in inputs] if module.batch_first else inputs


def calibrated(**options: Any) -> tuple[quantizable.MultiheadAttention, list[Tensor]]:
    module = attention(**options)
    observed, inputs = quantizable.MultiheadAttention.from_float(module), inputs_of(module)
    observed(*inputs)
    return observed, inputs


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        return self.dequant(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_observed_equals_float(options: str, call: str):
    module = attention(**OPTIONS[options])
    inputs = inputs_of(module)
    observed = quantizable.MultiheadAttention.from_float(module)
    torch.testing.assert_close(observed(*inputs, **CALLS[call]), module(*inputs, **CALLS[call]))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_converted_stays_close_to_float(options: str, call: str):
    module = attention(**OPTIONS[options])
    inputs = inputs_of(module)
    observed = quantizable.MultiheadAttention.from_float(module)
    for each in CALLS.values():
        observed(*inputs, **each)
    converted = quantized.MultiheadAttention.from_observed(observed)
    output, weights = converted(*map(quant, inputs), **CALLS[call])
    expected, expected_weights = module(*inputs, **CALLS[call])
    assert (output.dequantize() - expected).abs().max() < 0.15
    if expected_weights is None:
        assert weights is None
    else:
        assert weights.shape == expected_weights.shape
        assert (weights.dequantize() - expected_weights).abs().max() < 0.05


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sample_without_batch(batch_first: bool):
    module = attention(batch_first=batch_first)
    observed = quantizable.MultiheadAttention.from_float(module)
    inputs = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5, 8)
    for call in ({}, {"attn_mask": MASK}, {"key_padding_mask": PADDING[1]}, {"average_attn_weights": False}):
        torch.testing.assert_close(observed(*inputs, **call), module(*inputs, **call))


def test_is_causal_with_its_mask():
    module = attention()
    x, mask = torch.randn(4, 2, 8), nn.Transformer.generate_square_subsequent_mask(4)
    observed = quantizable.MultiheadAttention.from_float(module)
    for weights in (True, False):
        call = {"attn_mask": mask, "is_causal": True, "need_weights": weights}
        torch.testing.assert_close(observed(x, x, x, **call), module(x, x, x, **call))


def test_a_row_masked_throughout_gives_nan_as_in_float():
    module = attention()
    inputs, mask = inputs_of(module), torch.ones(3, 5, dtype=torch.bool)
    output = quantizable.MultiheadAttention(8, 2)(*inputs, attn_mask=mask)[0]
    assert output.isnan().all() and module(*inputs, attn_mask=mask)[0].isnan().all()


def test_through_prepare_and_convert_without_a_warning(engine: str):
    model = Model(batch_first=True).eval()
    model.qconfig = quantization.get_default_qconfig(engine)
    prepared = quantization.prepare(model)
    x = torch.randn(4, 3, 8)
    prepared(x)
    converted = quantization.convert(prepared, strict=True)
    assert type(converted.attention) is quantized.MultiheadAttention
    assert (converted(x) - model(x)).abs().max() < 0.1


@pytest.mark.parametrize("options", OPTIONS)
def test_qat_trains_every_parameter_and_converts(options: str):
    same_widths = {"kdim": 8, "vdim": 8} if "kdim" in OPTIONS[options] else {}
    model = Model(**(OPTIONS[options] | same_widths)).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    prepared = quantization.prepare_qat(model, strict=True)
    assert type(prepared.attention.out_proj) is type(prepared.attention.linear_Q) is qat.Linear
    before = {name: p.detach().clone() for name, p in prepared.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in prepared.parameters() if p.requires_grad], lr=0.01)
    x = torch.randn(3, 2, 8)
    (prepared(x) * torch.randn(3, 2, 8)).sum().backward()
    assert all(prepared.get_parameter(name).grad is not None for name in before)
    optimizer.step()
    prepared.eval()
    prepared(x)
    converted = quantization.convert(prepared)
    assert (converted(x) - prepared(x)).abs().mean() < 0.2


def test_from_float_leaves_its_source_alone():
    module = attention(add_bias_kv=True)
    before, attributes = copy.deepcopy(module.state_dict()), set(vars(module))
    quantizable.MultiheadAttention.from_float(module)
    assert set(vars(module)) == attributes and module.in_proj_weight.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_bias_v_has_a_scale_of_its_own():
    module = attention(add_bias_kv=True)
    module.bias_v.data.mul_(50)
    observed = quantizable.MultiheadAttention.from_float(module)
    observed(*inputs_of(module))
    converted = quantized.MultiheadAttention.from_observed(observed)
    assert converted.bias_v.q_scale() > 10 * converted.bias_k.q_scale()
    assert (converted.bias_v.dequantize() - module.bias_v).abs().max() <= converted.bias_v.q_scale()
    assert isinstance(observed.bias_v, nn.Parameter)


@pytest.mark.parametrize("options", OPTIONS)
def test_life_cycle(options: str):
    observed, inputs = calibrated(**OPTIONS[options])
    module, inputs = quantized.MultiheadAttention.from_observed(observed), list(map(quant, inputs))
    buffer = io.BytesIO()
    with quiet_jit():
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    expected = module(*inputs, attn_mask=MASK)[0].int_repr()
    for each in (
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        scripted,
        loaded,
    ):
        assert torch.equal(each(*inputs, attn_mask=MASK)[0].int_repr(), expected)


def test_state_dict_carries_everything():
    observed, inputs = calibrated(add_bias_kv=True)
    module = quantized.MultiheadAttention.from_observed(observed)
    other = quantized.MultiheadAttention.from_observed(calibrated(add_bias_kv=True)[0])
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    assert not any(other.load_state_dict(torch.load(buffer, weights_only=True)))
    inputs = list(map(quant, inputs))
    assert torch.equal(other(*inputs)[0].int_repr(), module(*inputs)[0].int_repr())


@pytest.mark.parametrize("options", OPTIONS)
def test_dequantize_gives_the_float_module_back(options: str):
    module = attention(**OPTIONS[options])
    inputs = inputs_of(module)
    observed = quantizable.MultiheadAttention.from_float(module)
    torch.testing.assert_close(observed.dequantize()(*inputs), module(*inputs))
    observed(*inputs)
    back = quantized.MultiheadAttention.from_observed(observed).dequantize()
    assert type(back) is nn.MultiheadAttention and back.state_dict().keys() == module.state_dict().keys()
    assert (back(*inputs)[0] - module(*inputs)[0]).abs().max() < 0.1


class TestEncoderLayer:
    """Its residuals are sums of quantized tensors, for which torch has no kernel."""

    def prepared(self) -> tuple[nn.Module, Tensor]:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        layer.qconfig = QCONFIG
        return quantization.prepare(quantization.QuantWrapper(layer)), torch.randn(3, 2, 8)

    def test_prepared_observes_where_torch_would_take_its_fast_path(self):
        model, x = self.prepared()
        with torch.no_grad():
            model(x)
        assert model.module.self_attn.linear_Q.activation_post_process.min_val < 0

    def test_convert_names_the_cure(self):
        model, x = self.prepared()
        model(x)
        with pytest.raises(Unsupported, match=r"'module' \(TransformerEncoderLayer\).*quantize_dynamic"):
            quantization.convert(model, inplace=True)
        assert type(model.module.self_attn) is quantizable.MultiheadAttention
        model(x)

    def test_float_layer_in_a_static_model_is_no_error(self):
        model = nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16), quantization.QuantWrapper(nn.Linear(8, 8))
        )
        model.eval().qconfig = QCONFIG
        model[0].qconfig = None
        prepared, x = quantization.prepare(model), torch.randn(3, 2, 8)
        prepared(x)
        converted = quantization.convert(prepared)
        assert type(converted[0].self_attn) is nn.MultiheadAttention and converted(x).shape == x.shape


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ({"is_causal": True}, "Need attn_mask if specifying the is_causal hint"),
            ({"attn_mask": torch.zeros(3, 4)}, r"attn_mask has shape \[3, 4\].* here \[3, 5\]"),
            ({"attn_mask": torch.zeros(2, 3, 5)}, r"attn_mask has shape \[2, 3, 5\].* here \[4, 3, 5\]"),
            ({"key_padding_mask": torch.zeros(5, 2)}, r"key_padding_mask has shape \[5, 2\].* here \[2, 5\]"),
        ],
        ids=["causal_without_mask", "mask", "mask_per_head", "padding"],
    )
    def test_masks(self, call: dict[str, Any], message: str):
        module = quantizable.MultiheadAttention(8, 2, add_bias_kv=True)
        with pytest.raises(ValueError, match=message):
            module(*inputs_of(module), **call)

    def test_dimensions(self):
        module = quantizable.MultiheadAttention(8, 2)
        x = torch.ones(3, 2, 8)
        with pytest.raises(ValueError, match="received 1-D"):
            module(x[0, 0], x, x)
        with pytest.raises(ValueError, match="query has 3 dimensions, key 2"):
            module(x, x[0], x[0])

    def test_no_qconfig(self):
        with pytest.raises(AssertionError, match="The float module must have 'qconfig'"):
            quantizable.MultiheadAttention.from_float(nn.MultiheadAttention(8, 2))

    def test_other_type(self):
        with pytest.raises(InvalidRequest, match="Expected module type"):
            quantizable.MultiheadAttention.from_float(nn.Linear(8, 2))

    def test_from_observed_of_the_wrong_class(self):
        observed, _ = calibrated()
        with pytest.raises(NotImplementedError, match="trying to prepare an MHA module"):
            quantizable.MultiheadAttention.from_observed(observed)
        with pytest.raises(NotImplementedError, match="convert a non-observed MHA module"):
            quantized.MultiheadAttention.from_float(attention())

    def test_float_input_after_convert(self):
        observed, inputs = calibrated()
        with pytest.raises(QuantizationError, match="must be quantized"):
            quantized.MultiheadAttention.from_observed(observed)(*inputs)
