"""Factories: filling in arguments, nesting, arguments computed per call, comparison, pickling."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import torch

import observers
from observers.factory import _PartialWrapper, _with_callable_args, factories_equal


def record(**kwargs):
    return kwargs


def test_with_args_makes_a_new_observer_each_time():
    make = observers.MinMaxObserver.with_args(dtype=torch.qint8)
    one, other = make(), make()
    assert one is not other
    assert one.dtype == torch.qint8


def test_nested_with_args_keeps_only_the_last_arguments_in_p():
    make = observers.MinMaxObserver.with_args(quant_min=0).with_args(quant_max=7)
    assert make.p.keywords == {"quant_max": 7}
    assert isinstance(make.p.func, _PartialWrapper)
    assert (make().quant_min, make().quant_max) == (0, 7)


def test_later_arguments_win_and_calls_win_over_both():
    make = observers.MinMaxObserver.with_args(dtype=torch.qint8).with_args(dtype=torch.quint8)
    assert make().dtype == torch.quint8
    assert make(dtype=torch.qint32).dtype == torch.qint32


def test_callable_arguments_are_called_anew_and_can_be_overridden():
    calls = []
    make = _with_callable_args(record, a=lambda: calls.append(1) or len(calls))
    assert [make(), make(), make(a="given")] == [{"a": 1}, {"a": 2}, {"a": "given"}]
    assert len(calls) == 2


def test_callable_arguments_merge_and_win_over_fixed_ones():
    make = _PartialWrapper(partial(record, a=1)).with_callable_args(b=lambda: 2)
    more = make.with_callable_args(a=lambda: 9)
    assert more() == {"a": 9, "b": 2}
    assert make() == {"a": 1, "b": 2}
    assert set(more.callable_args) == {"a", "b"}


def test_with_args_around_callable_args_still_calls_them():
    make = _with_callable_args(record, a=lambda: 1).with_args(b=2)
    assert make.callable_args == {}
    assert make() == {"a": 1, "b": 2}


def test_repr_shows_what_is_filled_in():
    assert "quant_min=0" in repr(observers.default_observer)
    assert repr(observers.default_observer).endswith("{}")


def test_factory_of_a_fake_quantizer_carries_the_module_name():
    assert observers.default_fake_quant.__module__ == "observers.fake_quantize"


def test_factories_pickle():
    again = pickle.loads(pickle.dumps(observers.default_fake_quant))
    assert factories_equal(again, observers.default_fake_quant)
    assert again().quant_max == observers.default_fake_quant().quant_max


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (observers.MinMaxObserver, observers.MinMaxObserver, True),
        (observers.MinMaxObserver, observers.HistogramObserver, False),
        (observers.MinMaxObserver, observers.MinMaxObserver.with_args(), False),
        (observers.MinMaxObserver.with_args(eps=1), observers.MinMaxObserver.with_args(eps=1), True),
        (observers.MinMaxObserver.with_args(eps=1), observers.MinMaxObserver.with_args(eps=2), False),
        (
            observers.FakeQuantize.with_args(observer=observers.MinMaxObserver.with_args(eps=1)),
            observers.FakeQuantize.with_args(observer=observers.MinMaxObserver.with_args(eps=1)),
            True,
        ),
        (
            observers.FakeQuantize.with_args(observer=observers.MinMaxObserver.with_args(eps=1)),
            observers.FakeQuantize.with_args(observer=observers.MinMaxObserver.with_args(eps=2)),
            False,
        ),
        (observers.FakeQuantize.with_args(observer=None), observers.FakeQuantize.with_args(), False),
        (
            observers.MinMaxObserver.with_callable_args(factory_kwargs=dict),
            observers.MinMaxObserver.with_args(),
            True,
        ),
    ],
)
def test_factories_equal(one, other, equal):
    assert factories_equal(one, other) is equal


ACCEPT = ["MinMax", "MovingAverageMinMax", "PerChannelMinMax", "MovingAveragePerChannelMinMax", "Histogram"]
REFUSE = ["Placeholder", "Noop", "Recording", "ReuseInput"]


@pytest.mark.parametrize("name", [f"{kind}Observer" for kind in ACCEPT] + ["FakeQuantize"])
def test_factory_kwargs_of_none_are_accepted(name):
    assert getattr(observers, name).with_args(factory_kwargs=None)() is not None


@pytest.mark.parametrize("name", [f"{kind}Observer" for kind in REFUSE] + ["FixedQParamsFakeQuantize"])
def test_factory_kwargs_are_a_type_error_where_there_is_nothing_to_place(name):
    with pytest.raises(TypeError, match="factory_kwargs"):
        getattr(observers, name).with_args(factory_kwargs=None)()


def test_unknown_factory_kwargs_and_arguments_are_type_errors():
    with pytest.raises(TypeError, match="foo"):
        observers.MinMaxObserver(factory_kwargs={"foo": 1})
    with pytest.raises(TypeError, match="foo"):
        observers.MinMaxObserver(foo=1)
