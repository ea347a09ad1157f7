"""The tree walk, and the way back after a failure."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from quantization.engine.copying import copied
from quantization.engine.tree import (
    Site,
    check_model,
    is_leaf,
    restoring,
    rewrite,
    single_device,
    walk,
)
from quantization.errors import InvalidRequest, QuantizationError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.act = nn.ReLU()


def model_with_a_tie() -> nn.Sequential:
    shared = nn.Linear(2, 2)
    return nn.Sequential(shared, Block(), shared)


def swap_linears(site: Site) -> nn.Module:
    return nn.Identity() if isinstance(site.module, nn.Linear) else site.module


def test_walk_names_each_module_once_parents_first():
    assert [site.path for site in walk(model_with_a_tie())] == ["", "0", "1", "1.fc", "1.act"]


def test_walk_does_not_enter_a_whole_module():
    def whole(site: Site) -> bool:
        return isinstance(site.module, Block)

    model = nn.Sequential(Block(), nn.ReLU())
    assert [site.path for site in walk(model, whole=whole)] == ["", "0", "1"]
    assert [site.path for site in walk(model[0], whole=whole)] == [""]


def test_rewrite_replaces_everywhere_and_keeps_ties():
    model = rewrite(model_with_a_tie(), swap_linears, whole=lambda site: False)
    assert model[0] is model[2]
    assert isinstance(model[0], nn.Identity)
    assert isinstance(model[1].fc, nn.Identity)
    assert isinstance(model[1].act, nn.ReLU)


def test_rewrite_does_not_enter_a_whole_module():
    model = rewrite(model_with_a_tie(), swap_linears, whole=lambda site: isinstance(site.module, Block))
    assert isinstance(model[1].fc, nn.Linear)


def test_rewrite_replaces_the_root():
    assert isinstance(rewrite(nn.Linear(1, 1), swap_linears, whole=lambda site: False), nn.Identity)


def test_rewrite_swaps_children_before_their_parent():
    order: list[str] = []

    def swap(site: Site) -> nn.Module:
        order.append(site.path)
        return site.module

    rewrite(nn.Sequential(Block()), swap, whole=lambda site: False)
    assert order == ["0.fc", "0.act", "0", ""]


def test_restoring_brings_back_children_hooks_attributes_and_modes():
    model = model_with_a_tie()
    handle = model[1].register_forward_hook(lambda *a: None)
    children, hooks = list(model.named_modules()), dict(model[1]._forward_hooks)
    with pytest.raises(ZeroDivisionError), restoring(model):
        model.eval()
        model[1].fc = nn.Identity()
        model[1].note = "added"
        model[1].register_forward_hook(print)
        handle.remove()
        raise ZeroDivisionError
    assert list(model.named_modules()) == children
    assert dict(model[1]._forward_hooks) == hooks
    assert not hasattr(model[1], "note")
    assert all(module.training for module in model.modules())
    handle.remove()  # the handle still refers to the dictionary that the module uses
    assert not model[1]._forward_hooks


def test_restoring_leaves_a_success_alone():
    model = model_with_a_tie()
    with restoring(model):
        model.eval()
    assert not model.training


def test_a_leaf_may_have_parametrizations():
    linear = nn.Linear(2, 2)
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    assert is_leaf(linear)
    assert Site(linear, "").type is nn.Linear
    assert not is_leaf(Block())


def test_single_device_ignores_meta():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert single_device(model) == torch.device("cpu")
    assert single_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert single_device(nn.ReLU()) is None


def test_mixed_devices_are_named(monkeypatch: pytest.MonkeyPatch):
    from quantization.engine import tree

    monkeypatch.setattr(tree, "devices_of", lambda module: {torch.device("cpu"), torch.device("cuda")})
    with pytest.raises(
        InvalidRequest, match=r"single device.*'0.weight' on cpu|single device.*'0.bias' on cpu"
    ):
        single_device(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_that_cannot_be_copied_says_what_to_do():
    model = nn.Linear(2, 2)
    model.cache = model(torch.ones(2))  # carries a gradient history
    with pytest.raises(QuantizationError, match="inplace=True"):
        copied(model)


@pytest.mark.parametrize("wrong", [None, "model", nn.Linear, {"a": 1}], ids=repr)
def test_check_model_refuses_what_is_no_module(wrong: object):
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got"):
        check_model(wrong)


def test_check_model_refuses_script_modules():
    from tests.support import quiet_jit

    with quiet_jit():
        scripted = torch.jit.script(nn.ReLU())
    with pytest.raises(TypeError, match="quantize the eager model first"):
        check_model(scripted)
