"""Fake quantization: observe, then round to the integer grid in float, with a straight-through gradient.

The output is (clamp(round(x / s) + z, quant_min, quant_max) - z) * s; the gradient is 1 where nothing was
clamped, else 0.
"""

import math
from typing import Any

import torch

from observers.dtypes import integer_info, is_float_qparams, is_per_channel, is_per_tensor, is_symmetric
from observers.errors import InvalidRequest
from observers.finite import IgnoresNonFinite, is_finite_range, without_branches
from observers.minmax import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from observers.moving_average import observe_and_round
from observers.passive import FixedQParamsObserver
from observers.rounding import fake_quantize, fake_quantize_channels
from observers.switches import FakeQuantizeBase as FakeQuantizeBase

# The names under which torch.ao exposes the predicates.
_is_per_channel = is_per_channel
_is_per_tensor = is_per_tensor
_is_symmetric_quant = is_symmetric
_is_float_qparams = is_float_qparams


class FakeQuantize(FakeQuantizeBase):
    """Observes with `observer` and rounds with the qparams it computes.

    `observer` is a class or factory; `quant_min` and `quant_max` (given together), `is_dynamic` and
    `observer_kwargs` go to it. The range used is the observer's, which `reduce_range` may have narrowed.

    >>> fake_quant = FakeQuantize(quant_min=0, quant_max=3)
    >>> fake_quant(torch.tensor([0.0, 0.9, 2.0, 3.0]))
    tensor([0., 1., 2., 3.])
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if quant_min is not None and quant_max is not None:
            _require_levels(quant_min, quant_max, _dtype_of(observer, observer_kwargs))
        if quant_min is not None or quant_max is not None:
            observer_kwargs.update(quant_min=quant_min, quant_max=quant_max)
        observer_kwargs["is_dynamic"] = is_dynamic
        self.activation_post_process = observer(**observer_kwargs)
        self.quant_min = self.activation_post_process.quant_min
        self.quant_max = self.activation_post_process.quant_max
        self.is_dynamic = self.activation_post_process.is_dynamic
        self.dtype = self.activation_post_process.dtype
        self.qscheme = getattr(self.activation_post_process, "qscheme", torch.per_tensor_affine)
        self.ch_axis = getattr(self.activation_post_process, "ch_axis", -1)
        zero_point_dtype = torch.float if is_float_qparams(self.qscheme) else torch.int
        self.register_buffer("scale", torch.tensor([1.0], dtype=torch.float))
        self.register_buffer("zero_point", torch.tensor([0], dtype=zero_point_dtype))
        if not (is_per_channel(self.qscheme) or is_per_tensor(self.qscheme)):
            raise InvalidRequest(
                "Only per channel and per tensor quantization are supported in fake quantize "
                f"got qscheme: {self.qscheme}"
            )
        self.is_per_channel = is_per_channel(self.qscheme)
        self._follow_observer()

    def _follow_observer(self) -> None:
        """Move to the device that `factory_kwargs` gave the observer."""
        for buffer in self.activation_post_process.buffers():
            self.to(buffer.device)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point of what the observer saw."""
        return self.activation_post_process.calculate_qparams()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Observe `X` and return it rounded, each as far as it is switched on."""
        if bool(self.observer_enabled[0] == 1):
            self.activation_post_process(X.detach())
            scale, zero_point = self.calculate_qparams()
            self._set_qparams(scale, zero_point)
        if bool(self.fake_quant_enabled[0] == 1):
            return self._rounded(X)
        return X

    def _set_qparams(self, scale: torch.Tensor, zero_point: torch.Tensor) -> None:
        if self.scale.shape != scale.shape:
            self.scale.resize_(scale.shape)
            self.zero_point.resize_(zero_point.shape)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def _rounded(self, X: torch.Tensor) -> torch.Tensor:
        # The observer's range and not ours: `reduce_range` narrows it there.
        low, high = self.activation_post_process.quant_min, self.activation_post_process.quant_max
        if self.is_per_channel:
            if self.scale.numel() != X.size(self.ch_axis):
                raise InvalidRequest(
                    f"a per-channel fake quantizer with {self.scale.numel()} scale(s) got an input of shape "
                    f"{X.shape}, ch_axis={self.ch_axis}: let it observe finite data of that shape first"
                )
            if not torch.jit.is_scripting():
                return fake_quantize_channels(X, self.scale, self.zero_point, self.ch_axis, low, high)
            return torch.fake_quantize_per_channel_affine(
                X, self.scale, self.zero_point, self.ch_axis, low, high
            )
        if not torch.jit.is_scripting():
            return fake_quantize(X, self.scale, self.zero_point, low, high)
        return torch.fake_quantize_per_tensor_affine(X, self.scale, self.zero_point, low, high)

    def extra_repr(self) -> str:
        """Show the switches, the range and the qparams."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"quant_min={self.activation_post_process.quant_min}, "
            f"quant_max={self.activation_post_process.quant_max}, dtype={self.dtype}, "
            f"qscheme={self.qscheme}, ch_axis={self.ch_axis}, "
            f"scale={self.scale}, zero_point={self.zero_point}"
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Load any checkpoint: scale and zero point take its number of channels."""
        for name in ("scale", "zero_point"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                getattr(self, name).resize_(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class FixedQParamsFakeQuantize(FakeQuantize):
    """Rounds with a scale and zero point known beforehand, for outputs whose range is known.

    `observer` makes a `FixedQParamsObserver`.

    >>> make = FixedQParamsObserver.with_args(scale=0.5, zero_point=0)
    >>> FixedQParamsFakeQuantize(observer=make)(torch.tensor([0.4, 0.8]))
    tensor([0.5000, 1.0000])
    """

    def __init__(self, observer: Any) -> None:
        super().__init__(observer=observer)
        if type(self.activation_post_process) is not FixedQParamsObserver:
            raise InvalidRequest(
                "FixedQParamsFakeQuantize's observer must be a FixedQParamsObserver; "
                f"got {type(self.activation_post_process).__name__}"
            )
        self._observer_ctr = observer
        self.scale = self.activation_post_process.scale
        self.zero_point = self.activation_post_process.zero_point

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the fixed scale and zero point."""
        return self.scale, self.zero_point

    def extra_repr(self) -> str:
        """Show the switches, the qparams and the range."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"scale={self.scale}, zero_point={self.zero_point}, dtype={self.dtype}, "
            f"quant_min={self.activation_post_process.quant_min}, "
            f"quant_max={self.activation_post_process.quant_max}, qscheme={self.qscheme}"
        )


class FusedMovingAvgObsFakeQuantize(IgnoresNonFinite, FakeQuantize):
    """`FakeQuantize` with a moving-average observer, in one native operator that observes and rounds.

    The operator derives the qparams it trains with by its own formula (for qint8 a symmetric scale is
    max(-lo / 128, hi / 127)); `calculate_qparams`, which conversion uses, follows the observer's.

    >>> fake_quant = FusedMovingAvgObsFakeQuantize()
    >>> fake_quant(torch.tensor([0.0, 255.0])).tolist()
    [0.0, 255.0]
    """

    def __init__(
        self,
        observer: Any = MovingAverageMinMaxObserver,
        quant_min: int = 0,
        quant_max: int = 255,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        kinds = MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver
        if not isinstance(self.activation_post_process, kinds):
            raise InvalidRequest(
                "Fused observer+fake_quant module only works with MovingAverageMinMaxObserver (or its "
                f"per-channel kind); got {type(self.activation_post_process).__name__}. "
                "Use FakeQuantize for other observers"
            )
        # The native operator reads the switches as int64.
        self.register_buffer("fake_quant_enabled", torch.tensor([1], dtype=torch.long))
        self.register_buffer("observer_enabled", torch.tensor([1], dtype=torch.long))
        self.is_symmetric_quant = is_symmetric(self.activation_post_process.qscheme)
        self._follow_observer()

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the observer's scale and zero point, which conversion uses."""
        return self.activation_post_process.calculate_qparams()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Observe `X` and return it rounded, each as far as it is switched on."""
        if not torch.jit.is_scripting():
            return self._forward(X)
        return self._by_operator(X)

    @torch.jit.unused
    def _forward(self, X: torch.Tensor) -> torch.Tensor:
        rounded = observe_and_round(X, self)
        return self._by_operator(X) if rounded is None else rounded

    def _by_operator(self, X: torch.Tensor) -> torch.Tensor:
        if X.dtype != torch.float32:
            # The native operator knows no other dtype, and autocast hands us half precision.
            return self._observed_and_rounded(X.float()).to(X.dtype)
        return self._observed_and_rounded(X)

    def _observed_and_rounded(self, X: torch.Tensor) -> torch.Tensor:
        if self._would_poison(X):
            return self._rounded_past_nonfinite(X)
        return self._fused(X)

    def _would_poison(self, X: torch.Tensor) -> bool:
        """Whether observing `X` could make the statistics non-finite: its sum shows it in one cheap pass."""
        if not torch.jit.is_scripting():
            if without_branches(X):
                return False
        return bool(self.observer_enabled[0] == 1) and not math.isfinite(float(X.detach().sum()))

    def _rounded_past_nonfinite(self, X: torch.Tensor) -> torch.Tensor:
        """Let the operator observe the range of the finite values, then round all of `X`."""
        if not torch.jit.is_scripting():
            self._tell_of_nonfinite(X)
        low, high = self.activation_post_process._finite_range(X.detach())
        if is_finite_range(low, high):
            # For the statistics, a tensor is as good as its smallest and its largest value (per channel).
            self._fused(torch.stack([low, high], dim=-1))
        if bool(self.fake_quant_enabled[0] == 1):
            return self._rounded(X)
        return X.clone()

    def _fused(self, X: torch.Tensor) -> torch.Tensor:
        return torch.fused_moving_avg_obs_fake_quant(
            X,
            self.observer_enabled,
            self.fake_quant_enabled,
            self.activation_post_process.min_val,
            self.activation_post_process.max_val,
            self.scale,
            self.zero_point,
            self.activation_post_process.averaging_constant,
            self.activation_post_process.quant_min,
            self.activation_post_process.quant_max,
            self.ch_axis,
            self.is_per_channel,
            self.is_symmetric_quant,
        )

    def extra_repr(self) -> str:
        """Show the switches, the qparams and the range."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"scale={self.scale}, zero_point={self.zero_point}, dtype={self.dtype}, "
            f"quant_min={self.activation_post_process.quant_min}, "
            f"quant_max={self.activation_post_process.quant_max}, qscheme={self.qscheme}, "
            f"reduce_range={self.activation_post_process.reduce_range}"
        )


def _dtype_of(observer: Any, observer_kwargs: dict[str, Any]) -> torch.dtype:
    """The dtype the observer will have, known before it is made: a factory's wins over the arguments'."""
    dtype = observer_kwargs.get("dtype", torch.quint8)
    # By attribute, not by class: torch.ao's factories work too.
    return getattr(getattr(observer, "p", None), "keywords", {}).get("dtype", dtype)


def _require_levels(quant_min: int, quant_max: int, dtype: torch.dtype) -> None:
    info = integer_info(dtype)
    given = (
        f"got quant_min={quant_min}, quant_max={quant_max} for {dtype}, which holds {info.min}..{info.max}"
    )
    if quant_min > quant_max:
        raise InvalidRequest(f"quant_min must be less than or equal to quant_max; {given}")
    if quant_min < info.min:
        raise InvalidRequest(f"quant_min out of bound; {given}")
    if quant_max > info.max:
        raise InvalidRequest(f"quant_max out of bound; {given}")
