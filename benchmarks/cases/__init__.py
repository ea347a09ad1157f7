"""The cases, in the order of the report."""

from __future__ import annotations

from benchmarks.cases import (
    calibration,
    fake_quantize,
    imports,
    linear,
    memory,
    observers,
    sequence,
    vision,
)
from benchmarks.model import Case, Contender, Variant

CASES: tuple[Case, ...] = (
    linear.DYNAMIC,
    linear.STATIC,
    sequence.CASE,
    vision.CASE,
    observers.CASE,
    calibration.CASE,
    fake_quantize.FAKE_QUANTIZE,
    fake_quantize.QAT_STEP,
    memory.CASE,
    imports.CASE,
)


def chosen(pattern: str) -> list[Case]:
    """The cases whose name has `pattern` in it."""
    return [case for case in CASES if pattern in case.name]


def find(case: str, group: str, variant: str, contender: str) -> tuple[Variant, Contender]:
    """One contender of one variant, by their names."""
    (found,) = [c for c in CASES if c.name == case]
    (place,) = [v for v in found.variants() if (v.group, v.name) == (group, variant)]
    (who,) = [c for c in place.contenders if c.name == contender]
    return place, who
