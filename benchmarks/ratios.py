"""Ratios within a run, round by round: a contender over the fastest of others, and targets for it."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.model import Row, Target

Place = tuple[str, str]  # group and variant


@dataclass(frozen=True)
class Ratio:
    """A target at one variant: median and lower quartile over the rounds, and the ratio of the minima."""

    target: Target
    place: Place
    low: float
    median: float
    of_minima: float

    @property
    def met(self) -> bool:
        """Whether the median reaches the target, as three digits show it."""
        return self.median <= 1.005 * self.target.at_most

    @property
    def verdict(self) -> str:
        """Met, level where a quarter of the rounds reached the target, or by how much it was missed."""
        if self.met:
            return "met"
        if self.low <= self.target.at_most:
            return "level"
        over = self.median / self.target.at_most
        return f"**missed** by {100 * (over - 1):.0f} %" if over < 2 else f"**missed** {over:.1f} times over"


def places(rows: Sequence[Row]) -> dict[Place, list[Row]]:
    """The rows of each variant, in the order they came."""
    found: dict[Place, list[Row]] = {}
    for row in rows:
        found.setdefault((row.group, row.variant), []).append(row)
    return found


def fastest(rows: Sequence[Row], pattern: str) -> Row | None:
    """The row with the lowest median among the contenders that match."""
    matching = [row for row in rows if row.status == "ok" and fnmatch.fnmatch(row.contender, pattern)]
    return min(matching, key=lambda row: row.median, default=None)


def ratios(rows: Sequence[Row], targets: Sequence[Target]) -> Iterator[Ratio]:
    """Every target at every variant where both sides ran."""
    for target in targets:
        for place, there in places(rows).items():
            if fnmatch.fnmatchcase(" / ".join(place), target.where):
                yield from _ratio(target, place, there)


def _ratio(target: Target, place: Place, rows: Sequence[Row]) -> Iterator[Ratio]:
    own = fastest([row for row in rows if row.contender == target.contender], "*")
    base = fastest(rows, target.against) if target.against else None
    if own is None or (target.against and base is None):
        return
    beside = base.samples if base else [1.0] * len(own.samples)
    pairs = list(zip(own.samples, beside, strict=False))  # of a round each: noise met both
    values = [mine / theirs for mine, theirs in pairs]
    low = statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]
    yield Ratio(target, place, low, statistics.median(values), min(own.samples) / min(beside))


def describe(target: Target) -> str:
    """A target in words."""
    if not target.against:
        return f"{target.contender}: at most {target.at_most:.3g}"
    return f"{target.contender} / {other(target)}: at most {target.at_most:.3g}"


def other(target: Target) -> str:
    """Whom a target is taken against, in words."""
    return f"best {target.against.strip(' *')}" if "*" in target.against else target.against
