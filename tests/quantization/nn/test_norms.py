"""Quantized norms: bit-equal to torch.ao on every engine, and sound through save, copy and script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from observers import MinMaxObserver
from quantization.errors import InvalidRequest, QuantizationError, QuantizationWarning
from quantization.nn import fused, norms
from quantization.qconfig import QConfig
from tests.quantization.nn.cells import LIVES, assert_identical, layout, observed, quantized, saved
from tests.support import quiet_ao

QCONFIG = QConfig(activation=MinMaxObserver, weight=MinMaxObserver.with_args(dtype=torch.qint8))


@dataclass(frozen=True)
class Case:
    """A quantized class, the float module it is made from, and an input shape."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    id: str = ""

    def calibrated(self) -> nn.Module:
        mod = self.make().eval()
        with torch.no_grad():
            for tensor in (*mod.parameters(), *(b for b in mod.buffers() if b.is_floating_point())):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
        return observed(mod, QCONFIG, torch.randn(4, *self.shape[1:]))


CASES = [
    Case("LayerNorm", lambda: nn.LayerNorm((4, 5)), (2, 3, 4, 5)),
    Case(
        "LayerNorm", lambda: nn.LayerNorm(5, eps=0.1, elementwise_affine=False), (2, 3, 5), "LayerNorm-plain"
    ),
    Case("LayerNorm", lambda: nn.LayerNorm(5, bias=False), (2, 5), "LayerNorm-no-bias"),
    Case("GroupNorm", lambda: nn.GroupNorm(2, 4), (2, 4, 6, 6)),
    Case("GroupNorm", lambda: nn.GroupNorm(2, 4, affine=False), (2, 4, 6), "GroupNorm-plain"),
    Case("InstanceNorm1d", lambda: nn.InstanceNorm1d(4, affine=True), (2, 4, 7)),
    Case("InstanceNorm2d", lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 6, 6)),
    Case("InstanceNorm2d", lambda: nn.InstanceNorm2d(4, eps=0.1), (2, 4, 6, 6), "InstanceNorm2d-plain"),
    Case("InstanceNorm3d", lambda: nn.InstanceNorm3d(4), (2, 4, 3, 3, 3)),
    Case("BatchNorm2d", lambda: nn.BatchNorm2d(4, eps=1e-3), (2, 4, 6, 6)),
    Case("BatchNorm3d", lambda: nn.BatchNorm3d(4), (2, 4, 3, 3, 3)),
    Case("BNReLU2d", lambda: fused.BNReLU2d(nn.BatchNorm2d(4), nn.ReLU()), (2, 4, 6, 6)),
    Case("BNReLU3d", lambda: fused.BNReLU3d(nn.BatchNorm3d(4), nn.ReLU()), (2, 4, 3, 3, 3)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id or c.name)


def oracle(case: Case, mod: nn.Module) -> nn.Module:
    """torch.ao's module made from the same float module and observer."""
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    nniq = pytest.importorskip("torch.ao.nn.intrinsic.quantized")
    nni = pytest.importorskip("torch.ao.nn.intrinsic")
    if isinstance(mod, fused.BNReLU2d | fused.BNReLU3d):
        twin = getattr(nni, case.name)(mod[0], mod[1])
        twin.activation_post_process = mod.activation_post_process
        mod = twin
    with quiet_ao():
        return getattr(nniq if case.name.startswith("BNReLU") else nnq, case.name).from_float(mod)


def ours(case: Case, mod: nn.Module) -> nn.Module:
    return getattr(norms, case.name).from_float(mod)


@each_case
@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8], ids=["quint8", "qint8"])
def test_outputs_equal_torch_ao(engine: str, case: Case, dtype: torch.dtype) -> None:
    mod = case.calibrated()
    x = quantized(*case.shape, dtype=dtype)
    assert_identical(ours(case, mod)(x), oracle(case, mod)(x))


@each_case
def test_state_dict_is_torch_ao_s_and_loads_both_ways(case: Case) -> None:
    mod, other = case.calibrated(), case.calibrated()
    mine, theirs = ours(case, mod), oracle(case, other)
    assert layout(mine.state_dict()) == layout(theirs.state_dict())
    assert mine.state_dict()._metadata == theirs.state_dict()._metadata
    assert mine._get_name() == theirs._get_name()
    x = quantized(*case.shape)
    theirs.load_state_dict(torch.load(saved(mine.state_dict()), weights_only=True))
    assert_identical(mine(x), theirs(x))
    fresh = ours(case, case.calibrated())
    fresh.load_state_dict(torch.load(saved(oracle(case, mod).state_dict()), weights_only=True))
    assert_identical(fresh(x), theirs(x))


@each_case
@pytest.mark.parametrize("life", LIVES)
def test_survives(case: Case, life: str) -> None:
    module = ours(case, case.calibrated())
    again = LIVES[life](module)
    x = quantized(*case.shape)
    assert_identical(again(x), module(x))
    assert layout(again.state_dict()) == layout(module.state_dict())


@each_case
def test_from_float_leaves_the_float_module_alone(case: Case) -> None:
    mod = case.calibrated()
    before = {k: v.clone() for k, v in mod.state_dict().items()}
    x = torch.randn(case.shape)
    expected = mod(x)
    ours(case, mod)
    assert torch.equal(mod(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in mod.state_dict().items())


@each_case
def test_from_reference_takes_numbers_and_tensors(case: Case) -> None:
    mod = case.calibrated()
    cls = getattr(norms, case.name)
    x = quantized(*case.shape)
    plain = cls.from_reference(mod, 0.25, 7)(x)
    assert plain.q_scale() == 0.25
    assert plain.q_zero_point() == 7
    assert_identical(cls.from_reference(mod, torch.tensor(0.25), torch.tensor(7))(x), plain)


@each_case
def test_float_input_is_refused_with_the_cure(case: Case) -> None:
    with pytest.raises(QuantizationError, match=r"must be quantized.*QuantStub"):
        ours(case, case.calibrated())(torch.randn(case.shape))


@each_case
def test_a_module_that_was_not_prepared_is_refused(case: Case) -> None:
    with pytest.raises(InvalidRequest, match="must have activation_post_process"):
        getattr(norms, case.name).from_float(case.make())


@each_case
def test_a_module_of_another_kind_is_refused(case: Case) -> None:
    mod = observed(nn.Identity(), QCONFIG, torch.randn(3))
    with pytest.raises(InvalidRequest, match="Identity has no"):
        getattr(norms, case.name).from_float(mod)


@pytest.mark.parametrize(("name", "shape"), [("BatchNorm2d", (4, 6, 6)), ("BNReLU3d", (2, 4, 6, 6))])
def test_batch_norm_refuses_another_rank(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Input shape must be `\(N, C"):
        getattr(norms, name)(4)(quantized(*shape))


def test_batch_norm_without_running_statistics_is_refused() -> None:
    mod = observed(nn.BatchNorm2d(4, track_running_stats=False), QCONFIG, torch.randn(2, 4, 3, 3))
    with pytest.raises(InvalidRequest, match="track_running_stats=False"):
        norms.BatchNorm2d.from_float(mod)


def test_batch_norm_without_affine_parameters_gets_ones_and_zeros(engine: str) -> None:
    plain = observed(nn.BatchNorm2d(4, affine=False).eval(), QCONFIG, torch.randn(2, 4, 3, 3))
    affine = observed(nn.BatchNorm2d(4).eval(), QCONFIG, torch.randn(2, 4, 3, 3))
    affine.activation_post_process = plain.activation_post_process
    x = quantized(2, 4, 3, 3)
    assert_identical(norms.BatchNorm2d.from_float(plain)(x), norms.BatchNorm2d.from_float(affine)(x))


def test_fresh_batch_norm_loads_the_one_element_parameters_of_a_converted_one() -> None:
    mod = observed(nn.BatchNorm2d(4).eval(), QCONFIG, torch.randn(2, 4, 3, 3))
    converted, fresh = norms.BatchNorm2d.from_float(mod), norms.BatchNorm2d(4)
    fresh.load_state_dict(converted.state_dict())
    x = quantized(2, 4, 3, 3)
    assert_identical(fresh(x), converted(x))


def test_instance_norm_says_that_it_drops_running_statistics() -> None:
    mod = observed(nn.InstanceNorm2d(4, track_running_stats=True), QCONFIG, torch.randn(2, 4, 3, 3))
    with pytest.warns(QuantizationWarning, match="running statistics"):
        norms.InstanceNorm2d.from_float(mod)


def test_a_float_observer_is_refused() -> None:
    class FloatObserver(nn.Module):
        dtype = torch.float32

        def forward(self, x: Any) -> Any:
            return x

    mod = nn.LayerNorm(3)
    mod.activation_post_process = FloatObserver()
    with pytest.raises(InvalidRequest, match=r"FloatObserver of dtype torch\.float32"):
        norms.LayerNorm.from_float(mod)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id or c.name)
def test_weights_of_another_type_are_read_as_float32(case: Case, dtype: torch.dtype) -> None:
    calibrated = case.calibrated()
    cell = getattr(norms, case.name)
    x = quantized(*case.shape)
    expected = cell.from_float(calibrated)(x)
    for tensor in (*calibrated.parameters(), *calibrated.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    new = cell.from_float(calibrated)(x)
    steps = (new.int_repr().int() - expected.int_repr().int()).abs().max()
    assert steps <= (0 if dtype is torch.float64 else 3)
