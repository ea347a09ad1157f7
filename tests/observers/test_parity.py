"""Bit for bit the numbers of torch.ao, run as a black box."""

from __future__ import annotations

import itertools

import pytest
import torch

import observers
from tests.support import quiet_ao

ao = pytest.importorskip("torch.ao.quantization")
ao_observer = pytest.importorskip("torch.ao.quantization.observer")
ao_fake = pytest.importorskip("torch.ao.quantization.fake_quantize")

DTYPES = [
    torch.qint8,
    torch.quint8,
    torch.quint4x2,
    torch.qint32,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.uint16,
]
PER_TENSOR = [torch.per_tensor_affine, torch.per_tensor_symmetric]
PER_CHANNEL = [
    torch.per_channel_affine,
    torch.per_channel_symmetric,
    torch.per_channel_affine_float_qparams,
]
KINDS = {
    "MinMaxObserver": PER_TENSOR,
    "MovingAverageMinMaxObserver": PER_TENSOR,
    "HistogramObserver": PER_TENSOR,
    "PerChannelMinMaxObserver": PER_CHANNEL,
    "MovingAveragePerChannelMinMaxObserver": PER_CHANNEL,
}


def assert_same(ours, theirs):
    """Values, shapes and dtypes of two tensors or lists of tensors."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def assert_same_module(ours, theirs):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(list(ours.state_dict().values()), list(theirs.state_dict().values()))
    assert_same(list(ours.calculate_qparams()), list(theirs.calculate_qparams()))


def construct(namespace, name, arguments):
    """An observer, or the builtin kind of error its constructor raises."""
    try:
        with quiet_ao():
            return getattr(namespace, name)(**arguments)
    except (NotImplementedError, AssertionError) as error:
        return NotImplementedError if isinstance(error, NotImplementedError) else AssertionError


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_observers_over_batches(name, dtype):
    unsigned = dtype in (torch.quint8, torch.uint8, torch.uint16, torch.quint4x2)
    custom = [None, (0, 127), (0, 15) if unsigned else (-8, 7)]
    axes = (0, 1, -1) if "PerChannel" in name else (None,)
    for qscheme, reduce_range, span, axis in itertools.product(KINDS[name], (False, True), custom, axes):
        arguments = {"dtype": dtype, "qscheme": qscheme, "reduce_range": reduce_range}
        if span is not None:
            arguments.update(quant_min=span[0], quant_max=span[1])
        if axis is not None:
            arguments["ch_axis"] = axis
        if name == "HistogramObserver":
            arguments["bins"] = 128
        ours, theirs = construct(observers, name, arguments), construct(ao_observer, name, arguments)
        if isinstance(theirs, type):
            assert ours is theirs, arguments
            continue
        for i, layout in enumerate((torch.contiguous_format, torch.channels_last, torch.contiguous_format)):
            x = (torch.randn(3, 4, 5, 2) * (i + 1) + 0.3 * i).to(memory_format=layout)
            ours(x)
            theirs(x)
            assert_same_module(ours, theirs)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5), (1, 1, 1, 1, 6), (0, 3)], ids=str)
@pytest.mark.parametrize("name", ["MinMaxObserver", "MovingAverageMinMaxObserver", "HistogramObserver"])
def test_shapes(name, shape):
    ours, theirs = getattr(observers, name)(), getattr(ao_observer, name)()
    for factor in (1.0, 3.0, 0.5):
        x = torch.randn(shape) * factor
        ours(x)
        theirs(x)
    assert_same(list(ours.state_dict().values()), list(theirs.state_dict().values()))


DISTRIBUTIONS = {
    "normal": lambda: torch.randn(2000),
    "relu": lambda: torch.relu(torch.randn(2000)),
    "heavy tail": lambda: torch.randn(2000) ** 5,
    "shifted": lambda: torch.rand(2000) + 7,
    "negative": lambda: -torch.rand(2000) - 1,
    "one outlier": lambda: torch.cat([torch.randn(5000), torch.tensor([60.0])]),
    "two values": lambda: torch.tensor([0.0, 1.0]).repeat(100),
    "constant": lambda: torch.full((10,), 3.0),
    "tiny": lambda: torch.randn(500) * 1e-6,
    "huge": lambda: torch.randn(500) * 1e6,
    "single": lambda: torch.randn(1),
}


@pytest.mark.parametrize("bins", [16, 100, 2048])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_histograms_and_their_search(name, bins):
    for dtype, qscheme in itertools.product((torch.quint8, torch.qint8), PER_TENSOR):
        ours = observers.HistogramObserver(bins=bins, dtype=dtype, qscheme=qscheme)
        theirs = ao.HistogramObserver(bins=bins, dtype=dtype, qscheme=qscheme)
        for factor in (1.0, 0.5, 2.5):
            x = DISTRIBUTIONS[name]() * factor
            ours(x)
            theirs(x)
        assert_same_module(ours, theirs)


def test_the_error_of_a_range():
    ours, theirs = observers.HistogramObserver(), ao.HistogramObserver()
    x = torch.randn(5000)
    ours(x)
    theirs(x)
    for start, end in ((0, 2047), (10, 2000), (900, 1100), (5, 5)):
        assert ours._compute_quantization_error(start, end) == theirs._compute_quantization_error(start, end)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "name", ["MinMaxObserver", "MovingAverageMinMaxObserver", "PerChannelMinMaxObserver"]
)
def test_buffers_of_other_dtypes(name, dtype):
    ours, theirs = getattr(observers, name)().to(dtype), getattr(ao_observer, name)().to(dtype)
    for factor in (1.0, 2.0):
        x = torch.randn(3, 4) * factor
        ours(x)
        theirs(x)
    assert_same_module(ours, theirs)


FAKES = [n for n in ao_fake.__all__ if n.startswith(("default", "fused"))]


def step(module, x, gradient):
    x = x.clone().requires_grad_()
    y = module(x)
    y.backward(gradient)
    return [y.detach(), x.grad]


@pytest.mark.parametrize("name", [*FAKES, "FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
def test_fake_quantizers_forward_backward_and_buffers(name):
    with quiet_ao():
        ours, theirs = getattr(observers, name)(), getattr(ao_fake, name)()
    for i in range(5):
        x, gradient = torch.randn(4, 3, 5) * (1 + i), torch.randn(4, 3, 5)
        assert_same(step(ours, x, gradient), step(theirs, x, gradient))
        assert_same_module(ours, theirs)
        if i == 2:
            ours.apply(observers.disable_observer)
            theirs.apply(ao.disable_observer)
        if i == 3:
            ours.apply(observers.enable_observer).apply(observers.disable_fake_quant)
            theirs.apply(ao.enable_observer).apply(ao.disable_fake_quant)


LSQ_SCHEMES = [*PER_TENSOR, torch.per_channel_affine, torch.per_channel_symmetric]
LSQ_STATES = ["enable_param_learning", "enable_static_estimate", "enable_static_observation", None]


@pytest.mark.parametrize("state", LSQ_STATES)
@pytest.mark.parametrize("qscheme", LSQ_SCHEMES, ids=str)
def test_learnable_forward_backward(qscheme, state):
    module = pytest.importorskip("torch.ao.quantization._learnable_fake_quantize")
    per_channel = qscheme not in PER_TENSOR
    kind = "MovingAveragePerChannelMinMaxObserver" if per_channel else "MovingAverageMinMaxObserver"
    for scale, zero_point, scaling in itertools.product((1.0, 0.03), (0.0, 3.4), (False, True)):
        arguments = {
            "scale": scale,
            "zero_point": zero_point,
            "use_grad_scaling": scaling,
            "qscheme": qscheme,
        }
        arguments.update(quant_min=-8, quant_max=7, dtype=torch.qint8)
        if per_channel:
            arguments.update(channel_len=3, ch_axis=1)
        ours = observers._LearnableFakeQuantize(getattr(observers, kind), **arguments)
        theirs = module._LearnableFakeQuantize(getattr(ao_observer, kind), **arguments)
        for each in (ours, theirs):
            if state:
                getattr(each, state)()
        for _ in range(2):
            x, gradient = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
            assert_same(step(ours, x, gradient), step(theirs, x, gradient))
            assert_same_module(ours, theirs)
            for name in ("scale", "zero_point"):
                found, expected = getattr(ours, name).grad, getattr(theirs, name).grad
                assert (found is None) == (expected is None)
                if found is not None:
                    assert_same(found, expected)
                getattr(ours, name).data.sub_(0.02)
                getattr(theirs, name).data.sub_(0.02)


def plain(factory):
    """A factory's repr without module paths."""
    text = repr(factory)
    for prefix in ("torch.ao.quantization.observer.", "torch.ao.quantization.fake_quantize."):
        text = text.replace(prefix, "")
    for name in ("minmax", "histogram", "passive", "fake_quantize"):
        text = text.replace(f"observers.{name}.", "")
    return text


@pytest.mark.parametrize("module", [ao_observer, ao_fake], ids=["observer", "fake_quantize"])
def test_every_public_name_is_here_and_every_default_has_the_same_arguments(module):
    for name in module.__all__:
        ours, theirs = getattr(observers, name), getattr(module, name)
        if hasattr(theirs, "p"):
            assert plain(ours) == plain(theirs)
        else:
            assert ours.__name__ == theirs.__name__
