"""QAT of a layer with the batch norm after it: what is fake-quantized is the weight inference will use.

At inference the norm is folded into the layer, so training must round the *folded* weight. With the norm's
scale g, shift b, running variance v (per output channel), s = sqrt(v + eps) and layer weight W:

    folded weight     W * g / s            this is fake-quantized, called Q below
    fast path         bn(op(x, Q) / (g / s) + bias)
    slow path         op(x, Q) * s / s_batch - g * mean_batch / s_batch + b       while the norm is training
                      op(x, Q) - g * (running_mean - bias) / s + b                once it is frozen

The fast path divides by g / s, which loses precision where g is near zero; the slow path never divides by g
but runs the layer twice. Both follow R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient
inference", arXiv:1806.08342, section 3.2.2. A convolution takes the slow path when its
`_enable_slow_path_for_better_numerical_stability` is set to True.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from observers import FusedMovingAvgObsFakeQuantize
from observers.moving_average import observe_and_round_scaled
from quantization.backends.rescaling import unscaled
from quantization.errors import InvalidRequest
from quantization.nn.modes.qat import Qat, float_qconfig, share_parameters


def _per_out_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [out] so that it multiplies the weight `like`, whose first axis is the output channel."""
    return values.reshape([-1] + [1] * (like.dim() - 1))


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [out] so that it multiplies the activation `like`, whose second axis is the channel."""
    return values.reshape([1, -1] + [1] * (like.dim() - 2))


def _has_hooks(module: Any) -> bool:
    own = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(own) or bool(nn.modules.module._has_any_global_hook())


class QatBatchNorm(Qat):
    """Batch norm statistics of a fused QAT layer: freeze, update, reset, fold; and the fast path."""

    if TYPE_CHECKING:

        def _without_bias(self, input: Tensor, weight: Tensor) -> Tensor: ...

    def _add_norm(self, bn: Any, freeze_bn: bool) -> None:
        self.freeze_bn = freeze_bn
        self.bn = bn

    def reset_running_stats(self) -> None:
        """Forget the running mean and variance."""
        self.bn.reset_running_stats()

    def reset_bn_parameters(self) -> None:
        """Reset the running statistics, draw the norm's scale from U(0, 1) and set its shift to zero."""
        self.bn.reset_running_stats()
        nn.init.uniform_(self.bn.weight)
        nn.init.zeros_(self.bn.bias)

    def freeze_bn_stats(self) -> Any:
        """Normalize with the running statistics from now on, in training too, and return self."""
        self.freeze_bn = True
        self.bn.training = False
        return self

    def update_bn_stats(self) -> Any:
        """Normalize with the statistics of each batch again, and return self."""
        self.freeze_bn = False
        self.bn.training = True
        return self

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the layer; its children keep theirs while the statistics are frozen."""
        self.training = mode
        if not self.freeze_bn:
            for child in self.children():
                child.train(mode)
        return self

    def _forward_approximate(self, input: Tensor) -> Tensor:
        std = torch.sqrt(self._running_var() + self.bn.eps)
        factor = self.bn.weight / std
        raw = self._without_bias(input, self._fake_quantized(factor))
        restored = self._unscaled(raw, factor)
        if self.bias is not None:
            restored = restored + _per_channel(self.bias, restored)
        return self.bn(restored)

    def _unscaled(self, raw: Tensor, factor: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return unscaled(raw, factor)
        return raw / _per_channel(factor, raw)

    def _fake_quantized(self, factor: Tensor) -> Tensor:
        """The weight times `factor` per output channel, rounded."""
        if not torch.jit.is_scripting():
            at_once = self._fake_quantized_at_once(factor)
            if at_once is not None:
                return at_once
        return self.weight_fake_quant(self.weight * _per_out_channel(factor, self.weight))

    @torch.jit.unused
    def _fake_quantized_at_once(self, factor: Tensor) -> Tensor | None:
        rounding: Any = self.weight_fake_quant
        # Exactly this class and without hooks: others have more to say than their numbers.
        if type(rounding) is not FusedMovingAvgObsFakeQuantize or _has_hooks(rounding):
            return None
        return observe_and_round_scaled(self.weight, factor, rounding)

    def _running_mean(self) -> Tensor:
        mean = self.bn.running_mean
        if mean is None:
            raise ValueError("the batch norm keeps no statistics: build it with track_running_stats=True")
        return mean

    def _running_var(self) -> Tensor:
        variance = self.bn.running_var
        if variance is None:
            raise ValueError("the batch norm keeps no statistics: build it with track_running_stats=True")
        return variance

    @classmethod
    def from_float(cls, mod: Any, use_precomputed_fake_quant: bool = False) -> Any:
        """Make the QAT layer of a fused float module; parameters and statistics stay the same objects."""
        qconfig = float_qconfig(cls, mod)
        layer, bn = mod[0], mod[1]
        check_foldable(cls, layer, bn)
        qat = cls(**cls._arguments(layer), eps=bn.eps, momentum=bn.momentum, qconfig=qconfig)
        share_parameters(layer, qat)
        qat.bn.weight, qat.bn.bias = bn.weight, bn.bias
        qat.bn.running_mean, qat.bn.running_var = bn.running_mean, bn.running_var
        # Without momentum the count of batches sets the weight of the next one.
        qat.bn.num_batches_tracked = bn.num_batches_tracked
        qat.weight_fake_quant.to(layer.weight.device)
        return qat

    def to_float(self) -> Any:
        """The float layer with the norm folded into its weight and bias; this module is not changed."""
        layer: Any = self._family.float_types[0](**{**self._arguments(self), "bias": True})
        layer.weight, layer.bias = self._folded()
        return self._fuse_float(layer)

    def _folded(self) -> tuple[nn.Parameter, nn.Parameter]:
        raise NotImplementedError


def check_foldable(cls: type[Any], layer: Any, bn: Any) -> None:
    """Raise unless the norm has what folding needs: scale, shift, statistics, and the layer's width."""
    out = layer.weight.shape[0]
    found = f"{type(bn).__name__}(num_features={bn.num_features}, affine={bn.affine}, "
    found += f"track_running_stats={bn.track_running_stats})"
    expected = f"num_features={out}, affine=True and track_running_stats=True"
    if bn.num_features != out or bn.weight is None or bn.bias is None or bn.running_var is None:
        raise InvalidRequest(
            f"qat.{cls.__name__}.from_float folds the batch norm into the layer before it and needs "
            f"{expected}, got {found}: build the norm that way, or leave the two modules unfused"
        )


class QatConvBn(QatBatchNorm):
    """Constructor and both paths of the convolutions with batch norm, for every rank."""

    # 1: the norm's tensors are `gamma`, `beta`, `running_mean`, ... of the layer itself
    # 2: they are those of the child `bn`
    _version = 2
    _FLOAT_CONV_MODULE: Any = None
    _FLOAT_BN_MODULE: Any = None

    if TYPE_CHECKING:
        _conv_forward: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool | None = None,
        padding_mode: str = "zeros",
        eps: float = 1e-05,
        momentum: float | None = 0.1,
        freeze_bn: bool = False,
        qconfig: Any = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
            padding_mode=padding_mode,
        )
        if bias:
            # Drawn by reset_bn_parameters, after the norm's scale: a seeded run then repeats torch.ao's.
            self.bias = nn.Parameter(torch.empty(out_channels))
        self._add_norm(self._FLOAT_BN_MODULE(out_channels, eps=eps, momentum=momentum), freeze_bn)
        self._fake_quantize_weight(qconfig)
        self.reset_bn_parameters()
        self._enable_slow_path_for_better_numerical_stability = False
        self.bn.training = not freeze_bn

    def reset_bn_parameters(self) -> None:
        """Reset the statistics, draw the norm's scale and the layer's bias anew, set the shift to zero."""
        super().reset_bn_parameters()
        if self.bias is not None:
            fan_in, _ = nn.init._calculate_fan_in_and_fan_out(self.weight)
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(self.bias, -bound, bound)

    def _without_bias(self, input: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(input, weight, None)

    def _forward(self, input: Tensor) -> Tensor:
        if self._enable_slow_path_for_better_numerical_stability:
            return self._forward_slow(input)
        return self._forward_approximate(input)

    def _forward_slow(self, input: Tensor) -> Tensor:
        mean, batch_std = self._batch_statistics(input)
        std = torch.sqrt(self._running_var() + self.bn.eps)
        folded = self.weight * _per_out_channel(self.bn.weight / std, self.weight)
        output = self._without_bias(input, self.weight_fake_quant(folded))
        if self.bn.training:
            output = output * _per_channel(std / batch_std, output)
            std = batch_std
        output = output + _per_channel(self.bn.bias - self.bn.weight * mean / std, output)
        if self.bias is not None:
            # The bias cancels against the mean of the batch; it stays in the graph so that it gets a
            # gradient (of zero), which DistributedDataParallel waits for.
            output = output + _per_channel(self.bias - self.bias, output)
        return output

    def _batch_statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the layer without its bias: the batch's, or the running ones if frozen."""
        if not self.bn.training:
            mean = self._running_mean()
            if self.bias is not None:
                mean = mean - self.bias
            return mean, torch.sqrt(self._running_var() + self.bn.eps)
        raw = self._without_bias(input, self.weight)
        with torch.no_grad():
            # Only for its running statistics, which the folded weight below is made with.
            self.bn(raw if self.bias is None else raw + _per_channel(self.bias, raw))
        axes = list(range(raw.dim()))
        axes.pop(1)
        mean = raw.mean(axes)
        variance = torch.square(raw - _per_channel(mean, raw)).mean(axes)
        return mean, torch.sqrt(variance + self.bn.eps)

    def forward(self, input: Tensor) -> Tensor:
        return self._forward(input)

    def _folded(self) -> tuple[nn.Parameter, nn.Parameter]:
        bn = self.bn
        return fuse_conv_bn_weights(
            self.weight, self.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for old, new in _VERSION_1_KEYS.items():
                if prefix + old in state_dict:
                    state_dict[f"{prefix}bn.{new}"] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


_VERSION_1_KEYS = {
    "gamma": "weight",
    "beta": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "num_batches_tracked": "num_batches_tracked",
}


class QatConvBnReLU(QatConvBn):
    """A convolution with batch norm and ReLU."""

    _FLOAT_RELU_MODULE: Any = nn.ReLU
    _FUSED_FLOAT_MODULE: Any = None

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self._forward(input))


class QatLinearBn(QatBatchNorm):
    """Constructor and fast path of the linear layer with batch norm."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-05,
        momentum: float | None = 0.1,
        freeze_bn: bool = False,
        qconfig: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._add_norm(nn.BatchNorm1d(out_features, eps=eps, momentum=momentum), freeze_bn)
        self._fake_quantize_weight(qconfig)
        self.reset_bn_parameters()
        self.bn.training = not freeze_bn

    def _without_bias(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input, weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._forward_approximate(input)

    def _folded(self) -> tuple[nn.Parameter, nn.Parameter]:
        bn = self.bn
        return fuse_linear_bn_weights(
            self.weight, self.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
