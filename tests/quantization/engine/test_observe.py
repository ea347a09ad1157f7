"""The rules that decide which module is observed: each alone, then their order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observers import MinMaxObserver, default_fake_quant
from quantization.engine.observe import (
    RULES,
    Plan,
    attach,
    drop_observer,
    is_observed,
    observer_forward_hook,
    observer_forward_pre_hook,
    register_observer_hook,
    rule_for,
)
from quantization.engine.propagate import propagate_qconfig_
from quantization.engine.tree import Site
from quantization.errors import InvalidRequest
from quantization.markers import FusedModule
from quantization.nn.functional_modules import FloatFunctional
from quantization.qconfig import QConfig, default_dynamic_qat_qconfig, default_qconfig
from quantization.stubs import DeQuantStub, QuantStub

PLAN = Plan(leaves={nn.Linear, nn.Sequential, QuantStub, DeQuantStub}, skipped=(nn.Dropout,))


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Observed(Unit):
    @classmethod
    def from_float(cls, mod: nn.Module) -> Observed:
        return cls()


def with_qconfig(module: nn.Module, qconfig: QConfig = default_qconfig) -> nn.Module:
    module.qconfig = qconfig
    propagate_qconfig_(module)
    return module


def rule_name(module: nn.Module, plan: Plan = PLAN) -> str | None:
    rule = rule_for(Site(with_qconfig(module), "layer"), plan)
    return rule and rule.name


def observed_linear() -> nn.Module:
    return attach(with_qconfig(nn.Linear(2, 2)), PLAN)


CASES = {
    "skipped": (nn.Dropout, PLAN),
    "observed": (observed_linear, PLAN),
    "slot": (FloatFunctional, PLAN),
    "fused": (lambda: FusedModule(nn.Linear(2, 2), nn.ReLU()), PLAN),
    "unit": (Unit, Plan(units={Unit})),
    "fixed range": (nn.Sigmoid, Plan(fixed_ranges={nn.Sigmoid: MinMaxObserver})),
    "custom": (Unit, Plan(observed_classes={Unit: Observed})),
    "leaf": (lambda: nn.Linear(2, 2), PLAN),
    "weighted": (lambda: precomputed(), PLAN),
}


def precomputed() -> nn.Module:
    linear = nn.Linear(2, 2)
    linear.weight_fake_quant = MinMaxObserver()
    return linear


@pytest.mark.parametrize("name", CASES)
def test_each_rule_has_its_case(name: str):
    make, plan = CASES[name]
    assert rule_name(make(), plan) == name


def test_every_rule_is_covered():
    assert [rule.name for rule in RULES] == list(CASES)


@pytest.mark.parametrize("make", [nn.ReLU, Unit, nn.Sequential], ids=lambda m: m.__name__)
def test_where_no_rule_applies_the_walk_goes_on(make: type[nn.Module]):
    assert rule_name(make()) is None


def test_a_fixed_range_counts_only_in_training():
    assert rule_name(nn.Sigmoid().eval(), Plan(fixed_ranges={nn.Sigmoid: MinMaxObserver})) is None


def test_the_observer_sees_the_output_before_user_hooks():
    linear = nn.Linear(2, 2)
    linear.register_forward_hook(lambda module, args, output: output * 4)
    attach(with_qconfig(linear), PLAN)
    output = linear(torch.ones(1, 2))
    assert next(iter(linear._forward_hooks.values())) is observer_forward_hook
    assert linear.activation_post_process.max_val == output.max() / 4


def test_a_memoryless_observer_sees_the_input_and_keeps_other_arguments():
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # pyright: ignore
            return super().forward(x) + y

    two = with_qconfig(Two(2, 2), default_dynamic_qat_qconfig)
    attach(two, Plan(leaves={Two}))
    assert list(two._forward_pre_hooks.values()) == [observer_forward_pre_hook]
    assert two(torch.ones(1, 2), torch.zeros(1, 2)).shape == (1, 2)


def test_no_qconfig_no_observer():
    model = nn.Sequential(nn.Linear(2, 2))
    propagate_qconfig_(model)
    assert not any(map(is_observed, attach(model, PLAN).modules()))


def test_dequant_stub_is_never_observed():
    assert not is_observed(attach(with_qconfig(DeQuantStub()), PLAN))


def test_a_fused_module_is_observed_as_a_whole():
    (fused,) = attach(nn.Sequential(with_qconfig(FusedModule(nn.Linear(2, 2), nn.ReLU()))), PLAN)
    assert is_observed(fused)
    assert not is_observed(fused[0])


def test_attaching_twice_changes_nothing():
    model = attach(
        with_qconfig(nn.Sequential(QuantStub(), nn.Linear(2, 2), FusedModule(nn.Linear(2, 2)))), PLAN
    )
    before = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    attach(model, PLAN)
    assert [(n, id(m), len(m._forward_hooks)) for n, m in model.named_modules()] == before


def test_dropping_the_observer_leaves_user_hooks():
    linear = observed_linear()
    linear.register_forward_hook(print)
    drop_observer(linear)
    assert not hasattr(linear, "activation_post_process")
    assert list(linear._forward_hooks.values()) == [print]


def test_dropping_the_observer_of_a_slot_leaves_it_usable():
    slot = attach(with_qconfig(FloatFunctional()), PLAN)
    assert is_observed(slot)
    drop_observer(slot)
    assert torch.equal(slot.add(torch.ones(1), torch.ones(1)), torch.full((1,), 2.0))


def test_fake_quantizers_count_as_observers():
    linear = with_qconfig(nn.Linear(2, 2), QConfig(activation=default_fake_quant, weight=default_fake_quant))
    assert is_observed(attach(linear, PLAN))


def test_a_hook_without_an_observer_is_refused():
    with pytest.raises(InvalidRequest, match="activation_post_process"):
        register_observer_hook(nn.Linear(2, 2))


def test_an_activation_that_is_no_factory_is_refused_by_name():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].qconfig = QConfig(activation=None, weight=MinMaxObserver)
    with pytest.raises(InvalidRequest, match=r"'0'.*must make an observer"):
        attach(model, PLAN)
