"""A calibration pass beside the pass of the float model."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

from benchmarks import models
from benchmarks.contenders import Subject, pair, prepared_model
from benchmarks.interleaved import measure
from benchmarks.libraries import LIBRARIES, default_engine
from benchmarks.model import Case, Contender, Target, Variant
from benchmarks.timing import Local


@dataclass(frozen=True, eq=False)
class Calibrated(Subject):
    """A model to calibrate with a qconfig of that name; '' is the engine's default."""

    qconfig: str = ""


def _float(subject: Calibrated) -> Local:
    return Local(functools.partial(copy.deepcopy(subject.float_model), subject.x))


def _prepared(library: str, subject: Calibrated) -> Local:
    q: Any = LIBRARIES[library]().q
    qconfig = getattr(q, subject.qconfig) if subject.qconfig else None
    model = prepared_model(library, default_engine(), subject, qconfig)
    return Local(functools.partial(model, subject.x), default_engine())


def _subject(qconfig: str) -> Calibrated:
    model = functools.partial(models.classifier, "ResNet-18")
    return Calibrated(model, models.images(1, 8), qconfig=qconfig)


CASE = Case(
    "calibration",
    "A calibration pass of ResNet-18, batch 8",
    lambda: [
        Variant(
            "observers of activations",
            name,
            functools.partial(_subject, qconfig),
            (Contender("float", _float), *pair(_prepared)),
            not qconfig,
        )
        for name, qconfig in (("histogram, the default", ""), ("minimum and maximum", "default_qconfig"))
    ],
    measure,
    least_sqnr=100,
    reference="float",
    baseline="float",
    targets=(Target("ours", "float", 1.25), Target("ours", "torch.ao", 1.0)),
)
