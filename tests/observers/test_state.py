"""State dicts: both directions, old versions, statistics apart from the model, and who has seen data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import observers
from observers import InvalidRequest, get_observer_state_dict, has_seen_data, load_observer_state_dict
from tests.support import quiet_ao, quiet_jit

WITH_STATE = {
    "MinMax": observers.MinMaxObserver,
    "MovingAverage": observers.MovingAverageMinMaxObserver,
    "PerChannel": observers.PerChannelMinMaxObserver,
    "MovingAveragePerChannel": observers.MovingAveragePerChannelMinMaxObserver,
    "Histogram": observers.HistogramObserver,
    "FakeQuantize": observers.FakeQuantize,
    "FakeQuantizePerChannel": observers.default_per_channel_weight_fake_quant,
    "Embedding": observers.default_embedding_fake_quant,
    "Fused": observers.FusedMovingAvgObsFakeQuantize,
    "FusedPerChannel": observers.default_fused_per_channel_wt_fake_quant,
}
kinds = pytest.mark.parametrize("make", WITH_STATE.values(), ids=WITH_STATE.keys())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Prepared(nn.Module):
    """What `prepare` leaves behind, in small."""

    def __init__(self, make=observers.MinMaxObserver):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2))
        self.activation_post_process = make()
        self.inner = nn.Module()
        self.inner.activation_post_process = observers.PerChannelMinMaxObserver()

    def forward(self, x):
        return self.activation_post_process(x)

    def calibrate(self):
        self.activation_post_process(torch.randn(3, 4))
        self.inner.activation_post_process(torch.randn(3, 4))
        return self


@kinds
def test_a_state_dict_loads_into_a_fresh_module(make):
    old, new = make(), make()
    old(torch.randn(3, 4))
    assert str(new.load_state_dict(old.state_dict())) == "<All keys matched successfully>"
    assert equal(old.state_dict(), new.state_dict())
    old_qparams, new_qparams = old.calculate_qparams(), new.calculate_qparams()
    assert all(torch.equal(a, b) for a, b in zip(old_qparams, new_qparams, strict=True))


@kinds
def test_state_dicts_cross_to_torch_ao_and_back(make):
    ao = pytest.importorskip("torch.ao.quantization")
    ours = make()
    ours(torch.randn(3, 4))
    theirs = _counterpart(ao, ours)
    theirs.load_state_dict(ours.state_dict())
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert theirs.state_dict()._metadata == ours.state_dict()._metadata
    back = make()
    back.load_state_dict(theirs.state_dict())
    assert equal(back.state_dict(), ours.state_dict())


def _counterpart(ao, module):
    name = type(module).__name__
    if not isinstance(module, observers.FakeQuantizeBase):
        return getattr(ao, name)(dtype=module.dtype, qscheme=module.qscheme)
    observer = getattr(ao, type(module.activation_post_process).__name__)
    with quiet_ao():
        return getattr(ao, name)(
            observer=observer,
            quant_min=module.quant_min,
            quant_max=module.quant_max,
            dtype=module.dtype,
            qscheme=module.qscheme,
        )


@kinds
def test_missing_keys_are_named_once(make):
    module = make()
    state = module.state_dict()
    key = next(name for name in state if name.endswith("min_val"))
    del state[key]
    with pytest.raises(RuntimeError, match="Missing key") as caught:
        module.load_state_dict(state)
    assert str(caught.value).count(f'"{key}"') == 1
    assert module.load_state_dict(state, strict=False).missing_keys == [key]


def versioned(state, version):
    for metadata in state._metadata.values():
        metadata["version"] = version
    return state


@pytest.mark.parametrize("version", [1, 2])
def test_old_per_channel_names_are_copied(version):
    old, new = observers.PerChannelMinMaxObserver(), observers.PerChannelMinMaxObserver()
    old(torch.randn(3, 4))
    state = versioned(old.state_dict(), version)
    for name in ("min_val", "max_val"):
        state[f"{name}s"] = state.pop(name)
    new.load_state_dict(state)
    assert equal(new.state_dict(), old.state_dict())


@pytest.mark.parametrize("kind", [observers.MinMaxObserver, observers.HistogramObserver])
def test_version_1_has_no_eps_and_an_empty_range(kind):
    state = versioned(kind().state_dict(), 1)
    del state["eps"]
    state["min_val"], state["max_val"] = torch.tensor([]), torch.tensor([])
    observer = kind()
    observer(torch.randn(3))
    observer.load_state_dict(state)
    assert has_seen_data(observer) is False
    assert observer.min_val.shape == torch.Size([])
    assert observer.eps.item() == torch.finfo(torch.float32).eps


@kinds
def test_state_without_metadata_loads(make):
    old, new = make(), make()
    old(torch.randn(3, 4))
    new.load_state_dict(dict(old.state_dict()))
    assert equal(new.state_dict(), old.state_dict())


def test_loading_does_not_alias_the_checkpoint():
    state = observers.HistogramObserver().state_dict()
    observer = observers.HistogramObserver()
    observer.load_state_dict(state)
    observer(torch.randn(4))
    assert torch.isinf(state["min_val"])


def test_another_number_of_bins_is_an_error():
    with pytest.raises(RuntimeError, match="size mismatch"):
        observers.HistogramObserver(bins=8).load_state_dict(observers.HistogramObserver(bins=9).state_dict())


def test_observer_statistics_travel_apart_from_the_model():
    old, new = Prepared().calibrate(), Prepared()
    weight = new.weight.clone()
    statistics = get_observer_state_dict(old)
    assert all("activation_post_process" in key for key in statistics)
    assert statistics._metadata["activation_post_process"]["version"] == 3
    load_observer_state_dict(new, statistics)
    assert equal(get_observer_state_dict(new), statistics)
    assert torch.equal(new.weight, weight)


def test_observer_statistics_with_old_names_are_read():
    old, new = Prepared().calibrate(), Prepared()
    statistics = get_observer_state_dict(old)
    renamed = {
        f"{k}s" if k.endswith("_val") and k.startswith("inner") else k: v for k, v in statistics.items()
    }
    load_observer_state_dict(new, renamed)
    assert equal(get_observer_state_dict(new), statistics)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("inner.activation_post_process.min_val"), "Missing keys for observer"),
        (lambda d: d.update({"gone.activation_post_process.min_val": 1}), "Unexpected keys for observer"),
        (lambda d: d.update({"activation_post_process.eps": torch.ones(3)}), "has shape"),
        (
            lambda d: d.update({"activation_post_process.histogram": torch.ones(3)}),
            "Unexpected keys|has shape",
        ),
        (lambda d: d.update({"activation_post_process.min_val": torch.ones(3)}), "has shape"),
    ],
)
def test_statistics_that_do_not_fit_are_one_error_and_nothing_is_loaded(change, message):
    old, new = Prepared().calibrate(), Prepared()
    before = {key: value.clone() for key, value in new.state_dict().items()}
    statistics = get_observer_state_dict(old)
    change(statistics)
    with pytest.raises(InvalidRequest, match=message):
        load_observer_state_dict(new, statistics)
    assert equal(new.state_dict(), before)


class Scriptable(nn.Module):
    """A scripted model as TorchScript's passes leave it: observers under names with `observer`."""

    def __init__(self):
        super().__init__()
        self._observer_0 = observers.HistogramObserver(bins=16)
        self._observer_1 = observers.PerChannelMinMaxObserver()

    def forward(self, x):
        return self._observer_1(self._observer_0(x))


def test_scripted_statistics_load_into_a_fresh_script():
    with quiet_jit():
        old, new = torch.jit.script(Scriptable()), torch.jit.script(Scriptable())
    old(torch.randn(3, 4))
    statistics = get_observer_state_dict(old)
    assert "_observer_1.min_val" in statistics
    load_observer_state_dict(new, statistics)
    assert equal(get_observer_state_dict(new), statistics)
    new(torch.randn(3, 4))


@pytest.mark.parametrize("kind", [observers.FakeQuantize, observers.FusedMovingAvgObsFakeQuantize])
def test_togglers_work_on_scripts(kind):
    with quiet_jit():
        model = torch.jit.script(nn.Sequential(kind(), nn.Sequential(kind())))
    for toggle, switch, value in (
        (observers.disable_fake_quant, "fake_quant_enabled", 0),
        (observers.disable_observer, "observer_enabled", 0),
        (observers.enable_fake_quant, "fake_quant_enabled", 1),
        (observers.enable_observer, "observer_enabled", 1),
    ):
        model.apply(toggle)
        values = [v.item() for k, v in model.state_dict().items() if k.endswith(switch)]
        assert values == [value, value]


def test_what_counts_as_an_observer():
    with quiet_jit():
        scripted = torch.jit.script(observers.PerChannelMinMaxObserver())
        linear = torch.jit.script(nn.Linear(1, 1))
        fake = torch.jit.script(observers.FakeQuantize())
    assert observers._is_activation_post_process(observers.MinMaxObserver())
    assert observers._is_activation_post_process(observers.FakeQuantize())
    assert observers._is_activation_post_process(scripted)
    assert not observers._is_activation_post_process(linear)
    assert not observers._is_activation_post_process(nn.Linear(1, 1))
    assert observers._is_per_channel_script_obs_instance(scripted)
    assert not observers._is_per_channel_script_obs_instance(observers.PerChannelMinMaxObserver())
    assert observers._is_fake_quant_script_module(fake)
    assert not observers._is_fake_quant_script_module(scripted)
    assert observers._is_observer_script_module(scripted, "PerChannelMinMax")


@kinds
def test_has_seen_data(make):
    module = make()
    assert has_seen_data(module) is False
    module(torch.randn(3, 4))
    assert has_seen_data(module) is True
    with quiet_jit():
        assert has_seen_data(torch.jit.script(module)) is True


@pytest.mark.parametrize(
    "make",
    [
        observers.PlaceholderObserver,
        observers.NoopObserver,
        observers.ReuseInputObserver,
        observers.default_affine_fixed_qparams_observer,
        observers.default_affine_fixed_qparams_fake_quant,
        nn.Identity,
    ],
)
def test_kinds_that_need_no_data(make):
    assert has_seen_data(make()) is None


def test_a_recorder_has_seen_what_it_recorded():
    observer = observers.RecordingObserver()
    assert has_seen_data(observer) is False
    observer(torch.ones(1))
    assert has_seen_data(observer) is True
