"""prepare, convert, quantize: what they do beyond torch.ao, and what they refuse."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import quantization as q
from quantization.markers import FusedModule
from quantization.nn import fused, quantized
from quantization.nn.functional_modules import FloatFunctional


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = q.QuantStub(), q.DeQuantStub()
        self.conv = nn.Conv2d(1, 2, 3)
        self.skip = FloatFunctional()
        self.fc = nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.quant(x))
        x = self.skip.add(x, x).mean([2, 3])
        return self.dequant(self.fc(x))


DATA = torch.randn(4, 1, 5, 5)


def prepared_net(calibrate: bool = True) -> nn.Module:
    model = Net().eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    if calibrate:
        prepared(DATA)
    return prepared


def snapshot(model: nn.Module) -> tuple[object, ...]:
    """Everything a call may not change: classes, attributes, hooks, modes, values."""
    return (
        [(n, id(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for n, m in model.named_modules()],
        {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in model.state_dict().items()}.keys(),
        [v.sum().item() for v in model.state_dict().values() if isinstance(v, torch.Tensor)],
    )


# ---- nothing is lost


@pytest.mark.parametrize(
    "call", [q.prepare, lambda m: q.quantize(m, lambda m: m(DATA), [])], ids=["prepare", "quantize"]
)
def test_the_callers_model_is_untouched(call: Callable[[nn.Module], nn.Module]):
    model = Net()
    model.qconfig = q.get_default_qconfig()
    before = snapshot(model)
    assert call(model) is not model
    assert snapshot(model) == before


def test_convert_leaves_the_prepared_model_untouched():
    prepared = prepared_net()
    before = snapshot(prepared)
    q.convert(prepared)
    assert snapshot(prepared) == before


@pytest.mark.parametrize("inplace", [True, False])
def test_a_failed_prepare_leaves_the_model_as_it_was(inplace: bool):
    model = Net()
    model.qconfig = q.get_default_qconfig()
    model.up = nn.ConvTranspose2d(2, 2, 3)  # refuses per-channel weights
    before = snapshot(model)
    with pytest.raises(q.QuantizationError, match="not supported yet for ConvTranspose") as caught:
        q.prepare(model, inplace=inplace)
    assert caught.value.path == "up"
    assert snapshot(model) == before


@pytest.mark.parametrize("inplace", [True, False])
def test_a_failed_convert_leaves_the_model_as_it_was(inplace: bool):
    prepared = prepared_net()
    prepared.fc.qconfig = q.QConfig(activation=q.default_observer, weight=q.default_observer)  # quint8 weight
    before = snapshot(prepared)
    with pytest.raises(ValueError, match="qint8") as caught:
        q.convert(prepared, inplace=inplace)
    assert "'fc'" in str(caught.value) + str(getattr(caught.value, "__notes__", ""))
    assert snapshot(prepared) == before
    prepared(DATA)


def test_inplace_changes_the_model_itself():
    model = Net().eval()
    model.qconfig = q.get_default_qconfig()
    assert q.prepare(model, inplace=True) is model
    model(DATA)
    assert q.convert(model, inplace=True) is model
    assert isinstance(model.conv, quantized.Conv2d)


# ---- nothing happens silently


def test_prepare_without_a_qconfig_warns_and_names_the_cure():
    with pytest.warns(q.QuantizationWarning, match=r"no module has a qconfig.*get_default_qconfig\(\)"):
        q.prepare(Net())
    with pytest.raises(q.QuantizationError, match="no module has a qconfig"):
        q.prepare(Net(), strict=True)


def test_prepare_that_finds_nothing_to_observe_warns():
    model = nn.Sequential(nn.GELU(), nn.Bilinear(2, 2, 2))
    model.qconfig = q.get_default_qconfig()
    with pytest.warns(q.QuantizationWarning, match=r"'0' \(GELU\), '1' \(Bilinear\)"):
        q.prepare(model)


def test_convert_of_what_was_never_prepared_warns():
    with pytest.warns(q.QuantizationWarning, match=r"no module with a qconfig.*prepare\(model\)"):
        q.convert(Net())
    model = Net()
    model.qconfig = q.get_default_qconfig()
    q.propagate_qconfig_(model)
    with pytest.warns(q.QuantizationWarning, match="never prepared"):
        q.convert(model)
    with pytest.raises(q.QuantizationError, match="never prepared"):
        q.convert(model, strict=True)


def test_observers_without_data_are_named_in_one_warning():
    with pytest.warns(q.QuantizationWarning) as caught:
        q.convert(prepared_net(calibrate=False))
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "4 of 4 observers saw no data" in message
    for name in ("'quant'", "'conv'", "'skip'", "'fc'"):
        assert name in message


def test_a_calibrated_model_converts_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q.convert(prepared_net(), strict=True)


# ---- roots, ties, second calls


def test_a_bare_root_is_swapped():
    linear = nn.Linear(2, 2)
    linear.qconfig = q.get_default_qconfig()
    prepared = q.prepare(linear)
    prepared(torch.randn(3, 2))
    assert type(q.convert(prepared)) is quantized.Linear


def test_a_module_under_two_names_is_swapped_under_both_and_stays_tied():
    model = Net()
    model.alias = model.fc
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    prepared(DATA)
    converted = q.convert(prepared)
    assert type(converted.fc) is quantized.Linear
    assert converted.fc is converted.alias


def test_preparing_twice_is_harmless():
    once = prepared_net()
    twice = q.prepare(once)
    assert snapshot(twice)[0] != [] and len(list(twice.modules())) == len(list(once.modules()))
    assert torch.equal(twice(DATA), once(DATA))
    assert torch.equal(q.convert(twice)(DATA), q.convert(once)(DATA))


def test_keeping_the_qconfig_leaves_a_model_that_runs():
    converted = q.convert(prepared_net(), remove_qconfig=False)
    assert converted.conv.__class__ is quantized.Conv2d
    assert converted.qconfig is not None
    converted(DATA)


# ---- custom modules


class CustomFloat(nn.Module):
    def __init__(self, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class CustomObserved(CustomFloat):
    @classmethod
    def from_float(cls, mod: CustomFloat) -> CustomObserved:
        observed = cls(mod.conv)
        observed.qconfig = mod.qconfig
        return observed


class CustomQuantized(CustomFloat):
    @classmethod
    def from_observed(cls, mod: CustomObserved) -> CustomQuantized:
        mod.conv.qconfig = mod.qconfig
        mod.conv.activation_post_process = mod.activation_post_process
        return cls(quantized.Conv2d.from_float(mod.conv))


def test_custom_modules_go_float_observed_quantized():
    model = nn.Sequential(q.QuantStub(), CustomFloat(), q.DeQuantStub()).eval()
    model.qconfig = q.default_qconfig
    prepared = q.prepare(
        model,
        prepare_custom_config_dict={"float_to_observed_custom_module_class": {CustomFloat: CustomObserved}},
    )
    assert type(prepared[1]) is CustomObserved
    x = torch.randn(2, 1, 3, 3)
    prepared(x)
    converted = q.convert(
        prepared,
        convert_custom_config_dict={
            "observed_to_quantized_custom_module_class": {CustomObserved: CustomQuantized}
        },
    )
    assert type(converted[1]) is CustomQuantized
    assert (converted(x) - model(x)).abs().max() < 0.1


def test_allow_list_and_non_leaf_list():
    model = nn.Sequential(CustomFloat(), nn.Linear(2, 2))
    model.qconfig = q.default_qconfig
    prepared = q.prepare(model, allow_list={nn.Conv2d}, observer_non_leaf_module_list=[CustomFloat])
    assert hasattr(prepared[0], "activation_post_process")
    assert not hasattr(prepared[0].conv, "activation_post_process")
    assert not hasattr(prepared[1], "activation_post_process")


# ---- what the result can do


def test_a_converted_model_deepcopies_pickles_saves_and_scripts(tmp_path):
    from tests.support import quiet_jit

    converted = q.convert(prepared_net())
    expected = converted(DATA)
    torch.save(converted, tmp_path / "whole.pt")
    skeleton = q.convert(prepared_net())
    skeleton.load_state_dict(converted.state_dict())
    again = [
        copy.deepcopy(converted),
        pickle.loads(pickle.dumps(converted)),
        torch.load(tmp_path / "whole.pt", weights_only=False),
        skeleton,
    ]
    with quiet_jit():
        scripted = torch.jit.script(converted)
        torch.jit.save(scripted, tmp_path / "script.pt")
        again += [scripted, torch.jit.load(tmp_path / "script.pt")]
    for model in again:
        assert torch.equal(model(DATA), expected)


def test_a_checkpoint_loads_with_weights_only(tmp_path):
    converted = q.convert(prepared_net())
    torch.save(converted.state_dict(), tmp_path / "state.pt")
    skeleton = q.convert(prepared_net())
    skeleton.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(skeleton(DATA), converted(DATA))


def test_add_quant_dequant_wraps_leaves_with_a_qconfig():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model[0].qconfig = q.default_qconfig
    wrapped = q.add_quant_dequant(model)
    assert [type(m).__name__ for m in wrapped] == ["QuantWrapper", "ReLU"]
    bare = nn.Linear(2, 2)
    bare.qconfig = q.default_qconfig
    assert isinstance(q.add_quant_dequant(bare), q.QuantWrapper)


def test_default_eval_fn_runs_the_inputs():
    seen = []
    q.default_eval_fn(lambda x: seen.append(x), [(1, "a"), (2, "b")])
    assert seen == [1, 2]


@pytest.mark.parametrize(
    "call", [q.prepare, q.convert, q.prepare_qat, q.quantize_dynamic], ids=lambda f: f.__name__
)
def test_what_is_no_module_is_refused(call: Callable[[object], object]):
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got str"):
        call("model")


class TwoInputs(FusedModule):
    """A fused type of the user's own, which no table lists."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self[0](x) + y


def test_a_fused_root_that_no_table_lists_is_a_container() -> None:
    model = TwoInputs(fused.ConvReLU2d(nn.Conv2d(1, 2, 3), nn.ReLU())).eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    assert not hasattr(prepared, "activation_post_process")
    y = prepared(DATA, torch.zeros(1))
    converted = q.convert(prepared)
    assert type(converted) is TwoInputs
    assert type(converted[0]) is quantized.ConvReLU2d
    assert converted[0].scale == pytest.approx(y.max().item() / 127, rel=0.2)


def test_a_fused_root_that_a_table_lists_is_one_unit() -> None:
    model = fused.ConvReLU2d(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    prepared(DATA)
    assert type(q.convert(prepared)) is quantized.ConvReLU2d


def test_a_fused_module_below_the_root_that_no_table_lists_stays_float() -> None:
    model = nn.Sequential(FusedModule(nn.Conv2d(1, 2, 3))).eval()
    model.qconfig = q.get_default_qconfig()
    prepared = q.prepare(model)
    prepared(DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert type(q.convert(prepared)[0][0]) is nn.Conv2d
