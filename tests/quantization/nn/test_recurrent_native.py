"""Dynamic LSTM and GRU layers on the compiled kernel, against torch's operator, at every level of CPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from eagerquant_native import kernel, levels
from quantization.backends import native_recurrent
from quantization.nn import dynamic as nnqd
from quantization.nn.recurrent import native
from quantization.qconfig import default_dynamic_qconfig, float16_dynamic_qconfig, per_channel_dynamic_qconfig

LEVELS = [level for level in levels() if kernel("recurrent_dynamic", level)]
pytestmark = pytest.mark.skipif(not LEVELS, reason="no kernel for recurrent layers runs here")

each_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU"])
# One step rounds like torch's, except for sigmoid and tanh: within 3 units in the last place, and so is what
# is made of their products and sums, all of them below 4 here.
ULPS = {"rtol": 0, "atol": 2e-6}
# Over time a hidden value on the edge between two codes can fall to the other side: one code of 127, times a
# weight, for each that does.
CODES = {"rtol": 0, "atol": 0.02}


@pytest.fixture(autouse=True)
def _engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    yield
    torch.backends.quantized.engine = before


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native_recurrent, "kernel", lambda name: kernel(name, request.param) or kernel(name))
    return request.param


def made(kind: str, hidden: int, qconfig: Any = default_dynamic_qconfig, inputs: int = 6, **form: Any) -> Any:
    mod = getattr(nn, kind)(inputs, hidden, **form)
    mod.qconfig = qconfig
    return getattr(nnqd, kind).from_float(mod)


def by_torch(layer: nn.Module, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_recurrent, "can_run", lambda tensors: False)
        return layer(*arguments)


def by_kernel(layer: nn.Module, *arguments: Any) -> Any:
    """The result, once it is sure that the kernel ran."""
    calls: list[bool] = []
    run_cell = native_recurrent.run_cell

    def counted(*args: Any) -> bool:
        calls.append(run_cell(*args))
        return calls[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_recurrent, "run_cell", counted)
        result = layer(*arguments)
    assert calls and all(calls)
    return result


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in flat(part)]


def assert_near(one: Any, other: Any, tolerance: dict[str, float]) -> None:
    for a, b in zip(flat(one), flat(other), strict=True):
        assert a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerance)


def state_of(kind: str, *shape: int) -> Any:
    hidden = torch.rand(*shape) * 2 - 1
    return (hidden, torch.randn(*shape)) if kind == "LSTM" else hidden


def steady(steps: int, batch: int, inputs: int = 6) -> Tensor:
    """Input of which every step has the same range, so that a step alone has the same codes."""
    x = torch.rand(steps, batch, inputs) * 2 - 1
    x[..., 0], x[..., 1] = -1.0, 1.0
    return x


@each_kind
@pytest.mark.parametrize(
    "qconfig", [default_dynamic_qconfig, per_channel_dynamic_qconfig], ids=["one", "rows"]
)
@pytest.mark.parametrize("batch", [1, 2, 7, 9, 240])
@pytest.mark.parametrize("hidden", [5, 70])
@pytest.mark.usefixtures("three_threads")
def test_a_step_is_torchs(level: str, kind: str, qconfig: Any, batch: int, hidden: int) -> None:
    layer, x, state = made(kind, hidden, qconfig), torch.randn(1, batch, 6), state_of(kind, 1, batch, hidden)
    before = copy.deepcopy(state)
    assert_near(by_kernel(layer, x, state), by_torch(layer, x, state), ULPS)
    assert all(torch.equal(a, b) for a, b in zip(flat(state), flat(before), strict=True))


@each_kind
@pytest.mark.parametrize("batch", [1, 9, 240])
@pytest.mark.parametrize("hidden", [5, 70])
@pytest.mark.usefixtures("three_threads")
def test_a_sequence_is_its_steps(level: str, kind: str, batch: int, hidden: int) -> None:
    layer, x, state = made(kind, hidden), steady(4, batch), state_of(kind, 1, batch, hidden)
    output, last = by_kernel(layer, x, state)
    for t in range(4):
        step, state = by_kernel(layer, x[t : t + 1], state)
        assert torch.equal(step[0], output[t])
    assert all(torch.equal(a, b) for a, b in zip(flat(last), flat(state), strict=True))


@each_kind
@pytest.mark.parametrize(
    "form",
    [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "batch_first": True}],
    ids=["plain", "no-bias", "deep-both-ways", "batch-first"],
)
def test_forms_follow_torchs(level: str, kind: str, form: dict[str, Any]) -> None:
    layer, x = made(kind, 20, **form), torch.randn(6, 3, 6)
    batch = 6 if form.get("batch_first") else 3
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    for arguments in ((x,), (x, state_of(kind, rows, batch, 20)), (x[:, :1].transpose(0, 1),)):
        assert_near(by_kernel(layer, *arguments), by_torch(layer, *arguments), CODES)
    assert_near(by_kernel(layer, x[:, 0]), by_torch(layer, x[:, 0]), CODES)


@each_kind
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences_follow_torchs(level: str, kind: str, enforce_sorted: bool) -> None:
    layer = made(kind, 20, num_layers=2, bidirectional=True)
    lengths = [5, 4, 4, 1] if enforce_sorted else [2, 5, 1, 4]
    packed = pack_sequence([torch.randn(n, 6) for n in lengths], enforce_sorted=enforce_sorted)
    for arguments in ((packed,), (packed, state_of(kind, 4, 4, 20))):
        assert_near(by_kernel(layer, *arguments), by_torch(layer, *arguments), CODES)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spread", [1e-3, 0.1, 1.0, 10.0])
def test_gates_are_exact_but_for_the_last_place(level: str, spread: float) -> None:
    x = torch.randn(1 << 14) * spread
    sigmoid, tanh = torch.empty_like(x), torch.empty_like(x)
    kernel("gate_functions", level)(x.data_ptr(), x.numel(), sigmoid.data_ptr(), tanh.data_ptr())
    for got, exact in ((sigmoid, x.double().sigmoid()), (tanh, x.double().tanh())):
        nearest = exact.float().abs()
        last_place = torch.nextafter(nearest, torch.tensor(torch.inf)) - nearest
        assert ((got - exact).abs() / last_place).max() <= 3


@pytest.mark.parametrize("level", LEVELS)
def test_gates_at_the_ends(level: str) -> None:
    x = torch.tensor([0.0, -0.0, 200.0, -200.0, torch.inf, -torch.inf, torch.nan, 1e-40] * 2)
    sigmoid, tanh = torch.empty_like(x), torch.empty_like(x)
    kernel("gate_functions", level)(x.data_ptr(), x.numel(), sigmoid.data_ptr(), tanh.data_ptr())
    torch.testing.assert_close(sigmoid, x.sigmoid(), rtol=0, atol=1e-37, equal_nan=True)
    torch.testing.assert_close(tanh, x.tanh(), rtol=0, atol=1e-44, equal_nan=True)
    assert torch.equal(tanh.signbit()[:6], x.signbit()[:6])


@each_kind
def test_nan_is_left_to_torch(kind: str) -> None:
    layer, x, state = made(kind, 20), torch.randn(3, 2, 6), state_of(kind, 1, 2, 20)
    flat(state)[0][0, 1, 3] = torch.nan
    spoilt = x.clone()
    spoilt[1, 1, 2] = torch.nan
    for arguments in ((x, state), (spoilt,)):
        for a, b in both(layer, *arguments):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@each_kind
def test_infinity_is_refused_as_by_torch(kind: str) -> None:
    layer, x = made(kind, 20), torch.randn(3, 2, 6)
    x[1, 1, 2] = torch.inf
    for run in (layer, lambda x: by_torch(layer, x)):
        with pytest.raises(RuntimeError, match="min should be less than or equal to max"):
            run(x)


def both(layer: nn.Module, *arguments: Any) -> list[tuple[Tensor, Tensor]]:
    return list(zip(flat(layer(*arguments)), flat(by_torch(layer, *arguments)), strict=True))


@each_kind
def test_other_engines_and_float16_stay_torchs(engine: str, kind: str) -> None:
    if engine != "x86":
        layer = made(kind, 20)
    else:
        layer = made(kind, 20, float16_dynamic_qconfig)
    assert all(torch.equal(a, b) for a, b in both(layer, torch.randn(3, 2, 6)))


@each_kind
def test_weights_stay_with_the_engine_that_packed_them(engine: str, kind: str) -> None:
    layer, x = made(kind, 20), torch.randn(1, 2, 6)
    torch.backends.quantized.engine = "x86"
    assert_near(layer(x), by_torch(layer, x), ULPS)


@each_kind
def test_gradients_and_dropout_are_left_to_torch(kind: str) -> None:
    layer, x = made(kind, 20), torch.randn(3, 2, 6)
    state = state_of(kind, 1, 2, 20)
    for part in flat(state):
        part.requires_grad_()
    assert layer(x, state)[0].requires_grad == by_torch(layer, x, state)[0].requires_grad
    assert all(torch.equal(a, b) for a, b in both(layer, x, state))
    deep = made(kind, 20, num_layers=2, dropout=0.5).train()
    results = []
    for run in (deep, lambda x: by_torch(deep, x)):
        torch.manual_seed(1)
        results.append(run(x)[0])
    assert torch.equal(*results)


@each_kind
def test_other_weights_give_other_numbers(kind: str) -> None:
    one, other, x = made(kind, 20), made(kind, 20), torch.randn(3, 2, 6)
    first, second = by_kernel(one, x)[0], by_kernel(other, x)[0]
    assert not torch.equal(first, second)
    one.load_state_dict(other.state_dict())
    assert torch.equal(by_kernel(one, x)[0], second)
    one._all_weight_values[0].param = made(kind, 20)._all_weight_values[0].param
    assert not torch.equal(by_kernel(one, x)[0], second)
    one.set_weight_bias({**other.get_weight(), **other.get_bias()})
    assert torch.equal(by_kernel(one, x)[0], second)


@each_kind
def test_nothing_of_it_is_on_the_module(kind: str) -> None:
    layer, x = made(kind, 20), torch.randn(3, 2, 6)
    names, keys, known = dir(layer), list(layer.state_dict()), len(native._cells)
    expected = by_kernel(layer, x)[0]
    assert len(native._cells) == known + 1
    assert dir(layer) == names and list(layer.state_dict()) == keys
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied._all_weight_values[0] not in native._cells
        assert torch.equal(by_kernel(copied, x)[0], expected)
    del layer, copied
    assert len(native._cells) <= known


@each_kind
def test_wrong_input_is_refused_before(kind: str) -> None:
    layer = made(kind, 20)
    with pytest.raises(RuntimeError, match="Expected 6, got 7"):
        layer(torch.randn(3, 2, 7))
    with pytest.raises(RuntimeError, match=r"Expected hidden(\[0\])? size"):
        layer(torch.randn(3, 2, 6), state_of(kind, 1, 3, 20))


def test_weights_with_zero_points_have_no_place() -> None:
    weight = torch.quantize_per_tensor(torch.randn(20, 5), 0.1, 3, torch.qint8)
    bias = torch.zeros(20)
    assert native_recurrent.pack_cell(weight, weight, bias, bias, True) is None
