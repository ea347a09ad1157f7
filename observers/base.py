"""The base classes of observers, and the step from an observed range to a scale and a zero point.

An observer watches tensors pass and hands back, from `calculate_qparams()`, the scale `s` and the zero point
`z` with which `q = clamp(round(x / s) + z, quant_min, quant_max)` loses little of what it saw.
"""

import warnings
from abc import ABCMeta, abstractmethod
from typing import Any, cast

import torch
from torch import nn

from observers.dtypes import FACTS, facts_of, is_float_qparams, is_symmetric, symmetric_zero_point
from observers.errors import InvalidRequest, QuantizationWarning, Unsupported
from observers.factory import _with_args, _with_callable_args
from observers.kept import kept_qparams

_UNOBSERVED = "must run observer before calling calculate_qparams. Returning default values."


def validate_qmin_qmax(quant_min: int, quant_max: int) -> None:
    """Check a range given by the user: it holds 0 and is not empty.

    >>> validate_qmin_qmax(0, 127)
    """
    if not quant_min <= 0 <= quant_max:
        raise InvalidRequest(
            "Used-specified quantization range must include 0. "
            f"Got quant_min={quant_min}, quant_max={quant_max}"
        )
    if not quant_min < quant_max:
        raise InvalidRequest(
            "qmin must be strictly less than qmax for user-specified quantization range. "
            f"Got quant_min={quant_min}, quant_max={quant_max}"
        )


def calculate_qmin_qmax(
    quant_min: int | None,
    quant_max: int | None,
    has_customized_qrange: bool,
    dtype: torch.dtype,
    reduce_range: bool,
) -> tuple[int, int]:
    """Return the integer range to quantize to: the user's or the dtype's, halved when `reduce_range` is set.

    >>> calculate_qmin_qmax(None, None, False, torch.qint8, True)
    (-64, 63)
    >>> calculate_qmin_qmax(0, 255, True, torch.quint8, True)
    (0, 127)
    """
    facts = facts_of(dtype)
    if not has_customized_qrange:
        low, high = facts.reduced if reduce_range else facts.bounds
        return low, high
    if quant_min is None or quant_max is None:
        raise InvalidRequest(f"quant_min={quant_min} and quant_max={quant_max} must be given together")
    if facts.widest is not None and not 0 < quant_max - quant_min + 1 <= facts.widest:
        raise InvalidRequest(
            f"quantization range should be positive and not exceed the maximum bit range (={facts.widest}). "
            f"Got quant_min={quant_min}, quant_max={quant_max} for {dtype}"
        )
    return (quant_min // 2, quant_max // 2) if reduce_range else (quant_min, quant_max)


def check_min_max_valid(min_val: torch.Tensor, max_val: torch.Tensor) -> bool:
    """Whether the range was observed (False comes with a warning); InvalidRequest if it is upside down.

    >>> check_min_max_valid(torch.tensor(-1.0), torch.tensor(2.0))
    True
    """
    if min_val.numel() == 0 or max_val.numel() == 0:
        _warn_unobserved()
        return False
    if min_val.dim() == 0 or max_val.dim() == 0:
        if min_val == float("inf") and max_val == float("-inf"):
            _warn_unobserved()
            return False
    # `not all(<=)` rather than `any(>)`: the former is also true of NaN, which old checkpoints may hold.
    if not bool(torch.all(min_val <= max_val)):
        raise InvalidRequest(f"min {min_val} should be less than max {max_val}: reset or re-run the observer")
    return True


def _warn_unobserved() -> None:
    if torch.jit.is_scripting():
        # TorchScript reads no global strings and knows no `stacklevel`.
        warnings.warn(  # noqa: B028
            "must run observer before calling calculate_qparams. Returning default values."
        )
    else:
        warnings.warn(_UNOBSERVED, QuantizationWarning, stacklevel=4)


def default_qparams(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale 1 and zero point 0, the answer of an observer that saw nothing, on `like`'s device."""
    return torch.tensor([1.0], device=like.device), torch.tensor([0], device=like.device)


def qparams_from_range(
    min_val: torch.Tensor,
    max_val: torch.Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    eps: torch.Tensor,
    has_customized_qrange: bool,
    qscheme: torch.qscheme,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and zero point, at least one-dimensional, of observed ranges that are known to be valid.

    With lo = min(min_val, 0), hi = max(max_val, 0) and n = quant_max - quant_min:

    - symmetric: s = max(max(-lo, hi) / (n / 2), eps), z = the middle of the range;
    - affine: s = max((hi - lo) / n, eps), z = clamp(quant_min - round(lo / s), quant_min, quant_max);
    - float_qparams: s = (max_val - min_val) / n, or 1 where that is not above eps; z = -min_val / s, a float.
    """
    levels = float(quant_max - quant_min)
    low = torch.clamp(min_val, max=0)
    high = torch.clamp(max_val, min=0)
    if is_symmetric(qscheme):
        scale = torch.max(torch.max(-low, high) / (levels / 2), eps)
        middle = symmetric_zero_point(dtype, quant_min, quant_max, has_customized_qrange)
        zero_point = torch.full(low.size(), middle, dtype=torch.int64, device=low.device)
    elif is_float_qparams(qscheme):
        scale = (max_val - min_val) / levels
        scale = torch.where(scale > eps, scale, torch.ones_like(scale))
        zero_point = -1 * min_val / scale
    else:
        scale = torch.max((high - low) / levels, eps)
        zero_point = quant_min - torch.round(low / scale).to(torch.int)
        zero_point = torch.clamp(zero_point, quant_min, quant_max)
    return torch.atleast_1d(scale), torch.atleast_1d(zero_point)


def determine_qparams(
    min_val: torch.Tensor,
    max_val: torch.Tensor,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    eps: torch.Tensor,
    has_customized_qrange: bool,
    qscheme: torch.qscheme = torch.per_tensor_affine,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale as float64 and the zero point as int64 of a range; (1, 0) for one never observed.

    >>> low, high, eps = torch.tensor(-1.0), torch.tensor(1.55), torch.tensor([1e-7])
    >>> scale, zero_point = determine_qparams(low, high, 0, 255, torch.quint8, eps, False)
    >>> round(scale.item(), 4), zero_point.item()
    (0.01, 100)
    """
    if not check_min_max_valid(min_val, max_val):
        return default_qparams(min_val)
    scale, zero_point = qparams_from_range(
        min_val, max_val, quant_min, quant_max, dtype, eps, has_customized_qrange, qscheme
    )
    return scale.to(torch.double), zero_point.to(torch.int64)


class ObserverBase(nn.Module, metaclass=ABCMeta):
    """Base of every observer: has a `dtype`, watches tensors in `forward`, answers `calculate_qparams`."""

    def __init__(self, dtype: torch.dtype, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.is_dynamic = is_dynamic

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Record the statistics of `x` and return it unchanged."""

    @abstractmethod
    def calculate_qparams(self, **kwargs: Any) -> Any:
        """Return the scale and the zero point for what was seen."""

    with_args = classmethod(_with_args)
    with_callable_args = classmethod(_with_callable_args)


class UniformQuantizationObserverBase(ObserverBase):
    """Base of observers that derive scale and zero point from a smallest and a largest value.

    `quant_min` and `quant_max` narrow the dtype's range and are given together; `eps` is the smallest scale.
    `factory_kwargs` (device, dtype) apply to the buffers.
    """

    # State-dict versions: 1 lacks `eps`; 1 and 2 call a per-channel range min_vals/max_vals and keep a scalar
    # range that was never observed as an empty tensor; 3 is the current form.
    _version = 3

    eps: torch.Tensor

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: dict[str, Any] | None = None,
        eps: float = torch.finfo(torch.float32).eps,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic, **kwargs)
        self.qscheme = qscheme
        self.reduce_range = reduce_range
        buffer_options = cast("dict[str, Any]", torch.nn.factory_kwargs(factory_kwargs))
        self.register_buffer("eps", torch.tensor([eps], **buffer_options))
        self._require_observable(dtype, qscheme)
        self.has_customized_qrange = _range_is_given(quant_min, quant_max)
        if quant_min is not None and quant_max is not None:
            validate_qmin_qmax(quant_min, quant_max)
        self.quant_min, self.quant_max = calculate_qmin_qmax(
            quant_min, quant_max, self.has_customized_qrange, dtype, reduce_range
        )

    def _require_observable(self, dtype: torch.dtype, qscheme: torch.qscheme) -> None:
        if dtype not in FACTS:
            known = ", ".join(str(known) for known in FACTS)
            raise InvalidRequest(
                f"Default Observer only works for ({known}) data type; "
                f"{type(self).__name__} got dtype={dtype}"
            )
        if qscheme not in _QSCHEMES:
            raise InvalidRequest(f"Default Observer only works for the qschemes {_QSCHEMES}; got {qscheme}")

    @torch.jit.export
    def _validate_qmin_qmax(self, quant_min: int, quant_max: int) -> None:
        validate_qmin_qmax(quant_min, quant_max)

    @torch.jit.export
    def _calculate_qparams(
        self, min_val: torch.Tensor, max_val: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point of the range, (1, 0) with a warning for one never observed."""
        if not check_min_max_valid(min_val, max_val):
            return default_qparams(min_val)
        return qparams_from_range(
            min_val,
            max_val,
            self.quant_min,
            self.quant_max,
            self.dtype,
            self.eps,
            self.has_customized_qrange,
            self.qscheme,
        )

    def _qparams_now(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute scale and zero point from the statistics; subclasses say how."""
        raise NotImplementedError

    @torch.jit.unused
    def _kept_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return kept_qparams(self, self._qparams_now)

    @torch.jit.export
    def reset_min_max_vals(self) -> None:
        """Forget what was observed; Unsupported in classes that do not say how."""
        raise Unsupported("Cannot reset min/max values in the given observer.")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version == 1:
            state_dict.setdefault(prefix + "eps", self.eps.detach().clone())
        for name, unobserved in (("min_val", float("inf")), ("max_val", float("-inf"))):
            saved, own = state_dict.get(prefix + name), getattr(self, name, None)
            if own is not None and own.dim() == 0 and saved is not None and saved.numel() == 0:
                state_dict[prefix + name] = torch.full_like(own, unobserved)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


_QSCHEMES = (
    torch.per_tensor_affine,
    torch.per_tensor_symmetric,
    torch.per_channel_affine,
    torch.per_channel_symmetric,
    torch.per_channel_affine_float_qparams,
)


def _range_is_given(quant_min: int | None, quant_max: int | None) -> bool:
    if (quant_min is None) != (quant_max is None):
        raise InvalidRequest(
            f"quant_min={quant_min} and quant_max={quant_max} must be given together: pass both, or neither"
        )
    return quant_min is not None


# The name torch.ao keeps for code written before the class was public.
_ObserverBase = UniformQuantizationObserverBase
