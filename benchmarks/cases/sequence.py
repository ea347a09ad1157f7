"""A transformer encoder and recurrent networks, quantized dynamically; the LSTM statically too."""

from __future__ import annotations

import functools

from torch import nn

from benchmarks import models
from benchmarks.contenders import Subject, dynamic_contenders, on_default_engine, static
from benchmarks.interleaved import measure
from benchmarks.libraries import Parts
from benchmarks.model import Case, Contender, Target, Variant
from benchmarks.timing import Local


def _encoder(batch: int) -> Subject:
    return Subject(lambda _: models.encoder(), models.seeded(1, batch, 64, 384))


def _recurrent(kind: type[nn.LSTM] | type[nn.GRU], batch: int) -> Subject:
    x = models.seeded(1, batch, 50, 256)
    return Subject(lambda _: models.recurrent(kind), x, quantized_types=frozenset({kind}))


def _static(name: str, engine: str, subject: Subject) -> Local:
    """The same LSTM between stubs, calibrated with batches of the input's shape."""

    def model(parts: Parts) -> nn.Module:
        return models.Stubbed(subject.model(parts), parts).eval()

    calibration = [models.seeded(seed, *subject.x.shape) for seed in range(2, 4)]
    return static(name, engine, Subject(model, subject.x, calibration))


def _contenders(kind: type[nn.Module] | None) -> tuple[Contender, ...]:
    extra = on_default_engine(_static, "static ") if kind is nn.LSTM else ()
    return *dynamic_contenders(), *extra


def _variants() -> list[Variant]:
    encoder = [
        Variant(
            "encoder", f"batch {batch}", functools.partial(_encoder, batch), _contenders(None), batch == 1
        )
        for batch in (1, 16)
    ]
    recurrent = [
        Variant(
            kind.__name__,
            f"batch {batch}",
            functools.partial(_recurrent, kind, batch),
            _contenders(kind),
            batch == 1 and kind is nn.LSTM,
        )
        for kind in (nn.LSTM, nn.GRU)
        for batch in (1, 8)
    ]
    return encoder + recurrent


CASE = Case(
    "sequence",
    "A transformer encoder, an LSTM and a GRU",
    _variants,
    measure,
    least_sqnr=20,
    reference="float",
    targets=(
        Target("ours auto", "torch.ao *", 1.0),
        Target("ours auto", "ONNX Runtime int8", 1.0),
        Target("static ours auto", "ours auto", 3.0, "LSTM / *"),
    ),
)
