"""Fake quantization with a moving average of the range, at once: the numbers of torch's fused operator."""

import math
from typing import Any

import torch

from observers.dtypes import is_symmetric
from observers.errors import InvalidRequest
from observers.fake_quantize import FakeQuantize
from observers.finite import IgnoresNonFinite, is_finite_range, without_branches
from observers.minmax import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
from observers.moving_average import observe_and_round


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
