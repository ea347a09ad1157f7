"""What each rank of `test_distributed` does: calibrate or train on data of its own, sync, convert, report."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import quantization as q

PTQ: dict[str, Callable[[], q.QConfig]] = {
    "minmax": lambda: q.default_per_channel_qconfig,
    "moving": lambda: q.QConfig(
        activation=q.MovingAverageMinMaxObserver.with_args(averaging_constant=0.3),
        weight=q.default_weight_observer,
    ),
    "histogram": lambda: q.get_default_qconfig("qnnpack"),
}


def batch(rank: int) -> torch.Tensor:
    """Data that differs from rank to rank, in range too."""
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(32, 4, generator=generator) * (1 + rank)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(q.QuantStub(), nn.Linear(4, 3), nn.Hardswish(), q.DeQuantStub())


def calibrated(qconfig: Callable[[], q.QConfig], batches: list[torch.Tensor]) -> nn.Module:
    model = layers().eval()
    model.qconfig = qconfig()
    model = q.prepare(model)
    for x in batches:
        model(x)
    return model


def trainable(version: int, backend: str = "x86") -> nn.Module:
    model = layers().train()
    model.qconfig = q.get_default_qat_qconfig(backend, version)
    return q.prepare_qat(model)


def state_of(model: nn.Module) -> dict[str, Any]:
    state = {}
    for key, value in model.state_dict().items():
        if isinstance(value, tuple):
            weight, bias = value
            state[key + ".codes"], state[key + ".bias"] = weight.int_repr(), bias.detach().clone()
        else:
            state[key] = value.clone() if isinstance(value, torch.Tensor) else str(value)
    return state


def outcome(model: nn.Module, before: dict[str, Any]) -> dict[str, Any]:
    converted = q.convert(copy.deepcopy(model).eval())
    after, output = state_of(model), converted(batch(5))
    return {"before": before, "after": after, "converted": state_of(converted), "output": output}


def post_training(rank: int, qconfig: Callable[[], q.QConfig]) -> dict[str, Any]:
    model = calibrated(qconfig, [batch(rank)])
    before = state_of(model)
    q.sync_observers(model)
    return outcome(model, before)


def training(rank: int, version: int) -> dict[str, Any]:
    model = DistributedDataParallel(trainable(version))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(x: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(3):
        step(batch(rank))
    model.apply(q.disable_observer)
    before = state_of(model.module)
    q.sync_observers(model)
    found = outcome(model.module, before)
    fakes = [m for m in model.modules() if isinstance(m, q.FakeQuantize)][:2]
    found["switches"] = [(int(m.observer_enabled), int(m.fake_quant_enabled)) for m in fakes]
    found["loss after"] = step(batch(rank))
    return found


def one_sided(rank: int) -> dict[str, Any]:
    model = trainable(0)
    if rank == 1:
        model(batch(rank))
    q.sync_observers(model)
    return state_of(model)


class Peak(q.ObserverBase):
    """An observer that merges itself."""

    def __init__(self) -> None:
        super().__init__(torch.quint8)
        self.register_buffer("peak", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self, **kwargs: Any) -> Any:
        return self.peak, torch.zeros(1)

    def merge_statistics(self, states: list[dict[str, torch.Tensor]]) -> None:
        self.peak.copy_(torch.stack([state["peak"] for state in states]).max())


class Mute(Peak):
    merge_statistics = None  # pyright: ignore[reportAssignmentType]


def refusals(rank: int) -> dict[str, Any]:
    model = calibrated(PTQ["minmax" if rank else "moving"], [batch(rank)])
    before = state_of(model)
    found: dict[str, Any] = {"different": message_of(model)}
    found["different untouched"] = all(str(before[k]) == str(v) for k, v in state_of(model).items())
    own = Peak()
    own.peak.fill_(7.0 if rank else 3.0)
    q.sync_observers(own)
    return {**found, "own": own.peak.item(), "unknown": message_of(Mute())}


def message_of(model: nn.Module) -> str:
    try:
        q.sync_observers(model)
    except q.QuantizationError as error:
        return str(error)
    return ""


def work(rank: int, ranks: int, folder: str) -> None:
    """One rank: everything that needs two processes, and a file with what came of it."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found: dict[str, Any] = {case: post_training(rank, qconfig) for case, qconfig in PTQ.items()}
    found |= {f"qat{version}": training(rank, version) for version in (0, 1)}
    found |= {"one sided": one_sided(rank), **refusals(rank)}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
