"""Scale and zero point are computed once, and again when anything they depend on changed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import observers
from observers import QuantizationWarning
from tests.support import quiet_jit

KINDS = [
    observers.MinMaxObserver,
    observers.MovingAverageMinMaxObserver,
    observers.PerChannelMinMaxObserver,
    observers.MovingAveragePerChannelMinMaxObserver,
    observers.HistogramObserver,
]
every_kind = pytest.mark.parametrize("kind", KINDS)
BATCH = torch.tensor([[-1.0, 0.5, 2.0], [-3.0, 0.75, 1.0]])


@pytest.fixture
def computed(monkeypatch):
    """How often scale and zero point were computed, counted at the formula."""
    calls = []
    original = observers.UniformQuantizationObserverBase._calculate_qparams

    def counting(self, low, high):
        calls.append(self)
        return original(self, low, high)

    monkeypatch.setattr(observers.UniformQuantizationObserverBase, "_calculate_qparams", counting)
    return calls


def anew(observer):
    """What an observer of the same state gives that never gave anything."""
    return [tensor.tolist() for tensor in copy.deepcopy(observer).calculate_qparams()]


def given(observer):
    return [tensor.tolist() for tensor in observer.calculate_qparams()]


@every_kind
def test_computed_once_per_state(kind, computed):
    observer = kind()
    observer(BATCH)
    first = given(observer)
    assert [given(observer) for _ in range(3)] == [first] * 3
    assert len(computed) == 1
    observer(BATCH * 5)
    assert given(observer) != first
    assert len(computed) == 2


def reset_and_observe(observer):
    observer.reset_min_max_vals()
    observer(BATCH * 3)


def load(observer):
    other = type(observer)()
    other(BATCH * 7)
    observer.load_state_dict(other.state_dict())


def write_past_autograd(observer):
    observer.max_val.data.mul_(4)


def write_in_numpy(observer):
    observer.max_val.numpy()[...] *= 4


def replace_buffer(observer):
    observer.max_val = observer.max_val * 4


def narrow(observer):
    observer.quant_min, observer.quant_max = 0, 15


def change_scheme(observer):
    per_channel = observers.is_per_channel(observer.qscheme)
    observer.qscheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric


def raise_eps(observer):
    observer.eps.fill_(0.5)


CHANGES = [
    reset_and_observe,
    load,
    write_past_autograd,
    write_in_numpy,
    replace_buffer,
    narrow,
    change_scheme,
    raise_eps,
]


@every_kind
@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_noticed(kind, change):
    observer = kind()
    observer(BATCH)
    before = given(observer)
    change(observer)
    after = given(observer)
    assert after != before
    assert after == anew(observer)


@every_kind
def test_a_change_of_dtype_is_noticed(kind):
    observer = kind()
    observer(BATCH)
    assert observer.calculate_qparams()[0].dtype == torch.float32
    assert observer.double().calculate_qparams()[0].dtype == torch.float64


def test_new_counts_in_the_same_range_are_noticed():
    observer = observers.HistogramObserver()
    observer(torch.tensor([-1.0, 1.0]))
    before = given(observer)
    observer(torch.randn(100_000).clamp(-1, 1) * 0.01)
    assert given(observer) == anew(observer) != before


@every_kind
def test_writing_into_the_results_changes_nothing(kind):
    observer = kind()
    observer(BATCH)
    expected = given(observer)
    for _ in range(2):
        scale, zero_point = observer.calculate_qparams()
        scale.zero_()
        zero_point.fill_(7)
    assert given(observer) == expected


@every_kind
def test_an_observer_that_saw_nothing_warns_each_time(kind):
    observer = kind()
    for _ in range(2):
        with pytest.warns(QuantizationWarning, match="must run observer"):
            assert given(observer) == [[1.0], [0]]
    observer(BATCH)
    assert given(observer) == anew(observer) != [[1.0], [0]]


@every_kind
def test_copies_pickles_and_scripts_know_nothing_of_it(kind):
    observer, fresh = kind(), kind()
    observer(BATCH)
    fresh(BATCH)
    expected = given(observer)
    assert vars(observer).keys() == vars(fresh).keys()
    assert list(observer.state_dict()) == list(fresh.state_dict())
    copies = [copy.copy(observer), copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))]
    with quiet_jit():
        copies.append(torch.jit.script(copy.deepcopy(observer)))
        for other in copies:
            assert given(other) == expected
        for other in copies[1:]:
            other(BATCH * 9)
            assert given(other) != expected
    assert given(observer) == expected


@every_kind
def test_a_class_of_ones_own_is_asked_each_time(kind):
    class Own(kind):
        answer = 1.0

        def _calculate_qparams(self, low, high):
            return torch.tensor([self.answer]), torch.tensor([0])

    observer = Own()
    observer(BATCH)
    assert given(observer) == [[1.0], [0]]
    observer.answer = 2.0
    assert given(observer) == [[2.0], [0]]


@every_kind
def test_what_inference_mode_computed_can_be_used_outside(kind):
    observer = kind()
    with torch.inference_mode():
        observer(BATCH)
        expected = given(observer)
    scale, zero_point = observer.calculate_qparams()
    assert [scale.tolist(), zero_point.tolist()] == expected
    scale.requires_grad_().sum().backward()
