"""One linear layer, dynamic and static, over its rows and sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable

from benchmarks import models
from benchmarks.contenders import Subject, dynamic_contenders, static_contenders
from benchmarks.interleaved import measure
from benchmarks.model import Case, Contender, Target, Variant

SIZES = ((384, 1536), (768, 3072), (4096, 4096))
ROWS = (1, 8, 32, 256)
QUICK = ((384, 1536, 1), (384, 1536, 32))


def _subject(inputs: int, outputs: int, rows: int) -> Subject:
    return Subject(lambda _: models.linear(inputs, outputs), models.seeded(1, rows, inputs))


def _between_stubs(inputs: int, outputs: int, rows: int) -> Subject:
    def model(parts: models.Parts) -> models.Stubbed:
        return models.Stubbed(models.linear(inputs, outputs), parts).eval()

    calibration = [models.seeded(seed, rows, inputs) for seed in range(10, 12)]
    return Subject(model, models.seeded(1, rows, inputs), calibration)


def _static_contenders() -> tuple[Contender, ...]:
    return tuple(each for each in static_contenders() if each.name != "torchao")


def _variants(
    subject: Callable[[int, int, int], Subject], contenders: Callable[[], tuple[Contender, ...]]
) -> list[Variant]:
    return [
        Variant(
            f"{inputs} to {outputs}",
            f"{rows} row{'s' * (rows > 1)}",
            functools.partial(subject, inputs, outputs, rows),
            contenders(),
            (inputs, outputs, rows) in QUICK,
        )
        for inputs, outputs in SIZES
        for rows in ROWS
    ]


DYNAMIC = Case(
    "dynamic_linear",
    "A dynamic linear layer",
    functools.partial(_variants, _subject, dynamic_contenders),
    measure,
    least_sqnr=30,
    reference="float",
    targets=(
        Target("ours auto", "torch.ao *", 1.0),
        Target("ours auto", "ONNX Runtime int8", 1.0),
        Target("ours per row", "ours auto", 1.25, "*/ 32 rows"),
        Target("ours per row", "ours auto", 1.25, "*/ 256 rows"),
    ),
)
STATIC = Case(
    "static_linear",
    "A static linear layer between its stubs",
    functools.partial(_variants, _between_stubs, _static_contenders),
    measure,
    least_sqnr=25,
    reference="float",
    targets=(Target("ours auto", "torch.ao *", 1.0),),
)
