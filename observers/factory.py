"""Factories of observers and fake quantizers: a class with some of its arguments filled in.

A `QConfig` holds factories, not instances, because every module of a model needs its own observer.
`SomeObserver.with_args(dtype=torch.qint8)` fills arguments in now; `with_callable_args(factory_kwargs=f)`
calls `f` anew each time an observer is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class _PartialWrapper:
    """A factory that can be refined: `p` holds the fixed arguments, `callable_args` those computed per call.

    >>> make_pair = _PartialWrapper(partial(dict, a=1)).with_args(b=2)
    >>> make_pair(c=3)
    {'a': 1, 'b': 2, 'c': 3}
    """

    def __init__(self, p: partial[Any]) -> None:
        self.p = p
        self.callable_args: dict[str, Callable[[], Any]] = {}

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        computed = {name: make() for name, make in self.callable_args.items() if name not in keywords}
        return self.p(*args, **computed, **keywords)

    def __repr__(self) -> str:
        return f"{self.p!r}{self.callable_args!r}"

    def with_args(self, **kwargs: Any) -> _PartialWrapper:
        """Return a factory around this one; arguments given here win over those given before."""
        return _with_args(self, **kwargs)

    def with_callable_args(self, **kwargs: Callable[[], Any]) -> _PartialWrapper:
        """Return a copy of this factory that also calls `kwargs`' values each time it makes something."""
        refined = _PartialWrapper(self.p)
        refined.callable_args = {**self.callable_args, **kwargs}
        return refined


def _with_args(cls_or_self: Any, **kwargs: Any) -> _PartialWrapper:
    """Make a factory of `cls_or_self` with `kwargs` filled in; it can be refined by `with_args` again.

    >>> from observers import MinMaxObserver
    >>> make = MinMaxObserver.with_args(quant_min=0).with_args(quant_max=127)
    >>> make().quant_max, make() is make()
    (127, False)
    """
    return _PartialWrapper(partial(cls_or_self, **kwargs))


def _with_callable_args(cls_or_self: Any, **kwargs: Callable[[], Any]) -> _PartialWrapper:
    """Make a factory that calls each of `kwargs`' values anew for every object it makes.

    >>> from observers import MinMaxObserver
    >>> make = MinMaxObserver.with_callable_args(factory_kwargs=lambda: {"device": "cpu"})
    >>> make().min_val.device
    device(type='cpu')
    """
    return _PartialWrapper(partial(cls_or_self)).with_callable_args(**kwargs)


def factories_equal(one: Any, other: Any) -> bool:
    """Whether two factories make the same thing from the same arguments; computed arguments are not compared.

    An argument named `observer` may be a factory itself and is compared the same way.

    >>> from observers import MinMaxObserver
    >>> factories_equal(MinMaxObserver.with_args(quant_max=127), MinMaxObserver.with_args(quant_max=127))
    True
    >>> factories_equal(MinMaxObserver, MinMaxObserver.with_args(quant_max=127))
    False
    """
    if not (isinstance(one, _PartialWrapper) and isinstance(other, _PartialWrapper)):
        return one == other
    ours, theirs = dict(one.p.keywords), dict(other.p.keywords)
    if ("observer" in ours) != ("observer" in theirs):
        return False
    observers_equal = factories_equal(ours.pop("observer", None), theirs.pop("observer", None))
    same_make = factories_equal(one.p.func, other.p.func) and one.p.args == other.p.args
    return observers_equal and same_make and ours == theirs
