"""The four min/max observers: a way to reduce a tensor (whole, or per channel) times a way to merge batches.

|                | running min/max            | moving average                          |
|----------------|----------------------------|-----------------------------------------|
| whole tensor   | `MinMaxObserver`           | `MovingAverageMinMaxObserver`           |
| per channel    | `PerChannelMinMaxObserver` | `MovingAveragePerChannelMinMaxObserver` |
"""

from typing import Any, cast

import torch

from observers.dtypes import is_per_channel, is_per_tensor
from observers.errors import InvalidRequest, Unsupported
from observers.finite import without_branches
from observers.range_observer import RangeObserver
from observers.reductions import channel_range, update_range, whole_range

_EPS = torch.finfo(torch.float32).eps


class MinMaxObserver(RangeObserver):
    """The range is the smallest and the largest value seen so far: min(x), max(x) over all batches.

    >>> observer = MinMaxObserver()
    >>> _ = observer(torch.tensor([-1.0, 1.55]))
    >>> scale, zero_point = observer.calculate_qparams()
    >>> round(scale.item(), 4), zero_point.item()
    (0.01, 100)
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = _EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        _require_per_tensor(type(self).__name__, qscheme)
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            factory_kwargs=factory_kwargs,
            eps=eps,
            is_dynamic=is_dynamic,
            **kwargs,
        )
        options = cast("dict[str, Any]", torch.nn.factory_kwargs(factory_kwargs))
        self.register_buffer("min_val", torch.tensor(float("inf"), **options))
        self.register_buffer("max_val", torch.tensor(float("-inf"), **options))

    def _range_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return whole_range(x)

    @torch.jit.unused
    def _updated(self, x: torch.Tensor) -> bool:
        return _by_kernel(self, x, None)

    @torch.jit.export
    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        self.min_val.fill_(float("inf"))
        self.max_val.fill_(float("-inf"))


class MovingAverageMinMaxObserver(MinMaxObserver):
    """The range is the exponential moving average of the batches' ranges.

    The first batch is taken as it is; later r <- r + c * (r_batch - r) with c = `averaging_constant`.

    >>> observer = MovingAverageMinMaxObserver(averaging_constant=0.5)
    >>> for top in (1.0, 3.0):
    ...     _ = observer(torch.tensor([0.0, top]))
    >>> observer.max_val.item()
    2.0
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = _EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        _require_per_tensor(type(self).__name__, qscheme)
        if is_dynamic and averaging_constant != 1:
            raise Unsupported(
                f"{type(self).__name__} doesn't support dynamic quantization for averaging constant of "
                f"{averaging_constant}: a dynamic observer keeps no memory, so pass averaging_constant=1"
            )
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            eps=eps,
            is_dynamic=is_dynamic,
            **kwargs,
        )
        self.averaging_constant = averaging_constant

    def _merged(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        average = (
            self.min_val + self.averaging_constant * (low - self.min_val),
            self.max_val + self.averaging_constant * (high - self.max_val),
        )
        if not torch.jit.is_scripting():
            if not without_branches(low):
                return (low, high) if self._is_unobserved() else average
        # Selected rather than branched on, which cannot be traced.
        first = (self.min_val == float("inf")) & (self.max_val == float("-inf"))
        return torch.where(first, low, average[0]), torch.where(first, high, average[1])

    @torch.jit.unused
    def _is_unobserved(self) -> bool:
        return float(self.min_val) == float("inf") and float(self.max_val) == float("-inf")


class PerChannelMinMaxObserver(RangeObserver):
    """One range per index along `ch_axis`: the smallest and the largest value seen in that channel.

    `min_val` and `max_val` are empty until the first batch tells the number of channels. A channel without
    any finite value keeps the range it had, or is taken as zero if it had none.

    >>> observer = PerChannelMinMaxObserver(ch_axis=0)
    >>> _ = observer(torch.tensor([[-1.0, 1.0], [0.0, 5.0]]))
    >>> observer.max_val
    tensor([1., 5.])
    """

    def __init__(
        self,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = _EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if not is_per_channel(qscheme):
            raise Unsupported(
                f"{type(self).__name__}'s qscheme only support torch.per_channel_symmetric, "
                f"torch.per_channel_affine and torch.per_channel_affine_float_qparams; got {qscheme}"
            )
        if is_dynamic:
            raise Unsupported(
                f"{type(self).__name__} doesn't support dynamic quantization: use a per-tensor observer"
            )
        super().__init__(
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            factory_kwargs=factory_kwargs,
            eps=eps,
            is_dynamic=is_dynamic,
            **kwargs,
        )
        self.ch_axis = ch_axis
        options = cast("dict[str, Any]", torch.nn.factory_kwargs(factory_kwargs))
        self.register_buffer("min_val", torch.tensor([], **options))
        self.register_buffer("max_val", torch.tensor([], **options))

    def _range_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        axis = self._axis_in(x)
        if axis < 0:
            raise InvalidRequest(
                f"a per-channel observer with ch_axis={self.ch_axis} got an input of shape {x.shape}: "
                "expected at least two dimensions, ch_axis among them"
            )
        if self.min_val.numel() > 0 and self.min_val.size(0) != x.size(axis):
            raise InvalidRequest(
                f"a per-channel observer that saw {self.min_val.size(0)} channels got an input of shape "
                f"{x.shape}, with {x.size(axis)} of them along ch_axis={self.ch_axis}: "
                "call reset_min_max_vals() to start anew"
            )
        return channel_range(x, axis)

    def _axis_in(self, x: torch.Tensor) -> int:
        """The axis of the channels, counted from the front; -1 if `x` has none."""
        axis = self.ch_axis + x.dim() if self.ch_axis < 0 else self.ch_axis
        return axis if x.dim() >= 2 and 0 <= axis and axis < x.dim() else -1

    @torch.jit.unused
    def _updated(self, x: torch.Tensor) -> bool:
        axis = self._axis_in(x)
        return axis >= 0 and _by_kernel(self, x, axis)

    @torch.jit.export
    def reset_min_max_vals(self) -> None:
        """Forget what was observed, the number of channels included."""
        # Two separate tensors that no optimisation of a script may take for one: hence not a constant.
        self.min_val = torch.rand(0, device=self.min_val.device, dtype=self.min_val.dtype)
        self.max_val = torch.rand(0, device=self.max_val.device, dtype=self.max_val.dtype)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Load any version: the range takes the checkpoint's number of channels."""
        for name in ("min_val", "max_val"):
            key = prefix + name
            # Versions 1 and 2 called them min_vals and max_vals.
            if prefix + name + "s" in state_dict:
                state_dict[key] = state_dict.pop(prefix + name + "s")
            if key in state_dict:
                getattr(self, name).resize_(state_dict[key].shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """One range per index along `ch_axis`: the exponential moving average of the batches' ranges.

    The first batch is taken as it is; later r <- r + c * (r_batch - r) with c = `averaging_constant`.

    >>> observer = MovingAveragePerChannelMinMaxObserver(averaging_constant=0.5)
    >>> for top in (1.0, 3.0):
    ...     _ = observer(torch.tensor([[0.0, top]]))
    >>> observer.max_val
    tensor([2.])
    """

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = _EPS,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            ch_axis=ch_axis,
            dtype=dtype,
            qscheme=qscheme,
            reduce_range=reduce_range,
            quant_min=quant_min,
            quant_max=quant_max,
            eps=eps,
            is_dynamic=is_dynamic,
            **kwargs,
        )
        self.averaging_constant = averaging_constant

    def _merged(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.min_val.numel() == 0:
            return low, high
        return (
            self.min_val + self.averaging_constant * (low - self.min_val),
            self.max_val + self.averaging_constant * (high - self.max_val),
        )


def _by_kernel(observer: RangeObserver, x: torch.Tensor, axis: int | None) -> bool:
    """Whether a kernel has updated the range; not that of a subclass, which may merge in its own way."""
    if type(observer) in (MinMaxObserver, PerChannelMinMaxObserver):
        return update_range(x, axis, observer.min_val, observer.max_val)
    if type(observer) in (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver):
        constant: Any = observer.averaging_constant
        if constant >= 0:
            return update_range(x, axis, observer.min_val, observer.max_val, constant)
    return False


def _require_per_tensor(name: str, qscheme: torch.qscheme) -> None:
    if not is_per_tensor(qscheme):
        raise Unsupported(
            f"{name}'s qscheme only support torch.per_tensor_symmetric and torch.per_tensor_affine. "
            f"but got: {qscheme}; use PerChannelMinMaxObserver for per-channel qschemes"
        )
