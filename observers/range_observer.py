"""What every min/max observer does with a batch: reduce it to a range, merge that with the range so far."""

import torch

from observers.base import UniformQuantizationObserverBase
from observers.dtypes import is_symmetric
from observers.errors import Unsupported
from observers.finite import IgnoresNonFinite, is_finite_range, without_branches
from observers.reductions import is_reducible


class RangeObserver(IgnoresNonFinite, UniformQuantizationObserverBase):
    """Reduce each batch to a range, keep out what is not finite, merge, remember.

    Subclasses say how to reduce (`_range_of`), and how to merge (`_merged`) if not by min and max.
    """

    min_val: torch.Tensor
    max_val: torch.Tensor

    def _require_observable(self, dtype: torch.dtype, qscheme: torch.qscheme) -> None:
        super()._require_observable(dtype, qscheme)
        if self.reduce_range and is_symmetric(qscheme) and dtype == torch.quint8:
            raise Unsupported(
                "Cannot reduce range for symmetric quantization for quint8: use qint8, or an affine qscheme"
            )

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Record the range of `x_orig` and return `x_orig` itself."""
        return self._forward(x_orig)

    def _forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        if x_orig.numel() == 0:
            return x_orig
        if not torch.jit.is_scripting():
            if self._updated(x_orig):
                return x_orig
        x, dtype = x_orig.detach(), self.min_val.dtype
        if x.dtype != dtype and not is_reducible(x):
            x = x.to(dtype)
        low, high = self._range_of(x)
        if x.dtype != dtype:
            # Rounding keeps the order, so that only the range need be converted.
            low, high = low.to(dtype), high.to(dtype)
        if not torch.jit.is_scripting():
            low, high = self._guarded(x, low, high)
        elif not is_finite_range(low, high):
            low, high = self._finite_range(x.to(dtype))
        low, high = self._merged(low, high)
        self._remember(low, high)
        return x_orig

    @torch.jit.unused
    def _updated(self, x: torch.Tensor) -> bool:
        """Whether the range has been updated in a faster way, with the same result."""
        return False

    @torch.jit.unused
    def _guarded(
        self, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the range as it is if finite; else that of the finite values, and say so."""
        if without_branches(x):
            old_low, old_high = self._range_before(low)
            finite = torch.isfinite(low) & torch.isfinite(high)
            return torch.where(finite, low, old_low), torch.where(finite, high, old_high)
        if is_finite_range(low, high):
            return low, high
        x = x.to(self.min_val.dtype)
        self._tell_of_nonfinite(x)
        return self._finite_range(x)

    def _finite_range(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        finite = torch.isfinite(x)
        low, _ = self._range_of(torch.where(finite, x, torch.full_like(x, float("inf"))))
        _, high = self._range_of(torch.where(finite, x, torch.full_like(x, float("-inf"))))
        nothing = low > high
        if bool(nothing.all()):
            return self.min_val, self.max_val
        old_low, old_high = self._range_before(low)
        return torch.where(nothing, old_low, low), torch.where(nothing, old_high, high)

    def _range_of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def _range_before(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The range so far, for channels without finite values in this batch: zeros if there is none yet."""
        if self.min_val.size() == like.size():
            return self.min_val, self.max_val
        return torch.zeros_like(like), torch.zeros_like(like)

    def _merged(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        min_val, max_val = self.min_val, self.max_val
        if min_val.numel() == 0:
            return low, high
        return torch.min(low, min_val), torch.max(high, max_val)

    def _remember(self, low: torch.Tensor, high: torch.Tensor) -> None:
        # In place: DistributedDataParallel and others hold on to the buffers.
        min_val, max_val = self.min_val, self.max_val
        if min_val.shape != low.shape:
            min_val.resize_(low.shape)
            max_val.resize_(high.shape)
        min_val.copy_(low)
        max_val.copy_(high)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point of the range; (1, 0) with a warning if nothing was observed."""
        if not torch.jit.is_scripting():
            return self._kept_qparams()
        return self._qparams_now()

    def _qparams_now(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._calculate_qparams(self.min_val, self.max_val)

    def extra_repr(self) -> str:
        """Show the observed range."""
        return f"min_val={self.min_val}, max_val={self.max_val}"
