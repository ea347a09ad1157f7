"""What `torch.fused_moving_avg_obs_fake_quant` does, in less time: observe, derive the grid, round.

The numbers are the operator's, bit for bit. In plain torch it is asked itself, about a tensor that holds
nothing but the range of the given one: for the statistics, that is as good.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eagerquant_native.library import is_plain, kernel
from observers.finite import is_finite_range
from observers.reductions import SUFFIX, channel_range, whole_range
from observers.rounding import fake_quantize, fake_quantize_channels
from observers.straight import (
    MaskGate,
    address,
    dense,
    is_readable,
    masked,
    wants_gradient,
    with_gradient,
)


def observe_and_round(x: Tensor, module: nn.Module) -> Tensor | None:
    """The output of `module`, a `FusedMovingAvgObsFakeQuantize`, for `x`, which its buffers then include.

    None, and nothing is changed, for what is left to torch's operator: rounding switched off, values that are
    not finite, a first batch per channel, other dtypes and devices, compilation.
    """
    if x.dtype not in SUFFIX or not is_plain(x) or x.numel() == 0:
        return None
    state = State(module)
    if not state.suits(x):
        return None
    if state.per_channel:
        return _channels(x, state)
    if not (_observed_by_kernel(x, state) or _observed_in_steps(x, state)):
        return None
    return fake_quantize(x, state.scale, state.zero_point, state.low, state.high)


class State:
    """The buffers and settings of a fused fake quantizer, read once per call."""

    def __init__(self, module: nn.Module) -> None:
        fused: Any = module
        observer = fused.activation_post_process
        own, observers = fused._buffers, observer._buffers
        self.switches = own["observer_enabled"], own["fake_quant_enabled"]
        self.averages = observers["min_val"], observers["max_val"]
        self.qparams = self.scale, self.zero_point = own["scale"], own["zero_point"]
        self.constant = observer.averaging_constant
        self.low, self.high = observer.quant_min, observer.quant_max
        self.symmetric, self.per_channel = fused.is_symmetric_quant, fused.is_per_channel
        self.axis = fused.ch_axis

    def suits(self, x: Tensor) -> bool:
        """Whether the buffers are as a fresh module's, fit `x`, and say that it is rounded."""
        channels = 1
        if self.per_channel:
            if self.axis != 0 or x.dim() < 2:
                return False
            channels = x.size(0)
        for buffer in (*self.averages, self.scale):
            if not (is_plain(buffer) and buffer.dtype is torch.float32 and buffer.numel() == channels):
                return False
        zero_point = self.zero_point
        if not (is_plain(zero_point) and zero_point.dtype is torch.int32 and zero_point.numel() == channels):
            return False
        return self.switches[1].is_cpu and self.switches[1].item() == 1

    def settings(self) -> tuple[Any, ...]:
        """What a kernel takes from `observing` on."""
        low, high = self.averages
        return (
            self.switches[0].item() == 1,
            low.data_ptr(),
            high.data_ptr(),
            self.constant,
            self.low,
            self.high,
            self.symmetric,
            self.scale.data_ptr(),
            self.zero_point.data_ptr(),
        )


def _observed_by_kernel(x: Tensor, state: State) -> bool:
    run = kernel(f"observe_tensor{SUFFIX[x.dtype]}")
    if run is None:
        return False
    source, _ = dense(x)
    return run(source.data_ptr(), x.numel(), *state.settings()) == 0


@torch.no_grad()
def _observed_in_steps(x: Tensor, state: State) -> bool:
    if state.switches[0].item() == 1:
        low, high = channel_range(x, 0) if state.per_channel else whole_range(x)
        if not is_finite_range(low.float(), high.float()):
            return False
        statistics = torch.stack([low, high], dim=-1).float()
    else:
        statistics = state.scale.new_zeros((state.scale.numel(), 1))
    torch.fused_moving_avg_obs_fake_quant(
        statistics,
        *state.switches,
        *state.averages,
        *state.qparams,
        state.constant,
        state.low,
        state.high,
        state.axis,
        state.per_channel,
        state.symmetric,
    )
    return True


def _channels(x: Tensor, state: State) -> Tensor | None:
    run = kernel(f"observe_and_round{SUFFIX[x.dtype]}")
    source, layout = dense(x)
    outer, channels, inner = layout.runs(x, 0)
    if run is not None and outer == 1:
        gate = MaskGate(layout, channels, inner)
        mask = gate.mask() if wants_gradient(x) else None
        value = torch.empty_like(source, requires_grad=False)
        addresses = source.data_ptr(), value.data_ptr(), address(mask)
        if run(*addresses, channels, inner, *state.settings()) == 0:
            return with_gradient(x, masked(value, gate, mask))
    if not _observed_in_steps(x, state):
        return None
    return fake_quantize_channels(x, state.scale, state.zero_point, 0, state.low, state.high)


def observe_and_round_scaled(x: Tensor, factor: Tensor, module: nn.Module) -> Tensor | None:
    """The output of `module`, a per-channel one, for `x * factor`, which is not made; `factor` is [channels].

    None, and nothing is changed, for what is left to two steps.
    """
    run = kernel("observe_and_round_scaled")
    if run is None or x.dtype is not torch.float32 or not is_plain(x) or x.numel() == 0:
        return None
    state = State(module)
    if not (state.per_channel and state.suits(x) and _is_factor(factor, x.size(0))):
        return None
    source, layout = dense(x)
    outer, channels, inner = layout.runs(x, 0)
    if outer != 1 or source is not x:
        return None
    gate = MaskGate(layout, channels, inner)
    tracked = wants_gradient(x) or wants_gradient(factor)
    mask = gate.mask() if tracked else None
    value = torch.empty_like(x, requires_grad=False)
    addresses = x.data_ptr(), factor.data_ptr(), value.data_ptr(), address(mask)
    if run(*addresses, channels, inner, *state.settings()):
        return None
    return _OfScaled.apply(x, factor, lambda: value, mask, gate) if tracked else value


def _is_factor(factor: Tensor, channels: int) -> bool:
    fits = factor.dtype is torch.float32 and factor.dim() == 1 and factor.numel() == channels
    return fits and is_plain(factor) and factor.is_contiguous()


class _OfScaled(torch.autograd.Function):
    """The gradient of rounding `x * factor`, straight through, by both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, value: Any, mask: Tensor, gate: MaskGate) -> Tensor:
        ctx.save_for_backward(x, factor, mask)
        ctx.gate = gate
        return value()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, factor, mask = ctx.saved_tensors
        by_x, by_factor = _by_both(gradients[0], x, factor, mask, ctx.gate)
        others = list(range(1, x.dim()))
        return by_x, by_factor.sum(others), None, None, None


def _by_both(
    gradient: Tensor, x: Tensor, factor: Tensor, mask: Tensor, gate: MaskGate
) -> tuple[Tensor, Tensor]:
    name, sizes = "keep_scaled", (gate.rows, gate.length)
    readable = is_readable(gradient) and gradient.dtype is torch.float32 and not torch.is_grad_enabled()
    if readable and not gate.layout.fits(gradient):
        # The usual gradient of a convolution on activations that lie channels last.
        name, sizes = "keep_scaled_across", (gate.rows, x.size(1), gate.length // x.size(1))
        readable = x.is_contiguous() and _lies_channels_last(gradient)
    keep = kernel(name) if readable else None
    if keep is None:
        kept = gate(gradient, mask)
        return kept * factor.reshape([-1] + [1] * (x.dim() - 1)), kept * x
    by_x, by_factor = torch.empty_like(gradient), torch.empty_like(gradient)
    addresses = [each.data_ptr() for each in (gradient, mask, x, factor, by_x, by_factor)]
    keep(*addresses, *sizes)
    return by_x, by_factor


def _lies_channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])
