"""Dynamic linear layers with all eight bits of their input, and with a range for each row of it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import quantization
from quantization import full_range_dynamic_qconfig, per_row_dynamic_qconfig, quantize_dynamic
from quantization.backends import native_linear
from quantization.nn.modes import dynamic as mode
from tests.support import ENGINES, quiet_jit

pytestmark = pytest.mark.skipif("x86" not in ENGINES, reason="the numbers of FBGEMM are compared with")
QCONFIGS = {"full range": full_range_dynamic_qconfig, "per row": per_row_dynamic_qconfig}


@pytest.fixture(autouse=True)
def _vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "has_vnni", lambda: True)


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the compiled kernel and without."""
    if request.param == "torch":
        monkeypatch.setattr(native_linear, "_RUN", None)
    elif not native_linear.is_available():
        pytest.skip("this machine has no kernel")
    return request.param


def float_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 5))


def sqnr(model: nn.Module, quantized: nn.Module, x: torch.Tensor) -> float:
    return float(quantization.compute_sqnr(model(x), quantized(x)))


@pytest.mark.usefixtures("way")
def test_each_wins_accuracy() -> None:
    model = float_model()
    with torch.no_grad():
        model[0].weight[0] *= 20  # one large row, which takes the range of a scale per tensor
    x = torch.randn(64, 64) * torch.linspace(0.1, 3, 64)[:, None]
    default = sqnr(model, quantize_dynamic(model), x)
    full = sqnr(model, quantize_dynamic(model, {nn.Linear: full_range_dynamic_qconfig}), x)
    per_row = sqnr(model, quantize_dynamic(model, {nn.Linear: per_row_dynamic_qconfig}), x)
    assert default < full < per_row


@pytest.mark.usefixtures("way")
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    quantized = quantize_dynamic(float_model(), {nn.Linear: per_row_dynamic_qconfig})
    x = torch.randn(9, 64)
    expected = quantized(x)
    x[1:] *= 1000
    assert torch.equal(quantized(x)[0], expected[0])
    assert torch.equal(quantized(x[3:4]), quantized(x)[3:4])
    default = quantize_dynamic(float_model())
    assert not torch.equal(default(x[3:4]), default(x)[3:4])  # what the qconfig is there for


@pytest.mark.parametrize("name", QCONFIGS)
def test_both_ways_give_the_same_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = float_model(), torch.randn(2, 7, 64)
    found = quantize_dynamic(model, {nn.Linear: QCONFIGS[name]})(x)
    monkeypatch.setattr(native_linear, "_RUN", None)
    assert torch.equal(found, quantize_dynamic(model, {nn.Linear: QCONFIGS[name]})(x))


@pytest.mark.parametrize("name", QCONFIGS)
@pytest.mark.usefixtures("way")
def test_the_choice_is_saved_and_loaded(name: str) -> None:
    x = torch.randn(7, 64)
    quantized = quantize_dynamic(float_model(), {nn.Linear: QCONFIGS[name]})
    expected = quantized(x)
    other = quantize_dynamic(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 5)))
    other.load_state_dict(quantized.state_dict())
    assert torch.equal(other(x), expected)
    other.load_state_dict(quantize_dynamic(float_model()).state_dict())
    assert torch.equal(other(x), quantize_dynamic(float_model())(x))
    assert torch.equal(copy.deepcopy(quantized)(x), expected)
    buffer = io.BytesIO()
    torch.save(quantized, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), expected)
    with quiet_jit():
        assert torch.equal(torch.jit.script(quantized)(x), expected)


def test_a_default_layer_saves_the_keys_of_torch_ao() -> None:
    keys = set(quantize_dynamic(float_model()).state_dict())
    assert not any("input_mode" in key for key in keys)
    chosen = quantize_dynamic(float_model(), {nn.Linear: per_row_dynamic_qconfig}).state_dict()
    assert set(chosen) - keys == {"0.input_mode", "2.input_mode"}


@pytest.mark.parametrize("name", QCONFIGS)
def test_a_cpu_without_vnni_keeps_a_bit_free(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode, "has_vnni", lambda: False)
    quantized = quantize_dynamic(float_model(), {nn.Linear: QCONFIGS[name]})
    assert quantized[0].input_mode & native_linear.REDUCE_RANGE
    assert "seven bits" in repr(quantized) or name == "full range"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(0, 64), (64,), (2, 0, 64)], ids=str)
def test_few_and_no_rows(shape: tuple[int, ...]) -> None:
    quantized = quantize_dynamic(float_model(), {nn.Linear: per_row_dynamic_qconfig})
    assert quantized(torch.randn(shape)).shape == (*shape[:-1], 5)
