"""Static int8 convolutional networks."""

from __future__ import annotations

import functools

from benchmarks import models
from benchmarks.contenders import Subject, static_contenders
from benchmarks.interleaved import measure
from benchmarks.model import Case, Target, Variant


def _subject(name: str, batch: int) -> Subject:
    calibration = [models.images(seed, batch) for seed in range(10, 12)]
    return Subject(functools.partial(models.classifier, name), models.images(1, batch), calibration)


def _variants() -> list[Variant]:
    return [
        Variant(
            name,
            f"batch {batch}",
            functools.partial(_subject, name, batch),
            static_contenders(),
            (name, batch) == ("ResNet-18", 1),
        )
        for name in models.CLASSIFIERS
        for batch in (1, 8)
    ]


CASE = Case(
    "static_cnn",
    "ResNet-18 and MobileNetV2, static int8",
    _variants,
    measure,
    # Random weights, fifty layers, seven bits a code on x86.
    least_sqnr=10,
    reference="float",
    targets=(
        Target("ours auto", "torch.ao *", 1.0),
        Target("scripted ours auto", "scripted torch.ao *", 1.0),
    ),
)
