"""Several processes, one calibration: merge what the observers of every rank have seen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from observers import (
    FakeQuantize,
    FixedQParamsFakeQuantize,
    FixedQParamsObserver,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
)
from quantization.errors import InvalidRequest, Unsupported, at

State = dict[str, Tensor]
Compute = Callable[[Any, Sequence[State]], State]
# Computes from the states of all ranks; what it returns writes the result.
Merge = Callable[[Any, Sequence[State]], Callable[[], None]]


def sync_observers(model: nn.Module, group: Any = None) -> None:
    """Give every observer of `model` the statistics of all ranks, so that each converts to the same model.

    Every rank of `group` (default: all) calls this with the same model, prepared for calibration or training,
    bare or inside `DistributedDataParallel`; one collective follows. Over the ranks that saw data:

    - running ranges (`MinMaxObserver`, `PerChannelMinMaxObserver`): smallest minimum, largest maximum;
    - moving averages: the mean of the ranks' averages;
    - `HistogramObserver`: counts are added, after each is moved to bins over the union of all ranges.

    Fake quantizers then take their scale and zero point from the merged range. An observer class of your own
    that keeps buffers merges itself in a method `merge_statistics(states)`, which gets the `state_dict` of
    each rank, on the CPU. Batch norms are not observers: use `SyncBatchNorm`, or convert on one rank.

    Raises:
        InvalidRequest: no process group, or the ranks' models differ; every rank raises and none changes.
        Unsupported: an observer with buffers that nobody knows how to merge.

    >>> model = nn.Sequential(QuantStub(), nn.Linear(4, 2)).eval()
    >>> model.qconfig = get_default_qconfig()
    >>> prepared = prepare(model)
    >>> _ = prepared(torch.randn(8, 4))
    >>> store = torch.distributed.HashStore()
    >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> sync_observers(prepared)
    >>> torch.distributed.destroy_process_group()
    """
    ranks = _group_size(group)
    observers = {name: m for name, m in model.named_modules() if isinstance(m, ObserverBase)}
    everyone: list[dict[str, tuple[str, State]]] = [{} for _ in range(ranks)]
    dist.all_gather_object(everyone, {name: _described(m) for name, m in observers.items()}, group=group)
    _require_alike(everyone)
    stateful = {name: observer for name, observer in observers.items() if everyone[0][name][1]}
    merges = {name: _merge_of(observer) for name, observer in stateful.items()}
    merged: dict[str, Callable[[], None]] = {}
    for name, observer in stateful.items():
        states = [seen[name][1] for seen in everyone]
        with at(name, "merging the statistics of"), torch.no_grad():
            merged[name] = merges[name](observer, states)
    for take in merged.values():
        take()
    for module in model.modules():
        if isinstance(module, FakeQuantize) and not isinstance(module, FixedQParamsFakeQuantize):
            _refresh(module)


def _group_size(group: Any) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        raise InvalidRequest(
            "sync_observers needs a process group, and there is none: call "
            "torch.distributed.init_process_group first, on every rank"
        )
    if dist.get_rank(group) < 0:
        raise InvalidRequest("this rank is not in the group: call sync_observers on ranks of the group only")
    return dist.get_world_size(group)


def _described(observer: nn.Module) -> tuple[str, State]:
    """Class name and statistics; the statistics leave the device, so that every rank computes alike."""
    state = {name: value.detach().cpu().clone() for name, value in observer.named_buffers(recurse=False)}
    return type(observer).__qualname__, state


def _require_alike(everyone: Sequence[dict[str, tuple[str, State]]]) -> None:
    first = {name: kind for name, (kind, _) in everyone[0].items()}
    for rank, described in enumerate(everyone):
        kinds = {name: kind for name, (kind, _) in described.items()}
        if kinds != first:
            odd = sorted(name for name in {*kinds, *first} if kinds.get(name) != first.get(name))
            raise InvalidRequest(
                f"ranks have different observers: {odd[0]!r} is {kinds.get(odd[0])} on rank {rank} and "
                f"{first.get(odd[0])} on rank 0; prepare the same model with the same qconfig on every rank"
            )


def _merge_of(observer: Any) -> Merge:
    if getattr(observer, "merge_statistics", None) is not None:
        return lambda observer, states: functools.partial(observer.merge_statistics, states)
    for kinds, compute in _COMPUTED:
        if isinstance(observer, kinds):
            return functools.partial(_computed, compute)
    if isinstance(observer, FixedQParamsObserver):
        return functools.partial(_computed, lambda observer, states: {})
    raise Unsupported(
        f"{type(observer).__name__} keeps statistics that sync_observers cannot merge: give the class a "
        "method merge_statistics(states), which gets the state_dict of each rank and sets the merged values"
    )


def _computed(compute: Compute, observer: Any, states: Sequence[State]) -> Callable[[], None]:
    return functools.partial(_take, observer, compute(observer, states))


def _seen(states: Sequence[State]) -> list[State]:
    """The states of ranks whose observer saw data."""
    return [
        state
        for state in states
        if state["min_val"].numel() and bool((state["min_val"] <= state["max_val"]).all())
    ]


def _stacked(states: Sequence[State], name: str) -> Tensor:
    shapes = {tuple(state[name].shape) for state in states}
    if len(shapes) > 1:
        raise InvalidRequest(f"ranks saw different numbers of channels: {name} has shapes {sorted(shapes)}")
    return torch.stack([state[name].double() for state in states])


def _union(_: Any, states: Sequence[State]) -> State:
    seen = _seen(states)
    if not seen:
        return {}
    return {"min_val": _stacked(seen, "min_val").amin(0), "max_val": _stacked(seen, "max_val").amax(0)}


def _mean(_: Any, states: Sequence[State]) -> State:
    seen = _seen(states)
    if not seen:
        return {}
    return {name: _stacked(seen, name).mean(0) for name in ("min_val", "max_val")}


def _histogram(observer: Any, states: Sequence[State]) -> State:
    seen = _seen(states)
    if not seen:
        return {}
    low = torch.stack([state["min_val"] for state in seen]).amin(0)
    high = torch.stack([state["max_val"] for state in seen]).amax(0)
    total = torch.zeros_like(seen[0]["histogram"])
    for state in seen:
        total = observer._combine_histograms(
            state["histogram"], state["min_val"], state["max_val"], total, low, high
        )
    return {"min_val": low, "max_val": high, "histogram": total}


_COMPUTED: tuple[tuple[Any, Compute], ...] = (
    (HistogramObserver, _histogram),
    ((MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver), _mean),
    ((MinMaxObserver, PerChannelMinMaxObserver), _union),
)


def _take(observer: nn.Module, state: State) -> None:
    """Copy into the buffers, which stay the same objects: DistributedDataParallel holds on to them."""
    for name, value in state.items():
        buffer = observer.get_buffer(name)
        if buffer.shape != value.shape:
            buffer.resize_(value.shape)
        buffer.copy_(value)


def _refresh(module: FakeQuantize) -> None:
    """Derive scale and zero point from the merged range, as the next observed batch would."""
    observer: Any = module.activation_post_process
    if not hasattr(observer, "min_val") or not _seen([dict(observer.named_buffers(recurse=False))]):
        return
    with torch.no_grad():
        if not isinstance(module, FusedMovingAvgObsFakeQuantize):
            module._set_qparams(*module.calculate_qparams())
            return
        switches = (module.observer_enabled, module.fake_quant_enabled)
        before = [int(switch) for switch in switches]
        for switch in switches:
            switch.fill_(1)
        # Fed its own range the operator's average stays put, and it derives qparams by its own formula.
        module._fused(torch.stack([observer.min_val, observer.max_val], dim=-1))
        for switch, value in zip(switches, before, strict=True):
            switch.fill_(value)
