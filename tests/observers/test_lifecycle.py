"""Script, save, load, deepcopy, copy and pickle of every observer and fake quantizer; torch's C++ passes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import observers
from tests.support import quiet_ao, quiet_jit

SCRIPTABLE = {
    name: getattr(observers, name)
    for name in (
        "MinMaxObserver",
        "MovingAverageMinMaxObserver",
        "PerChannelMinMaxObserver",
        "MovingAveragePerChannelMinMaxObserver",
        "HistogramObserver",
        "PlaceholderObserver",
        "RecordingObserver",
        "NoopObserver",
        "ReuseInputObserver",
        "default_affine_fixed_qparams_observer",
        "default_float_qparams_observer_4bit",
        "FakeQuantize",
        "default_per_channel_weight_fake_quant",
        "default_embedding_fake_quant",
        "default_histogram_fake_quant",
        "default_symmetric_fixed_qparams_fake_quant",
        "FusedMovingAvgObsFakeQuantize",
        "default_fused_per_channel_wt_fake_quant",
    )
}
ALL = {
    **SCRIPTABLE,
    "_LearnableFakeQuantize": observers._LearnableFakeQuantize.with_args(observer=observers.MinMaxObserver),
}
WITHOUT_QPARAMS = ("PlaceholderObserver", "RecordingObserver", "NoopObserver", "ReuseInputObserver")


def same_state(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("name", SCRIPTABLE)
def test_scripts_save_load_and_agree_with_eager(name):
    module = SCRIPTABLE[name]()
    with quiet_jit():
        scripted = torch.jit.script(module)
        module = copy.deepcopy(module)
        for _ in range(2):
            x = torch.randn(4, 6)
            assert torch.equal(scripted(x), module(x))
        file = io.BytesIO()
        torch.jit.save(scripted, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    assert same_state(scripted, module)
    x = torch.randn(4, 6)
    assert torch.equal(loaded(x), module(x))
    assert same_state(loaded, module)
    if name in WITHOUT_QPARAMS:
        with pytest.raises(Exception, match="should not be called for"):
            scripted.calculate_qparams()
        return
    found, expected = loaded.calculate_qparams(), module.calculate_qparams()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", [n for n in SCRIPTABLE if hasattr(SCRIPTABLE[n](), "reset_min_max_vals")])
def test_scripts_can_be_reset(name):
    fresh = SCRIPTABLE[name]()
    with quiet_jit():
        scripted = torch.jit.script(SCRIPTABLE[name]())
    scripted(torch.randn(4, 6))
    scripted.reset_min_max_vals()
    assert same_state(scripted, fresh)


@pytest.mark.parametrize("name", ["MinMaxObserver", "PerChannelMinMaxObserver", "HistogramObserver"])
def test_unobserved_scripts_answer_one_and_zero(name):
    with quiet_jit():
        scripted = torch.jit.script(SCRIPTABLE[name]())
    with pytest.warns(UserWarning, match="must run observer"):
        scale, zero_point = scripted.calculate_qparams()
    assert (scale.tolist(), zero_point.tolist()) == ([1.0], [0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(name, clone):
    module = ALL[name]()
    module(torch.randn(4, 6))
    other = clone(module)
    assert same_state(module, other)
    assert vars(module).keys() == vars(other).keys()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    other(torch.randn(4, 6) * 100)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_whole_modules_can_be_saved(name):
    module = ALL[name]()
    x = torch.randn(4, 6)
    module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert same_state(module, loaded)
    assert torch.equal(module(x), loaded(x))


@pytest.mark.parametrize("name", ALL)
def test_repr_names_the_class(name):
    module = ALL[name]()
    assert repr(module).startswith(type(module).__name__)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("activation", "weight"),
    [
        (observers.default_observer, observers.default_weight_observer),
        (observers.default_histogram_observer, observers.default_per_channel_weight_observer),
    ],
    ids=["per tensor", "per channel"],
)
@pytest.mark.usefixtures("engine")
def test_torchs_own_passes_take_our_observers(activation, weight):
    x = torch.randn(8, 4)
    with quiet_jit():
        model = torch.jit.script(Net().eval())
        pair = tuple(torch.jit.script(make())._c for make in (activation, weight))
        observed = torch._C._jit_pass_insert_observers(model._c, "forward", {"": pair}, False, 1)
        observed = torch.jit._recursive.wrap_cpp_module(observed)
        assert torch.equal(observed(x), model(x))
        statistics = observers.get_observer_state_dict(observed)
        assert any(key.endswith("min_val") for key in statistics)
        observers.load_observer_state_dict(observed, statistics)
        converted = torch._C._jit_pass_insert_quant_dequant(observed._c, "forward", False, True, 1)
        converted = torch.jit._recursive.wrap_cpp_module(converted)
    assert "aten::quantize_per_" in str(converted.inlined_graph)
    with quiet_ao():
        error = (converted(x) - model(x)).abs().max()
    assert 0 < error < 0.1


def test_torchs_dynamic_pass_knows_the_placeholder_by_its_name():
    x = torch.randn(8, 4)
    with quiet_jit(), quiet_ao():
        model = torch.jit.script(Net().eval())
        pair = tuple(
            torch.jit.script(make())._c
            for make in (observers.default_dynamic_quant_observer, observers.default_weight_observer)
        )
        observed = torch._C._jit_pass_insert_observers(model._c, "forward", {"": pair}, False, 0)
        converted = torch._C._jit_pass_insert_quant_dequant(observed, "forward", False, True, 0)
        converted = torch.jit._recursive.wrap_cpp_module(converted)
        error = (converted(x) - model(x)).abs().max()
    assert "aten::_choose_qparams_per_tensor" in str(converted.inlined_graph)
    assert 0 < error < 0.1
