"""Measure a variant: build the contenders, check their results, time those that are right turn by turn."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from benchmarks.checks import as_tensor, sqnr
from benchmarks.libraries import installed
from benchmarks.model import Case, Contender, Gap, Options, Row, Variant
from benchmarks.remote import Remote
from benchmarks.timing import Runner, interleave


def measure(case: Case, variant: Variant, options: Options) -> Iterator[Row]:
    """One row for each contender of the variant, those that cannot run included."""
    rows, runners = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao and the exporters speak of their own end
        subject = variant.make()
        for contender in variant.contenders:
            row = rows[contender.name] = Row(variant.group, variant.name, contender.name)
            runner = _build(case, variant, contender, subject, options, row)
            if runner is not None:
                runners[contender.name] = runner
        unchecked = [contender.name for contender in variant.contenders if not contender.checked]
        _check(case, rows, runners, unchecked)
        for name, samples in interleave(runners, options.rounds).items():
            rows[name].samples = samples
    for runner in runners.values():
        runner.close()
    yield from rows.values()


def _build(
    case: Case, variant: Variant, contender: Contender, subject: Any, options: Options, row: Row
) -> Runner | None:
    missing = [package for package in contender.needs if not installed(package)]
    if missing:
        row.status, row.note = "not installed", f"{', '.join(missing)}: not installed"
        return None
    try:
        if options.quick and not contender.in_quick:
            raise Gap("left out of quick runs")
        if contender.environment:
            key = (case.name, variant.group, variant.name, contender.name)
            return Remote(contender.environment, key, options.threads)
        return contender.build(subject)
    except Gap as gap:
        row.status, row.note = "gap", str(gap)
    except Exception as error:
        row.status, row.note = "error", _in_short(error)
    return None


def _check(case: Case, rows: dict[str, Row], runners: dict[str, Runner], unchecked: list[str]) -> None:
    """Compare every result with the reference's, and drop the runners that are not near enough."""
    expected: Tensor | None = None
    for name in sorted(runners, key=lambda name: not fnmatch.fnmatch(name, case.reference or name)):
        row = rows[name]
        if name in unchecked:
            continue
        try:
            got = as_tensor(runners[name].result())
        except Exception as error:
            row.status, row.note = "error", _in_short(error)
        else:
            expected = got if expected is None else expected
            row.sqnr = sqnr(expected, got)
            if row.sqnr < case.least_sqnr:
                row.status = "wrong result"
                row.note = f"{row.sqnr} dB from the reference, {case.least_sqnr:g} dB are expected"
        if row.status != "ok":
            runners.pop(name).close()


def _in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]
