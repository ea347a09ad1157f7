"""Simulated quantization in training: forward and backward of the fake quantizers, and a whole step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.contenders import pair
from benchmarks.interleaved import measure
from benchmarks.libraries import FLOAT, LIBRARIES, default_engine
from benchmarks.model import Case, Contender, Target, Variant
from benchmarks.timing import Local

ACTIVATION, WEIGHT = (8, 64, 56, 56), (512, 512, 3, 3)
# kind, factory, shape, whether ranges are observed in the same call
KINDS = (
    ("round, per tensor", "default_fake_quant", ACTIVATION, False),
    ("round, per channel", "default_per_channel_weight_fake_quant", WEIGHT, False),
    ("observe and round, per tensor", "default_fused_act_fake_quant", ACTIVATION, True),
    ("observe and round, per channel", "default_fused_per_channel_wt_fake_quant", WEIGHT, True),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Subject:
    """A default fake quantizer by name, and a tensor of a shape and dtype."""

    factory: str
    shape: tuple[int, ...]
    observes: bool
    dtype: torch.dtype

    def module(self, library: str) -> nn.Module:
        """The fake quantizer, its range observed once; it goes on observing where that is asked for."""
        q = LIBRARIES[library]().q
        module = getattr(q, self.factory)().train()
        module(models.seeded(0, *self.shape).to(self.dtype))
        if not self.observes:
            q.disable_observer(module)
        return module


def _forward_backward(call: Callable[[Tensor], Tensor], subject: Subject) -> Local:
    x = models.seeded(1, *subject.shape).to(subject.dtype).requires_grad_()
    gradient = models.seeded(2, *subject.shape).to(subject.dtype)

    def both() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = call(x)
            return y, torch.autograd.grad(y, x, gradient)[0]

    return Local(both, outcome=lambda: torch.cat([part.detach().double() for part in both()]))


def _eager(library: str, subject: Subject) -> Local:
    return _forward_backward(subject.module(library), subject)


def _compiled(library: str, subject: Subject) -> Local:
    torch.compiler.reset()
    return _forward_backward(torch.compile(subject.module(library)), subject)


def _copy(subject: Subject) -> Local:
    """One copy forward, one copy backward: what any operator pays that does not work in place."""
    return _forward_backward(torch.clone, subject)


def _fake_variants() -> list[Variant]:
    compiled = [
        Contender(f"compiled {c.name}", functools.partial(_compiled, c.name), c.needs, in_quick=False)
        for c in pair(_eager)[:2]
    ]
    return [
        Variant(
            kind,
            dtype,
            functools.partial(Subject, factory, shape, observes, DTYPES[dtype]),
            (Contender("two copies", _copy, checked=False), *pair(_eager), *compiled),
            dtype == "float32",
        )
        for kind, factory, shape, observes in KINDS
        for dtype in DTYPES
    ]


FAKE_QUANTIZE = Case(
    "fake_quantize",
    "Fake quantization, forward and backward",
    _fake_variants,
    measure,
    least_sqnr=100,
    targets=(Target("ours", "torch.ao", 1 / 4), Target("ours, no kernels", "torch.ao", 1 / 3)),
)


# --- a whole training step ---


class Step:
    """Forward, backward and the optimizer's step on one batch."""

    def __init__(self, model: nn.Module, size: int) -> None:
        self.model, self.x = model, models.images(1, 8, size)
        self.target = torch.arange(8)
        self.optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def __call__(self) -> Tensor:
        """The loss before the step."""
        with torch.enable_grad():
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(self.x), self.target)
            loss.backward()
            self.optimizer.step()
        return loss.detach()

    def outcome(self) -> Tensor:
        """The scores, before any step."""
        return self.model(self.x)


def _float_step(size: int) -> Local:
    step = Step(models.classifier("ResNet-18", FLOAT).train(), size)
    return Local(step, outcome=step.outcome)


def _qat_step(name: str, size: int) -> Local:
    engine = torch.backends.quantized.engine = default_engine()
    library = LIBRARIES[name]()
    model: Any = models.classifier("ResNet-18", library.parts).train()
    model = library.q.fuse_modules_qat(model, model.fusions())
    model.qconfig = library.q.get_default_qat_qconfig(engine)
    step = Step(library.q.prepare_qat(model), size)
    return Local(step, engine, step.outcome)


QAT_STEP = Case(
    "qat_step",
    "A training step of ResNet-18, batch 8",
    lambda: [
        Variant(
            "QAT beside the float step",
            f"{size} x {size}",
            functools.partial(int, size),
            (Contender("float", _float_step), *pair(_qat_step)),
            size == 112,
        )
        for size in (112, 224)
    ],
    measure,
    least_sqnr=10,
    reference="float",
    baseline="float",
    targets=(Target("ours", "float", 1.3), Target("ours", "torch.ao", 1.0)),
)
