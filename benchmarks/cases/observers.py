"""What observers cost: an update and the search for scale and zero point, in reads of the tensor."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.contenders import pair
from benchmarks.interleaved import measure
from benchmarks.libraries import LIBRARIES
from benchmarks.model import Case, Contender, Target, Variant
from benchmarks.timing import Local

SIZES = {"0.1 MB": (2, 16, 28, 28), "6 MB": (8, 64, 56, 56), "50 MB": (16, 64, 112, 112)}
PER_TENSOR = ("MinMaxObserver", "MovingAverageMinMaxObserver", "HistogramObserver")
PER_CHANNEL = ("PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver")
CHANNELS_LAST = "6 MB, channels last"


@dataclass(frozen=True, eq=False)
class Subject:
    """A kind of observer, its arguments, and what it sees."""

    kind: str
    size: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def x(self) -> Tensor:
        """The tensor."""
        x = models.seeded(0, *SIZES[self.size.partition(",")[0]])
        return x.contiguous(memory_format=torch.channels_last) if self.size == CHANNELS_LAST else x

    def few(self) -> Tensor:
        """A few values of it, one for each channel."""
        axis = self.arguments.get("ch_axis", 1) % 4
        return self.x[tuple(slice(None) if i == axis else slice(1) for i in range(4))].contiguous()

    def observer(self, library: str) -> Any:
        """A new observer of that kind."""
        return getattr(LIBRARIES[library]().observers, self.kind)(**self.arguments)


def _qparams(observer: Any) -> Tensor:
    scale, zero_point = observer.calculate_qparams()
    return torch.cat([scale.double(), zero_point.double()])


def _read(subject: Subject) -> Local:
    """A sum over the tensor in the order of its memory: about the cheapest thing that looks at all of it."""
    x = subject.x.permute(0, 2, 3, 1) if subject.size == CHANNELS_LAST else subject.x
    return Local(x.sum)


def _update(library: str, subject: Subject) -> Local:
    observer = subject.observer(library)

    def outcome() -> Tensor:
        observer(subject.x)
        return _qparams(observer)

    return Local(functools.partial(observer, subject.x), outcome=outcome)


def _growing(library: str, subject: Subject) -> Local:
    """A new observer sees a batch, and one twice as wide."""
    wide = 2 * subject.x

    def run() -> Any:
        observer = subject.observer(library)
        observer(subject.x)
        observer(wide)
        return observer

    return Local(run, outcome=lambda: _qparams(run()))


def _search(library: str, subject: Subject) -> Local:
    """What a calibration asks for after its last batch: an update (with few values) and the qparams."""
    observer, few = subject.observer(library), subject.few()
    observer(subject.x)

    def run() -> Tensor:
        observer(few)
        return observer.calculate_qparams()

    return Local(run, outcome=lambda: _qparams(observer))


def _again(library: str, subject: Subject) -> Local:
    """The qparams when nothing was observed since they were asked for."""
    observer = subject.observer(library)
    observer(subject.x)
    return Local(observer.calculate_qparams, outcome=lambda: _qparams(observer))


READ = Contender("one read", _read, checked=False)


def _updates() -> list[Variant]:
    contenders = (READ, *pair(_update))
    whole = [(kind, size, {}) for kind in PER_TENSOR for size in (*SIZES, CHANNELS_LAST)]
    channels = [
        (kind, size, {"ch_axis": axis})
        for kind in PER_CHANNEL
        for axis in (0, 1, 3)
        for size in (*SIZES, CHANNELS_LAST)
    ]
    return [
        Variant(
            _name(kind, arguments),
            size,
            functools.partial(Subject, kind, size, arguments),
            contenders,
            size == "6 MB" and kind in ("MinMaxObserver", "HistogramObserver", "PerChannelMinMaxObserver"),
        )
        for kind, size, arguments in whole + channels
    ]


def _name(kind: str, arguments: dict[str, Any]) -> str:
    return f"{kind}, axis {arguments['ch_axis']}" if arguments else kind


def _others() -> list[Variant]:
    histogram = functools.partial(Subject, "HistogramObserver", "6 MB", {})
    kinds = (("MinMaxObserver", {}), ("HistogramObserver", {}), ("PerChannelMinMaxObserver", {"ch_axis": 1}))
    searches = [
        Variant(
            f"{_name(kind, arguments)}: qparams",
            what,
            functools.partial(Subject, kind, "6 MB", arguments),
            pair(build),
            kind == "HistogramObserver",
        )
        for kind, arguments in kinds
        for what, build in (("after a small update", _search), ("once more", _again))
    ]
    return [Variant("HistogramObserver", "6 MB, range grows", histogram, pair(_growing)), *searches]


CASE = Case(
    "observers",
    "Observers",
    lambda: [*_updates(), *_others()],
    measure,
    least_sqnr=100,
    rows="variants",
    targets=(
        Target("ours", "one read", 1.25, "*MinMaxObserver* / 6 MB*"),
        Target("ours", "one read", 1.25, "*MinMaxObserver* / 50 MB"),
        Target("ours", "one read", 4, "HistogramObserver / *MB*"),
        Target("ours, no kernels", "torch.ao", 1.0, "HistogramObserver / *"),
        Target("ours", "torch.ao", 0.2, "HistogramObserver: qparams / *"),
    ),
)
