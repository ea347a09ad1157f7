"""Quantization parameters and quantized weights: equal to torch.ao's, bit for bit, and clear about misuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import observers
from observers import (
    FakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from quantization.errors import InvalidRequest
from quantization.qparams import QParams, get_qparam_dict, output_qparams, quantize_weight
from tests.support import quiet_ao

SYMMETRIC = {"dtype": torch.qint8, "qscheme": torch.per_tensor_symmetric}
PER_CHANNEL = {"dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}
Make = Callable[[Any], Any]
# From a namespace (ours or torch.ao's) to a factory of weight observers.
WEIGHT_OBSERVERS: dict[str, Make] = {
    "per tensor": lambda ns: ns.default_weight_observer,
    "per channel": lambda ns: ns.default_per_channel_weight_observer,
    "last axis": lambda ns: ns.PerChannelMinMaxObserver.with_args(**PER_CHANNEL, ch_axis=1),
    "per channel affine": lambda ns: ns.PerChannelMinMaxObserver.with_args(dtype=torch.qint8),
    "float qparams": lambda ns: ns.default_float_qparams_observer,
    "four bits": lambda ns: ns.default_float_qparams_observer_4bit,
    "127": lambda ns: ns.weight_observer_range_neg_127_to_127,
    "127 per channel": lambda ns: ns.per_channel_weight_observer_range_neg_127_to_127,
    "narrow": lambda ns: ns.MinMaxObserver.with_args(**SYMMETRIC, quant_min=-16, quant_max=15),
    "narrow affine": lambda ns: ns.MinMaxObserver.with_args(dtype=torch.qint8, quant_min=-16, quant_max=15),
    "narrow last axis": lambda ns: ns.PerChannelMinMaxObserver.with_args(
        **PER_CHANNEL, ch_axis=1, quant_min=-16, quant_max=15
    ),
    "fake quantizer": lambda ns: ns.default_weight_fake_quant,
    "fake quantizer per channel": lambda ns: ns.default_per_channel_weight_fake_quant,
    "fake quantizer of embeddings": lambda ns: ns.default_embedding_fake_quant,
    "fused fake quantizer": lambda ns: ns.default_fused_per_channel_wt_fake_quant,
}
make_pair = pytest.mark.parametrize("make", WEIGHT_OBSERVERS.values(), ids=list(WEIGHT_OBSERVERS))


@make_pair
@pytest.mark.parametrize("growth", [1.0, 10.0], ids=["same weight", "weight outgrew the range"])
def test_weights_quantize_as_in_torch_ao(make: Make, growth: float) -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    theirs_utils = pytest.importorskip("torch.ao.nn.quantized.modules.utils")
    weight = torch.randn(6, 4)
    with quiet_ao():
        ours, theirs = make(observers)(), make(ao)()
        ours(weight), theirs(weight)
        expected = theirs_utils._quantize_weight(weight * growth, theirs)
    actual = quantize_weight(weight * growth, ours)
    assert (actual.dtype, actual.qscheme()) == (expected.dtype, expected.qscheme())
    assert torch.equal(actual, expected)


@make_pair
def test_the_dictionary_is_that_of_torch_ao(make: Make) -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    theirs_utils = pytest.importorskip("torch.ao.quantization.utils")
    weight = torch.randn(6, 4)
    with quiet_ao():
        ours, theirs = make(observers)(), make(ao)()
        ours(weight), theirs(weight)
        expected = theirs_utils.get_qparam_dict(theirs)
    actual = get_qparam_dict(ours)
    assert repr(list(actual.items())) == repr(list(expected.items()))


@pytest.mark.parametrize(
    "make",
    [
        lambda ns: ns.PlaceholderObserver(dtype=torch.float16),
        lambda ns: ns.NoopObserver(),
        lambda ns: ns.RecordingObserver(),
        lambda ns: ns.ReuseInputObserver(),
    ],
    ids=["placeholder", "noop", "recording", "reuse"],
)
def test_what_has_no_parameters_has_a_short_dictionary(make: Make) -> None:
    ao = pytest.importorskip("torch.ao.quantization")
    theirs_utils = pytest.importorskip("torch.ao.quantization.utils")
    assert get_qparam_dict(make(observers)) == theirs_utils.get_qparam_dict(make(ao))


def test_codes_stay_within_the_observers_range() -> None:
    observer = MinMaxObserver(**SYMMETRIC, quant_min=-16, quant_max=15)
    observer(torch.tensor([-1.0, 1.0]))
    codes = quantize_weight(torch.tensor([[-9.0, 0.0, 9.0]]), observer).int_repr()
    assert codes.tolist() == [[-16, 0, 15]]


def test_four_bit_codes_stay_within_the_observers_range() -> None:
    observer = PerChannelMinMaxObserver(
        dtype=torch.quint4x2, qscheme=torch.per_channel_affine_float_qparams, quant_min=0, quant_max=7
    )
    observer(torch.tensor([[0.0, 7.0]]))
    assert quantize_weight(torch.tensor([[0.0, 15.0]]), observer).dequantize().tolist() == [[0.0, 7.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_weight_is_quantized_from_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 3, dtype=dtype)
    observer = MinMaxObserver(**SYMMETRIC)
    observer(weight.float())
    assert torch.equal(quantize_weight(weight, observer), quantize_weight(weight.float(), observer))


def test_a_parameter_is_left_as_it_was() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    before = weight.detach().clone()
    observer = MinMaxObserver(**SYMMETRIC)
    observer(weight)
    assert not quantize_weight(weight, observer).requires_grad
    assert torch.equal(weight, before) and weight.requires_grad


@pytest.mark.parametrize(
    "observer",
    [
        MinMaxObserver(**SYMMETRIC),
        PerChannelMinMaxObserver(**PER_CHANNEL),
        FakeQuantize(MovingAverageMinMaxObserver, **SYMMETRIC, quant_min=-128, quant_max=127),
    ],
    ids=lambda o: type(o).__name__,
)
def test_an_observer_without_data_is_refused(observer: nn.Module) -> None:
    with pytest.raises(InvalidRequest, match="has seen no data; run it on the weight first"):
        quantize_weight(torch.ones(2, 2), observer)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad: float) -> None:
    weight = torch.tensor([[1.0, bad]])
    observer = MinMaxObserver(**SYMMETRIC)
    observer(torch.ones(1))
    with pytest.raises(InvalidRequest, match=r"weight of shape \(1, 2\) holds NaN or infinity"):
        quantize_weight(weight, observer)


def test_another_weight_with_other_channels_is_refused() -> None:
    observer = PerChannelMinMaxObserver(**PER_CHANNEL)
    observer(torch.ones(3, 2))
    with pytest.raises(
        InvalidRequest, match=r"has 3 scales, but the weight of shape \(4, 2\) has 4 channels"
    ):
        quantize_weight(torch.ones(4, 2), observer)


@pytest.mark.parametrize(
    "observer", [nn.Identity(), PlaceholderObserver(dtype=torch.float16), NoopObserver()]
)
def test_what_computes_no_parameters_is_refused(observer: nn.Module) -> None:
    with pytest.raises(Exception, match=type(observer).__name__):
        quantize_weight(torch.ones(2, 2), observer)


def test_a_dtype_that_weights_are_not_stored_in_is_refused() -> None:
    observer = MinMaxObserver(dtype=torch.int16, qscheme=torch.per_tensor_symmetric)
    observer(torch.ones(2, 2))
    with pytest.raises(InvalidRequest, match=r"dtype torch\.int16; weights are stored as torch\.qint8"):
        quantize_weight(torch.ones(2, 2), observer)


def observed(observer: nn.Module, *data: Tensor) -> nn.Module:
    module = nn.Linear(2, 2)
    for batch in data:
        observer(batch)
    module.activation_post_process = observer
    return module


@pytest.mark.parametrize(
    "module",
    [nn.Linear(2, 2), observed(PlaceholderObserver()), observed(NoopObserver(dtype=torch.float32))],
    ids=["not observed", "placeholder", "noop"],
)
def test_a_float_output_has_neutral_parameters(module: nn.Module) -> None:
    assert output_qparams(module) == (1.0, 0)


def test_output_parameters_are_plain_numbers() -> None:
    scale, zero_point = output_qparams(observed(MinMaxObserver(), torch.tensor([-1.0, 2.0])))
    assert type(scale) is float and type(zero_point) is int
    assert (round(scale, 6), zero_point) == (0.011765, 85)


def test_a_per_channel_output_is_refused() -> None:
    module = observed(PerChannelMinMaxObserver(), torch.randn(3, 2))
    with pytest.raises(
        InvalidRequest, match=r"PerChannelMinMaxObserver of Linear gives 3 scales; .*per-tensor"
    ):
        output_qparams(module)


def test_an_identity_as_output_observer_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"Identity .* computes no scale and zero point; .*qconfig"):
        output_qparams(observed(nn.Identity()))


def test_parameters_are_asked_for_once() -> None:
    calls: list[int] = []

    class Counting(MinMaxObserver):
        def calculate_qparams(self) -> tuple[Tensor, Tensor]:
            calls.append(1)
            return super().calculate_qparams()

    observer = Counting()
    observer(torch.tensor([0.0, 1.0]))
    qparams = QParams.of(observer)
    assert (len(calls), qparams.dtype, qparams.ch_axis) == (1, torch.quint8, -1)


@pytest.mark.parametrize("shape", [(3, 5), (1030, 1030), (6, 2, 3, 3), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", ["default_weight_observer", "default_per_channel_weight_observer"])
def test_codes_are_those_of_torch_whatever_the_shape_and_dtype(
    make: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if len(shape) == 1 and "channel" in make:
        pytest.skip("per channel needs two dimensions")
    weight, observer = torch.randn(shape).to(dtype), getattr(observers, make)()
    observer(weight)
    qparams, values = QParams.of(observer), weight.float()
    if qparams.ch_axis == 0:
        scale, zero_point = qparams.scale.double(), qparams.zero_point.long()
        expected = torch.quantize_per_channel(values, scale, zero_point, 0, torch.qint8)
    else:
        scale, zero_point = float(qparams.scale), int(qparams.zero_point)
        expected = torch.quantize_per_tensor(values, scale, zero_point, torch.qint8)
    got = quantize_weight(weight, observer)
    assert torch.equal(got, expected)
    assert torch.equal(got.int_repr(), expected.int_repr())


def test_a_weight_that_is_not_contiguous_keeps_its_layout() -> None:
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    observer = observers.default_per_channel_weight_observer()
    got = quantize_weight(observer(weight), observer)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.contiguous(), quantize_weight(weight.contiguous(), observer))


def test_a_quantized_weight_in_pages_of_its_own_is_a_tensor_like_any_other(tmp_path: Path) -> None:
    observer = observers.default_per_channel_weight_observer()
    weight = quantize_weight(observer(torch.randn(1030, 1030)), observer)
    torch.save(weight, tmp_path / "weight.pt")
    read = torch.load(tmp_path / "weight.pt", weights_only=False)
    for copied in (weight.clone(), copy.deepcopy(weight), read):
        assert torch.equal(copied, weight)
        assert torch.equal(copied.int_repr(), weight.int_repr())
