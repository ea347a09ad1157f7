"""The words of the suite: a case has variants, a variant has contenders, and each gives a row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.timing import Runner


class Gap(Exception):
    """A contender has no way to do what a variant asks; the message says what is missing."""


@dataclass(frozen=True)
class Contender:
    """Who is measured: `build(subject)` gives something to call, or raises `Gap`.

    `needs` are the packages it imports; with an `environment` it runs in a process of its own. One that
    compiles for long is not `in_quick` runs; one that is a yardstick, of another result, is not `checked`.
    """

    name: str
    build: Callable[[Any], Runner]
    needs: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    in_quick: bool = True
    checked: bool = True


@dataclass(frozen=True)
class Variant:
    """One column of a table: what is measured (`make` gives the subject), and by whom."""

    group: str
    name: str
    make: Callable[[], Any]
    contenders: tuple[Contender, ...]
    in_quick: bool = False


@dataclass(frozen=True)
class Target:
    """A ratio of the issue: `contender` over the fastest one that matches `against`, at most `at_most`.

    `where` chooses variants: a pattern of "group / name".
    """

    contender: str
    against: str
    at_most: float
    where: str = "*"


@dataclass(frozen=True)
class Case:
    """A table of the report; `least_sqnr` is what every contender's result must reach, in decibels.

    The reference is the contender named so, or without one the first that runs.
    """

    name: str
    title: str
    variants: Callable[[], list[Variant]]
    measure: Callable[[Case, Variant, Options], Iterator[Row]]
    least_sqnr: float = 0.0
    reference: str = ""
    targets: tuple[Target, ...] = ()
    baseline: str = "torch.ao*"  # whose best the plot takes for one
    rows: str = "contenders"  # or "variants": what the lines of the table are


@dataclass(frozen=True)
class Options:
    """How long and on how many threads."""

    rounds: int = 15
    threads: int = 1
    quick: bool = False


@dataclass
class Row:
    """What came of a contender in a variant: samples where status is "ok", else a note that says why not."""

    group: str
    variant: str
    contender: str
    status: str = "ok"  # or "gap", "not installed", "wrong result", "error"
    unit: str = "s"
    samples: list[float] = field(default_factory=list)
    sqnr: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The least sample and the third quartile: a busy machine stretches the upper end."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        return min(self.samples), statistics.quantiles(self.samples, n=4, method="inclusive")[2]

    def plain(self) -> dict[str, Any]:
        """As JSON has it, samples with five digits."""
        return asdict(self) | {"samples": [float(f"{sample:.5g}") for sample in self.samples]}
