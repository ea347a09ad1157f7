"""Conversion of a gigabyte of linear layers: seconds, peak memory, files. Each in a process of its own."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import NO_NATIVE
from benchmarks.libraries import default_engine, installed
from benchmarks.model import Case, Options, Row, Target, Variant
from benchmarks.processes import answer

FULL, QUICK = {"layers": 16, "width": 4096}, {"layers": 4, "width": 1024}
ROUNDS = 3
LEAST_SQNR = 12.0
# name, library, environment
CONTENDERS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (f"torch.ao {default_engine()}", "torch.ao", ()),
    ("ours auto", "ours", ()),
    ("ours auto, no kernels", "ours", NO_NATIVE),
)
UNIT = "x the float model"


def _measure(case: Case, variant: Variant, options: Options) -> Iterator[Row]:
    spec = {**variant.make(), **(QUICK if options.quick else FULL), "threads": options.threads}
    spec["engine"] = default_engine()
    rows: dict[tuple[str, str, str], Row] = {}
    if not Path("/proc/self/clear_refs").exists():
        yield Row(
            variant.group, variant.name, "everyone", "gap", note="peak memory is read from Linux's /proc"
        )
        return
    for _ in range(1 if options.quick else min(options.rounds, ROUNDS)):
        for name, library, environment in CONTENDERS:
            for row in _once(variant, name, {**spec, "library": library}, environment):
                known = rows.setdefault((row.group, row.variant, row.contender), row)
                if known is not row:
                    known.samples += row.samples
    yield from rows.values()


def _once(
    variant: Variant, contender: str, spec: dict[str, Any], environment: tuple[tuple[str, str], ...]
) -> Iterator[Row]:
    """The rows of one process: time and peak of each of its steps."""
    if spec["library"] == "torch.ao" and not installed("torch.ao.quantization"):
        yield Row(variant.group, variant.name, contender, "not installed", note="this torch has no torch.ao")
        return
    try:
        steps = answer(["-m", "benchmarks.conversion", json.dumps(spec)], environment)
    except RuntimeError as error:
        yield Row(variant.group, variant.name, contender, "error", note=str(error)[:160])
        return
    for step, seconds, peak, noise in steps:
        what, _, part = step.partition(": ")
        group = f"{what}, {variant.name}" if not part else f"a file by {what}"
        if noise is not None and noise < LEAST_SQNR:
            note = f"{noise} dB from the float model, {LEAST_SQNR:g} dB are expected"
            yield Row(group, "time", contender, "wrong result", sqnr=noise, note=note)
            continue
        if part == "file":
            yield Row(group, "size", contender, unit=UNIT, samples=[peak])
            continue
        yield Row(group, f"{part or 'time'}", contender, samples=[seconds], sqnr=noise)
        if not part:
            yield Row(group, "peak memory above it", contender, unit=UNIT, samples=[peak])


def _variants() -> list[Variant]:
    return [
        Variant(
            flow, f"inplace={inplace}", functools.partial(dict, flow=flow, inplace=inplace), (), not inplace
        )
        for flow in ("dynamic", "static")
        for inplace in (False, True)
    ]


CASE = Case(
    "conversion",
    "Conversion of 1 GB of linear layers",
    _variants,
    _measure,
    least_sqnr=LEAST_SQNR,
    targets=(
        Target("ours auto", "torch.ao *", 0.2, "quantize_dynamic, * / time"),
        Target("ours auto", "torch.ao *", 0.2, "convert, * / time"),
        Target("ours auto", "", 0.35, "quantize_dynamic, inplace=False / peak*"),
        Target("ours auto", "", 0.1, "quantize_dynamic, inplace=True / peak*"),
        Target("ours auto", "", 0.35, "convert, inplace=False / peak*"),
        Target("ours auto", "", 0.1, "convert, inplace=True / peak*"),
    ),
)
