"""Fake quantization whose scale and zero point are trained.

Source: LSQ (Esser et al., 2020); trained zero points are LSQ+ (Bhalgat et al., 2020).
"""

import logging
from typing import Any

import torch
from torch.nn import Parameter

from observers.dtypes import integer_info, is_per_channel, is_symmetric
from observers.errors import InvalidRequest
from observers.fake_quantize import FakeQuantizeBase

_log = logging.getLogger(__name__)


class _LearnableFakeQuantize(FakeQuantizeBase):
    """Rounds with a scale and zero point that are parameters.

    Three states: `enable_param_learning` trains them; `enable_static_estimate` sets them from the observer
    and rounds; `enable_static_observation` sets them and does not round. `channel_len` is the number of
    channels, -1 for per-tensor; `use_grad_scaling` divides the gradients of scale and zero point by
    sqrt(numel * quant_max).

    >>> from observers.minmax import MovingAverageMinMaxObserver
    >>> fake_quant = _LearnableFakeQuantize(MovingAverageMinMaxObserver, scale=0.5).enable_param_learning()
    >>> fake_quant(torch.tensor([0.6, 0.9])).tolist()
    [0.5, 1.0]
    """

    static_enabled: torch.Tensor
    learning_enabled: torch.Tensor
    eps: torch.Tensor

    def __init__(
        self,
        observer: Any,
        quant_min: int = 0,
        quant_max: int = 255,
        scale: float = 1.0,
        zero_point: float = 0.0,
        channel_len: int = -1,
        use_grad_scaling: bool = False,
        **observer_kwargs: Any,
    ) -> None:
        super().__init__()
        if not quant_min < quant_max:
            raise InvalidRequest(
                "quant_min must be strictly less than quant_max. "
                f"Got quant_min={quant_min}, quant_max={quant_max}"
            )
        if channel_len != -1 and channel_len <= 0:
            raise InvalidRequest(f"Channel size must be a positive integer. Got channel_len={channel_len}")
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.use_grad_scaling = use_grad_scaling
        channels = 1 if channel_len == -1 else channel_len
        self.scale = Parameter(torch.full((channels,), float(scale)))
        self.zero_point = Parameter(torch.full((channels,), float(zero_point)))
        self.activation_post_process = observer(quant_min=quant_min, quant_max=quant_max, **observer_kwargs)
        self.dtype = self.activation_post_process.dtype
        _require_inside(quant_min, quant_max, self.dtype)
        self.qscheme = self.activation_post_process.qscheme
        self.ch_axis = getattr(self.activation_post_process, "ch_axis", -1)
        self.register_buffer("static_enabled", torch.tensor([1], dtype=torch.uint8))
        self.register_buffer("learning_enabled", torch.tensor([0], dtype=torch.uint8))
        self.register_buffer("eps", torch.tensor([torch.finfo(torch.float32).eps]))
        self.bitwidth = (quant_max - quant_min).bit_length()

    def enable_param_learning(self) -> "_LearnableFakeQuantize":
        """Train scale and zero point; the observer no longer sets them."""
        return self.toggle_qparam_learning(True).toggle_fake_quant(True).toggle_observer_update(False)

    def enable_static_estimate(self) -> None:
        """Set scale and zero point from the observer, and round."""
        self.toggle_qparam_learning(False).toggle_fake_quant(True).toggle_observer_update(True)

    def enable_static_observation(self) -> None:
        """Set scale and zero point from the observer, and let the input pass unchanged."""
        self.toggle_qparam_learning(False).toggle_fake_quant(False).toggle_observer_update(True)

    def toggle_observer_update(self, enabled: bool = True) -> "_LearnableFakeQuantize":
        """Say whether the observer sets scale and zero point."""
        self.static_enabled[0] = int(enabled)
        return self

    def enable_observer(self, enabled: bool = True) -> None:
        """Say whether the observer sets scale and zero point."""
        self.toggle_observer_update(enabled)

    def toggle_qparam_learning(self, enabled: bool = True) -> "_LearnableFakeQuantize":
        """Say whether scale and zero point are trained."""
        self.learning_enabled[0] = int(enabled)
        self.scale.requires_grad = enabled
        self.zero_point.requires_grad = enabled
        return self

    def toggle_fake_quant(self, enabled: bool = True) -> "_LearnableFakeQuantize":
        """Say whether the input is rounded."""
        self.fake_quant_enabled[0] = int(enabled)
        return self

    def observe_quant_params(self) -> None:
        """Log scale and zero point."""
        _log.info(
            "%s scale %s zero point %s", type(self).__name__, self.scale.detach(), self.zero_point.detach()
        )

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scale, at least `eps`, and the zero point, rounded and inside the range."""
        self._keep_scale_positive()
        zero_point = self.zero_point.detach().round().clamp(self.quant_min, self.quant_max).long()
        return self.scale.detach(), zero_point

    def _keep_scale_positive(self) -> None:
        self.scale.data.clamp_(min=self.eps.item())

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Observe `X` or train on it, and return it rounded, each as far as it is switched on."""
        if self.static_enabled[0] == 1:
            self.activation_post_process(X.detach())
            scale, zero_point = self.activation_post_process.calculate_qparams()
            self.scale.data.copy_(scale)
            self.zero_point.data.copy_(zero_point)
        else:
            self._keep_scale_positive()
        if self.fake_quant_enabled[0] == 1:
            if is_symmetric(self.qscheme):
                self.zero_point.data.zero_()
            return self._rounded(X)
        return X

    def _rounded(self, X: torch.Tensor) -> torch.Tensor:
        grad_factor = 1.0 / (X.numel() * self.quant_max) ** 0.5 if self.use_grad_scaling else 1.0
        if is_per_channel(self.qscheme):
            return torch._fake_quantize_learnable_per_channel_affine(
                X, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max, grad_factor
            )
        return torch._fake_quantize_learnable_per_tensor_affine(
            X, self.scale, self.zero_point, self.quant_min, self.quant_max, grad_factor
        )


def _require_inside(quant_min: int, quant_max: int, dtype: torch.dtype) -> None:
    info = integer_info(dtype)
    for name, value in (("quant_min", quant_min), ("quant_max", quant_max)):
        if not info.min <= value <= info.max:
            raise InvalidRequest(
                f"{name} out of bound; got {value} for {dtype}, which holds {info.min}..{info.max}"
            )
