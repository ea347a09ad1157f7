"""The fused fake quantizer against torch's fused operator, bit for bit, over sequences of batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

import observers
from eagerquant_native import kernel
from observers import FusedMovingAvgObsFakeQuantize, MovingAveragePerChannelMinMaxObserver
from observers.moving_average import observe_and_round_scaled
from tests.observers.ways import LEVELS, going, ways

RANGES = [(0, 255, torch.quint8), (0, 127, torch.quint8), (-128, 127, torch.qint8), (-127, 127, torch.qint8)]
SHAPES = [(5, 7), (40, 3, 3, 3), (8, 40, 7, 7), (4, 1000), (70, 33, 5)]
SCHEMES = [
    torch.per_tensor_affine,
    torch.per_tensor_symmetric,
    torch.per_channel_affine,
    torch.per_channel_symmetric,
]


def make(qscheme: torch.qscheme, levels: Any, constant: float) -> FusedMovingAvgObsFakeQuantize:
    low, high, dtype = levels
    options: dict[str, Any] = {"quant_min": low, "quant_max": high, "dtype": dtype, "qscheme": qscheme}
    if qscheme in SCHEMES[2:]:
        options.update(observer=MovingAveragePerChannelMinMaxObserver, ch_axis=0)
    return FusedMovingAvgObsFakeQuantize(averaging_constant=constant, **options)


def by_operator(module: FusedMovingAvgObsFakeQuantize, x: torch.Tensor) -> torch.Tensor:
    observer: Any = module.activation_post_process
    return torch.fused_moving_avg_obs_fake_quant(
        x,
        module.observer_enabled,
        module.fake_quant_enabled,
        observer.min_val,
        observer.max_val,
        module.scale,
        module.zero_point,
        observer.averaging_constant,
        observer.quant_min,
        observer.quant_max,
        module.ch_axis,
        module.is_per_channel,
        module.is_symmetric_quant,
    )


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@ways
@settings(deadline=None, max_examples=60)
@given(
    qscheme=st.sampled_from(SCHEMES),
    levels=st.sampled_from(RANGES),
    constant=st.sampled_from([0.01, 0.3, 1.0]),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    batches=st.lists(
        st.tuples(
            st.integers(-3, 2),  # power of ten
            st.sampled_from([0.0, 1.0, -3.0]),  # shift
            st.booleans(),  # channels last
            st.booleans(),  # the observer is on
            st.integers(0, 9),  # rounding is off at zero
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**31),
)
def test_sequences_of_batches(
    way: str, qscheme: Any, levels: Any, constant: float, shape: Any, dtype: Any, batches: Any, seed: int
) -> None:
    module = make(qscheme, levels, constant)
    reference = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    for index, (power, shift, last, observing, rounding) in enumerate(batches):
        x = (torch.randn(shape, generator=generator) * 10.0**power + shift).to(dtype)
        if last and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        for each in (module, reference):
            each.enable_observer(observing or index == 0)
            each.enable_fake_quant(rounding > 0 or index == 0)
        a, b = x.detach().requires_grad_(), x.detach().requires_grad_()
        gradient = torch.randn(shape, generator=generator).to(dtype)
        expected = by_operator(reference, b.float()).to(dtype)
        expected.backward(gradient)
        with going(way):
            y = module(a)
            y.backward(gradient)
        assert torch.equal(y, expected) and y.stride() == expected.stride()
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
        assert_same_state(module, reference)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=500)
@given(
    a=st.floats(width=32, allow_nan=False, allow_infinity=False),
    b=st.floats(width=32, allow_nan=False, allow_infinity=False),
    symmetric=st.booleans(),
    mirrored=st.booleans(),
    levels=st.sampled_from([*RANGES, (-8, 7, None), (0, 65535, None), (-32768, 32767, None)]),
)
def test_the_scale_of_the_kernel_is_the_operators(
    level: str, a: float, b: float, symmetric: bool, mirrored: bool, levels: Any
) -> None:
    low, high = sorted((-abs(a), abs(a)) if mirrored else (a, b))
    found = []
    for way in ("kernel", "operator"):
        bounds, flag = [torch.tensor(low), torch.tensor(high)], torch.tensor([1])
        scale, zero_point, x = torch.tensor([1.0]), torch.tensor([0], dtype=torch.int32), torch.zeros(1)
        if way == "kernel":
            addresses = [bound.data_ptr() for bound in bounds]
            qparams = scale.data_ptr(), zero_point.data_ptr()
            run = kernel("observe_tensor", level)
            assert run(x.data_ptr(), 1, 0, *addresses, 0.01, *levels[:2], symmetric, *qparams) == 0
        else:
            arguments = (flag * 0, flag, *bounds, scale, zero_point, 0.01, *levels[:2], 0, False, symmetric)
            torch.fused_moving_avg_obs_fake_quant(x, *arguments)
        found.append((scale.item(), zero_point.item()))
    assert found[0] == found[1]


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore::observers.QuantizationWarning")
def test_a_batch_that_is_not_finite_changes_no_channel_by_halves(way: str, dtype: torch.dtype) -> None:
    module = observers.default_fused_per_channel_wt_fake_quant()
    x = torch.randn(4, 50).to(dtype)
    with going(way):
        module(x)
        expected = copy.deepcopy(module)
        expected(torch.stack([x[0], x[1], x[2] * 2, x[3]]))
        bad = torch.stack([x[0], x[1], x[2] * 2, x[3]])
        bad[3, bad[3].abs().argmin()] = float("nan")
        y = module(bad)
    assert_same_state(module, expected)
    rounded = torch.fake_quantize_per_channel_affine(bad, module.scale, module.zero_point, 0, -128, 127)
    assert torch.equal(y, rounded)


def test_copies_and_pickles_go_on_alike(tmp_path: Any) -> None:
    module = observers.default_fused_per_channel_wt_fake_quant()
    x = torch.randn(4, 50)
    module(x)
    torch.save(module, tmp_path / "module.pt")
    others = [copy.deepcopy(module), torch.load(tmp_path / "module.pt", weights_only=False)]
    for other in others:
        assert torch.equal(other(x * 2), copy.deepcopy(module)(x * 2))


@pytest.mark.parametrize("name", ["default_fused_act_fake_quant", "default_fused_per_channel_wt_fake_quant"])
def test_compiles_to_one_graph(name: str) -> None:
    module = getattr(observers, name)()
    module(torch.randn(4, 50))
    reference, x = copy.deepcopy(module), torch.randn(4, 50) * 2
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), reference(x))
    assert_same_state(module, reference)


# --- times a factor ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 70), (64, 40, 5, 5), (4, 3, 3, 2, 5)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("last", [False, True], ids=["", "gradient channels last"])
def test_at_once_is_the_two_steps(level: str, shape: Any, layout: torch.memory_format, last: bool) -> None:
    module = observers.default_fused_per_channel_wt_fake_quant()
    module(torch.randn(shape))
    other = copy.deepcopy(module)
    x, factor, gradient = torch.randn(shape), torch.randn(shape[0]), torch.randn(shape)
    if len(shape) == 4:
        x = x.to(memory_format=layout)
    if last and len(shape) > 3:
        gradient = gradient.movedim(1, -1).contiguous().movedim(-1, 1)
    found = []
    for which in ("at once", "steps"):
        a, f = x.detach().requires_grad_(), factor.clone().requires_grad_()
        with going(level):
            if which == "at once":
                y = observe_and_round_scaled(a, f, module)
                assert y is not None
            else:
                y = other(a * f.reshape([-1] + [1] * (a.dim() - 1)))
            y.backward(gradient)
        found.append((y, y.stride(), a.grad, f.grad))
    for once, steps in zip(*found, strict=True):
        assert torch.equal(once, steps) if isinstance(once, torch.Tensor) else once == steps
    assert_same_state(module, other)


@pytest.mark.parametrize("level", LEVELS)
def test_a_second_derivative_at_once(level: str) -> None:
    module = observers.default_fused_per_channel_wt_fake_quant()
    module(torch.randn(3, 40))
    x, factor, found = torch.randn(3, 40), torch.randn(3), []
    for which in ("at once", "steps"):
        a, f = x.clone().requires_grad_(), factor.clone().requires_grad_()
        with going(level):
            y = observe_and_round_scaled(a, f, module) if which == "at once" else module(a * f[:, None])
            assert y is not None
            first = torch.autograd.grad((y**3).sum(), (a, f), create_graph=True)
            module.disable_observer()
            found.append(torch.autograd.grad(first[0].square().sum() + first[1].sum(), (a, f)))
    for once, steps in zip(*found, strict=True):
        torch.testing.assert_close(once, steps)


@pytest.mark.parametrize("level", LEVELS)
def test_what_does_not_suit_is_left_alone(level: str) -> None:
    per_tensor, fresh = (
        observers.default_fused_act_fake_quant(),
        observers.default_fused_per_channel_wt_fake_quant(),
    )
    x, factor = torch.randn(3, 40), torch.ones(3)
    before = copy.deepcopy(fresh)
    with going(level):
        assert observe_and_round_scaled(x, factor, per_tensor) is None
        assert observe_and_round_scaled(x, factor, fresh) is None  # it does not know its channels yet
        fresh(x)
        assert observe_and_round_scaled(x, torch.ones(4), fresh) is None
        assert observe_and_round_scaled(x.double(), factor, fresh) is None
        state = copy.deepcopy(fresh)
        assert observe_and_round_scaled(x * float("inf"), factor, fresh) is None
    assert_same_state(fresh, state)
    assert before.activation_post_process.min_val.numel() == 0
