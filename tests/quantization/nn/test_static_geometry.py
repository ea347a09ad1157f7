"""Padding, ranks, channel counts and input types of statically quantized layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import observers
from quantization.errors import InvalidRequest, QuantizationError, Unsupported
from quantization.nn import dynamic, quantized
from quantization.nn.families import conv as families
from quantization.nn.families.family import Family
from quantization.nn.families.linear import LINEAR
from tests.quantization.nn.weighted_cases import PER_TENSOR, build, fill, same, scripted

PADDINGS = [
    pytest.param("same", 3, 1, id="same"),
    pytest.param("same", 4, 1, id="same-odd-total"),
    pytest.param("same", 2, 2, id="same-dilated"),
    pytest.param("valid", 3, 1, id="valid"),
    pytest.param(1, 3, 1, id="number"),
    pytest.param(2, 3, 2, id="dilated"),
]


def quantized_input(rank: int) -> Tensor:
    return torch.quantize_per_tensor(torch.randn(2, 4, *[7] * rank), 0.02, 100, torch.quint8)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of the float layer
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("padding", "kernel", "dilation"), PADDINGS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_padding_follows_the_float_layer(
    rank: int, padding: Any, kernel: int, dilation: int, mode: str
) -> None:
    if rank == 3 and torch.backends.quantized.engine == "qnnpack":
        pytest.skip("qnnpack cannot unpack a three-dimensional weight")
    cls = getattr(nn, f"Conv{rank}d")
    layer = cls(4, 6, kernel, padding=padding, dilation=dilation, padding_mode=mode)
    x = quantized_input(rank)
    layer.qconfig = PER_TENSOR
    layer.activation_post_process = observers.MinMaxObserver()
    layer.activation_post_process(layer(x.dequantize()))
    module = getattr(quantized, f"Conv{rank}d").from_float(layer)

    simulated = copy.deepcopy(layer)
    simulated.weight.data = module.weight().dequantize()
    real = simulated(x.dequantize()).detach()
    expected = torch.quantize_per_tensor(real, module.scale, module.zero_point, torch.quint8)

    y = module(x)
    assert y.shape == expected.shape
    # The integer kernel sums exactly, the float one does not: they may round one code apart.
    assert (y.int_repr().int() - expected.int_repr().int()).abs().max() <= 1
    assert all(same(script(x), y) for _, script in scripted(module))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("padding", "kernel", "dilation"), PADDINGS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dynamic_padding_equals_padding_the_input(
    rank: int, padding: Any, kernel: int, dilation: int, mode: str
) -> None:
    if rank == 3 and torch.backends.quantized.engine == "qnnpack":
        pytest.skip("qnnpack cannot unpack a three-dimensional weight")
    cls = getattr(dynamic, f"Conv{rank}d")
    module = build(lambda: cls(4, 6, kernel, padding=padding, dilation=dilation, padding_mode=mode))
    plain = build(lambda: cls(4, 6, kernel, dilation=dilation))
    plain.load_state_dict(fill(module).state_dict())
    layer = getattr(nn, f"Conv{rank}d")(4, 6, kernel, padding=padding, dilation=dilation)
    x = torch.randn(2, 4, *[7] * rank)
    sides = layer._reversed_padding_repeated_twice
    padded = F.pad(x, sides, "constant" if mode == "zeros" else mode)
    assert torch.equal(module(x), plain(padded))


def test_padding_shows_as_numbers() -> None:
    assert quantized.Conv2d(1, 1, 3, padding="same").padding == (1, 1)
    assert quantized.Conv2d(1, 1, (3, 5), padding="valid").padding == (0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: quantized.Conv2d(3, 3, 3, padding="same", stride=2), "stride 1.*2, 2", id="same-stride"
        ),
        pytest.param(
            lambda: quantized.Conv2d(3, 3, 3, padding="sam"), "'same' or 'valid', but got 'sam'", id="text"
        ),
        pytest.param(lambda: quantized.Conv2d(3, 3, 3, padding_mode="edge"), "got 'edge'", id="mode"),
        pytest.param(
            lambda: quantized.ConvTranspose2d(3, 3, 3, padding_mode="reflect"),
            "'zeros'.*'reflect'",
            id="transposed",
        ),
        pytest.param(
            lambda: quantized.Conv2d(3, 4, 3, groups=2), "in_channels must be divisible.*3", id="in"
        ),
        pytest.param(
            lambda: quantized.Conv2d(4, 3, 3, groups=2), "out_channels must be divisible.*3", id="out"
        ),
        pytest.param(
            lambda: quantized.Linear(3, 3, dtype=torch.quint8), "Unsupported dtype.*quint8", id="dtype"
        ),
    ],
)
def test_impossible_geometry_is_refused(make: Any, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        make()


def test_failed_request_types_are_those_callers_catch() -> None:
    assert issubclass(InvalidRequest, AssertionError)
    assert issubclass(Unsupported, RuntimeError)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3, 4, 4)], ids=["rank-1", "rank-5"])
def test_wrong_rank_names_the_expected_shape(shape: tuple[int, ...]) -> None:
    x = torch.quantize_per_tensor(torch.randn(shape), 0.1, 0, torch.quint8)
    module = quantized.Conv2d(3, 3, 1)
    for run in (module, *(script for _, script in scripted(module))):
        with pytest.raises(
            Exception, match=r"\(N, C, H, W\).*this convolution has 2, but the input has shape"
        ):
            run(x)


@pytest.mark.parametrize(
    "module", [quantized.Linear(4, 2), quantized.Conv1d(4, 2, 1)], ids=["Linear", "Conv1d"]
)
def test_float_input_is_refused_with_the_cure(module: nn.Module) -> None:
    with pytest.raises(
        QuantizationError, match=f"Input to '{type(module).__name__}' must be quantized.*QuantStub"
    ):
        module(torch.randn(1, 4, 4))


@pytest.mark.parametrize(
    "family",
    [LINEAR, families.CONV1D, families.CONV2D, families.CONV3D],
    ids=lambda family: family.float_types[0].__name__,
)
def test_family_describes_its_float_layer(family: Family) -> None:
    for kind in family.float_types:
        module = kind(4, 6) if family.rank == 0 else kind(4, 6, 3, padding=1, groups=2)
        geometry = family.geometry(module)
        assert family.weight_shape(geometry) == module.weight.shape
        assert family.describes(module)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_family_describes_transposed_convolutions(rank: int) -> None:
    family = getattr(families, f"CONV_TRANSPOSE{rank}D")
    module = family.float_types[0](4, 6, 3, stride=2, output_padding=1, groups=2)
    assert family.weight_shape(family.geometry(module)) == module.weight.shape
