"""The quantization parameters of a calibrated observer, and weights quantized with them.

Real values and codes are related by ``real = (code - zero_point) * scale``.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eagerquant_native import kernel
from eagerquant_native.library import is_plain
from observers import PlaceholderObserver
from observers.dtypes import facts_of, is_float_qparams, is_per_tensor
from observers.state import has_seen_data
from quantization.errors import InvalidRequest

_STORABLE = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2)
_AFFINE_FORM: dict[torch.qscheme, torch.qscheme] = {
    torch.per_tensor_symmetric: torch.per_tensor_affine,
    torch.per_channel_symmetric: torch.per_channel_affine,
}


@dataclass(frozen=True)
class QParams:
    """Scale and zero point as an observer computed them, one value per tensor or per channel.

    `ch_axis` is -1 unless `qscheme` is per-channel.

    >>> from observers import MinMaxObserver
    >>> observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    >>> _ = observer(torch.tensor([-1.0, 0.5]))
    >>> QParams.of(observer).zero_point.tolist()
    [0]
    """

    scale: Tensor
    zero_point: Tensor
    dtype: torch.dtype
    qscheme: torch.qscheme
    ch_axis: int

    @classmethod
    def of(cls, observer: nn.Module) -> QParams:
        """Ask the observer (or fake quantizer) once; it must be of a kind that computes parameters."""
        dtype = getattr(observer, "dtype", None)
        qscheme = getattr(observer, "qscheme", None)
        if not hasattr(observer, "calculate_qparams") or dtype is None or qscheme is None:
            raise InvalidRequest(
                f"{type(observer).__name__} (dtype {dtype}, qscheme {qscheme}) computes no scale and zero "
                "point; this needs an observer that does, such as default_observer for activations or "
                "default_weight_observer for weights: put one into the module's qconfig"
            )
        scale, zero_point = observer.calculate_qparams()  # pyright: ignore[reportCallIssue]
        ch_axis = -1 if is_per_tensor(qscheme) else int(getattr(observer, "ch_axis", 0))
        return cls(scale, zero_point, dtype, qscheme, ch_axis)


def output_qparams(module: nn.Module) -> tuple[float, int]:
    """Scale and zero point of the module's output, from its calibrated `activation_post_process`.

    A module without one, or with one of dtype float32, keeps a float output: (1.0, 0).

    >>> output_qparams(nn.Linear(2, 2))
    (1.0, 0)
    """
    observer = getattr(module, "activation_post_process", None)
    if observer is None or getattr(observer, "dtype", None) is torch.float32:
        return 1.0, 0
    qparams = QParams.of(observer)
    if qparams.scale.numel() != 1:
        raise InvalidRequest(
            f"the activation observer {type(observer).__name__} of {type(module).__name__} gives "
            f"{qparams.scale.numel()} scales; an output has one, so use a per-tensor observer for activations"
        )
    return float(qparams.scale), int(qparams.zero_point)


def quantize_weight(weight: Tensor, observer: nn.Module) -> Tensor:
    """Quantize `weight` with the parameters of an observer that has seen it.

    Returns a tensor of the observer's quantized dtype: per-tensor, per-channel, or per-channel with float
    zero points. Codes stay within the observer's own range where that is narrower than the dtype's.

    >>> from observers import MinMaxObserver
    >>> observer = MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    >>> weight = observer(torch.tensor([[-1.0, 1.0]]))
    >>> quantize_weight(weight, observer).int_repr().tolist()
    [[-127, 127]]
    """
    return WeightQuantizer.of(weight, observer)(weight)


@dataclass(frozen=True)
class WeightQuantizer:
    """Quantizes one weight, or a slice of it along other axes than the channels': all checks are behind.

    `bounds` are the smallest and the largest code where the observer's range is narrower than the dtype's.
    """

    qparams: QParams
    bounds: tuple[int, int] | None

    @classmethod
    def of(cls, weight: Tensor, observer: nn.Module) -> WeightQuantizer:
        """Check that the observer, which has seen the weight, describes it and can be stored."""
        _check_ready(weight, observer)
        qparams = QParams.of(observer)
        if qparams.dtype not in _STORABLE:
            raise InvalidRequest(
                f"the weight observer {type(observer).__name__} has dtype {qparams.dtype}; weights are "
                f"stored as {', '.join(str(dtype) for dtype in _STORABLE)}: give the observer one of these"
            )
        if not is_per_tensor(qparams.qscheme):
            _check_channels(weight, qparams)
        return cls(qparams, _narrower(qparams.dtype, observer))

    def __call__(self, weight: Tensor) -> Tensor:
        """The quantized weight; a float32 one of zero points 0 needs no memory but that of its codes."""
        qparams, weight = self.qparams, weight.detach()
        if self._rounds_once(weight):
            quantized, codes = _empty(weight.shape, qparams)
            self._fill(codes, weight)
            return quantized
        values = weight.float()
        if self.bounds is not None:
            values = _clamp(values, qparams, self.bounds)
        if is_per_tensor(qparams.qscheme):
            return torch.quantize_per_tensor(
                values, float(qparams.scale), int(qparams.zero_point), qparams.dtype
            )
        scale, zero_point = _storable(qparams)
        return torch.quantize_per_channel(values, scale, zero_point, qparams.ch_axis, qparams.dtype)

    @property
    def by_columns(self) -> bool:
        """Whether columns, weight[:, i], can be quantized one without the other."""
        return is_per_tensor(self.qparams.qscheme) or self.qparams.ch_axis == 0

    def _rounds_once(self, weight: Tensor) -> bool:
        """Whether torch's codes are round(x * (1 / scale)): nothing is added where zero points are 0."""
        return (
            self.by_columns
            and self.qparams.dtype is torch.qint8
            and weight.is_contiguous()
            and weight.is_cpu
            and weight.dim() > 0
            and not bool(self.qparams.zero_point.any())
        )

    def _fill(self, codes: Tensor, weight: Tensor) -> None:
        low, high = self.bounds or facts_of(torch.qint8).bounds
        inverse = 1.0 / self.qparams.scale.float().reshape(-1)
        rows, columns = weight.size(0), weight[:1].numel()
        native = kernel("quantize_weight")
        if native is not None and weight.dtype is torch.float32 and is_plain(weight):
            native(
                weight.data_ptr(), rows, columns, inverse.data_ptr(), inverse.numel() > 1, low, high,
                codes.data_ptr(),
            )  # fmt: skip
            return
        inverse = inverse.reshape([-1] + [1] * (weight.dim() - 1)).expand(rows, *[1] * (weight.dim() - 1))
        step = max(1, _CHUNK // max(1, columns))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            codes[part] = torch.mul(weight[part].float(), inverse[part]).round_().clamp_(low, high)


# Values quantized at once, 16 MB of floats. Fewer would mean more waiting of threads for each other.
_CHUNK = 1 << 22
# From so many bytes on, codes have pages to themselves. They live for the moment between a float weight and a
# packed one, and in the heap each would leave a hole that the next, a few bytes short of room, cannot use.
_OWN_PAGES = 1 << 20


def _empty(shape: torch.Size, qparams: QParams) -> tuple[Tensor, Tensor]:
    """A contiguous qint8 tensor, and its codes, which are still to be written, as an int8 tensor."""
    count = math.prod(shape)
    own_pages = count >= _OWN_PAGES
    memory = (
        torch.frombuffer(mmap.mmap(-1, count), dtype=torch.int8)
        if own_pages
        else torch.empty(count, dtype=torch.int8)
    )
    if is_per_tensor(qparams.qscheme):
        scale, zero_point = float(qparams.scale), int(qparams.zero_point)
        quantized = torch._empty_affine_quantized((0,), scale=scale, zero_point=zero_point, dtype=torch.qint8)
    else:
        scales, zero_points = _storable(qparams)
        quantized = torch._empty_per_channel_affine_quantized(
            (scales.numel(), 0), scales=scales, zero_points=zero_points, axis=0, dtype=torch.qint8
        )
    codes = memory.view(shape)
    return quantized.set_(memory.untyped_storage(), 0, shape, codes.stride()), codes


def get_qparam_dict(observer_or_fake_quant: nn.Module) -> dict[str, object]:
    """The parameters as the dictionary that reference modules take.

    Symmetric schemes are named by their affine form: a zero point says all that tells them apart.

    >>> from observers import PlaceholderObserver
    >>> get_qparam_dict(PlaceholderObserver())["dtype"]
    torch.float32
    """
    observer = observer_or_fake_quant
    # A placeholder carries a qscheme but no parameters.
    qscheme = None if isinstance(observer, PlaceholderObserver) else getattr(observer, "qscheme", None)
    result: dict[str, object] = {
        "qscheme": None if qscheme is None else _AFFINE_FORM.get(qscheme, qscheme),
        "dtype": observer.dtype,
    }
    if qscheme is None:
        return result
    qparams = QParams.of(observer)
    if not is_per_tensor(qscheme):
        result["axis"] = qparams.ch_axis
    result["scale"], result["zero_point"] = qparams.scale, qparams.zero_point
    for bound in ("quant_min", "quant_max"):
        if hasattr(observer, bound):
            result[bound] = getattr(observer, bound)
    return result


def _check_ready(weight: Tensor, observer: nn.Module) -> None:
    """Refuse an observer whose parameters would not describe the weight; an empty weight is seen by none."""
    if not _is_finite(weight.detach()):
        raise InvalidRequest(
            f"the weight of shape {tuple(weight.shape)} holds NaN or infinity, which no code can express; "
            "check the training run or the checkpoint"
        )
    if weight.numel() and has_seen_data(observer) is False:
        raise InvalidRequest(
            f"the weight observer {type(observer).__name__} has seen no data; run it on the weight first"
        )


def _is_finite(weight: Tensor) -> bool:
    """Read off the range, in which a NaN shows too; `isfinite(weight)` would be a tensor of that size."""
    return weight.numel() == 0 or all(math.isfinite(float(bound)) for bound in torch.aminmax(weight))


def _narrower(dtype: torch.dtype, observer: nn.Module) -> tuple[int, int] | None:
    """The observer's own codes, if they are fewer than the dtype's."""
    low, high = facts_of(dtype).bounds
    quant_min, quant_max = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if quant_min is None or quant_max is None or (quant_min <= low and quant_max >= high):
        return None
    return int(quant_min), int(quant_max)


def _clamp(values: Tensor, qparams: QParams, bounds: tuple[int, int]) -> Tensor:
    """Cut the real values to what the observer's own codes can express."""
    quant_min, quant_max = bounds
    scale, zero_point = qparams.scale, qparams.zero_point
    if not is_per_tensor(qparams.qscheme):
        shape = [1] * values.dim()
        shape[qparams.ch_axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    # The bounds lie on whole codes, so rounding after the cut gives the code of the bound itself.
    return values.clamp((quant_min - zero_point) * scale, (quant_max - zero_point) * scale)


def _check_channels(weight: Tensor, qparams: QParams) -> None:
    channels = weight.shape[qparams.ch_axis]
    if qparams.scale.numel() != channels:
        raise InvalidRequest(
            f"the weight observer has {qparams.scale.numel()} scales, but the weight of shape "
            f"{tuple(weight.shape)} has {channels} channels along axis {qparams.ch_axis}; "
            "run the observer on this very weight"
        )


def _storable(qparams: QParams) -> tuple[Tensor, Tensor]:
    """Scales and zero points in the types torch stores: float32 for float zero points, else float64/int64."""
    if is_float_qparams(qparams.qscheme):
        return qparams.scale.float(), qparams.zero_point.float()
    return qparams.scale.double(), qparams.zero_point.long()
