"""Dynamic quantization of one linear layer, over its rows and sizes."""

from __future__ import annotations

import functools

from benchmarks import models
from benchmarks.contenders import Subject, dynamic_contenders
from benchmarks.interleaved import measure
from benchmarks.model import Case, Target, Variant

SIZES = ((384, 1536), (768, 3072), (4096, 4096))
ROWS = (1, 8, 32, 256)
QUICK = ((384, 1536, 1), (384, 1536, 32))


def _subject(inputs: int, outputs: int, rows: int) -> Subject:
    return Subject(lambda _: models.linear(inputs, outputs), models.seeded(1, rows, inputs))


def _variants() -> list[Variant]:
    return [
        Variant(
            f"{inputs} to {outputs}",
            f"{rows} row{'s' * (rows > 1)}",
            functools.partial(_subject, inputs, outputs, rows),
            dynamic_contenders(),
            (inputs, outputs, rows) in QUICK,
        )
        for inputs, outputs in SIZES
        for rows in ROWS
    ]


CASE = Case(
    "dynamic_linear",
    "A dynamic linear layer",
    _variants,
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
