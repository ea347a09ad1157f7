"""The histogram observer: counts values and cuts off tails where that lowers the quantization error."""

from typing import Any, cast

import torch

from observers.base import UniformQuantizationObserverBase, check_min_max_valid, default_qparams
from observers.dtypes import integer_info, is_per_tensor
from observers.errors import InvalidRequest, Unsupported
from observers.finite import IgnoresNonFinite, is_finite_range
from observers.histogram_counts import count_over_both, moved_to_edges
from observers.histogram_search import best_bins, quantization_errors, uniform_error
from observers.reductions import whole_range


class HistogramObserver(IgnoresNonFinite, UniformQuantizationObserverBase):
    """Records a histogram of what it sees; the range is the part that quantizes with the least error.

    The histogram has `bins` bins from `min_val` to `max_val`. When a batch widens the range, the old counts
    are spread evenly within their bins (each is split in `upsample_rate` parts) and moved to the wider bins.
    `calculate_qparams` narrows the range from both ends as long as the squared error of quantizing falls.

    >>> observer = HistogramObserver()
    >>> _ = observer(torch.linspace(-1, 1.55, 1000))
    >>> scale, zero_point = observer.calculate_qparams()
    >>> round(scale.item(), 4), zero_point.item()
    (0.01, 100)
    """

    histogram: torch.Tensor
    min_val: torch.Tensor
    max_val: torch.Tensor

    def __init__(
        self,
        bins: int = 2048,
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
        if not is_per_tensor(qscheme):
            raise Unsupported(
                "HistogramObserver's qscheme only support torch.per_tensor_symmetric and "
                f"torch.per_tensor_affine. but got: {qscheme}; "
                "use PerChannelMinMaxObserver for per-channel qschemes"
            )
        if is_dynamic:
            raise Unsupported("HistogramObserver doesn't support dynamic quantization: use MinMaxObserver")
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
        self.bins = bins
        self.register_buffer("histogram", torch.zeros(bins, **options))
        self.register_buffer("min_val", torch.tensor(float("inf"), **options))
        self.register_buffer("max_val", torch.tensor(float("-inf"), **options))
        self.dst_nbins = 2 ** integer_info(dtype).bits
        self.upsample_rate = 16

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Add the values of `x_orig` to the histogram and return `x_orig` itself."""
        if x_orig.numel() == 0:
            return x_orig
        x = x_orig.detach()
        if not torch.jit.is_scripting():
            if self._added_by_kernel(x):
                return x_orig
        if x.dtype != torch.float64:
            x = x.to(torch.float32)
        low, high = whole_range(x)
        if not is_finite_range(low, high):
            if not torch.jit.is_scripting():
                self._tell_of_nonfinite(x)
            x = x[torch.isfinite(x)]
            if x.numel() == 0:
                return x_orig
            low, high = whole_range(x)
        if self._is_unobserved():
            self.reset_histogram(x, low, high)
        else:
            self._add(x, low, high)
        return x_orig

    @torch.jit.unused
    def _added_by_kernel(self, x: torch.Tensor) -> bool:
        """Do all of it in native code if it can be done there."""
        found = count_over_both(x, self.bins, self.min_val, self.max_val)
        if found is None or self.histogram.dtype != torch.float32:
            return False
        if not found.is_wider:
            self.histogram.add_(found.counts)
            return True
        counts, low, high = found.counts, torch.tensor(found.low), torch.tensor(found.high)
        if not self._is_unobserved():
            counts = self._combine_histograms(self.histogram, self.min_val, self.max_val, counts, low, high)
        self._store(counts)
        self.min_val.fill_(found.low)
        self.max_val.fill_(found.high)
        return True

    def _is_unobserved(self) -> bool:
        return bool(self.min_val == float("inf")) and bool(self.max_val == float("-inf"))

    def reset_histogram(self, x: torch.Tensor, min_val: torch.Tensor, max_val: torch.Tensor) -> None:
        """Start anew with the values of `x`, whose smallest is `min_val` and largest `max_val`."""
        if min_val.numel() != 1 or max_val.numel() != 1:
            raise InvalidRequest("histogram min/max values must be scalar.")
        self.min_val.resize_(min_val.shape)
        self.min_val.copy_(min_val)
        self.max_val.resize_(max_val.shape)
        self.max_val.copy_(max_val)
        self._store(self._counts(x, min_val, max_val))

    def _add(self, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        old_min, old_max = self.min_val, self.max_val
        new_min = torch.min(old_min, low)
        new_max = torch.max(old_max, high)
        counts = self._counts(x, new_min, new_max)
        if bool(new_min == old_min) and bool(new_max == old_max):
            self._store(self.histogram + counts)
        else:
            self._store(self._combine_histograms(self.histogram, old_min, old_max, counts, new_min, new_max))
        self.min_val.copy_(new_min)
        self.max_val.copy_(new_max)

    def _counts(self, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return torch.histc(x, self.bins, min=float(low), max=float(high))

    def _store(self, histogram: torch.Tensor) -> None:
        self.histogram.resize_(histogram.shape)
        self.histogram.copy_(histogram)

    def _combine_histograms(
        self,
        orig_hist: torch.Tensor,
        orig_min: torch.Tensor,
        orig_max: torch.Tensor,
        update_hist: torch.Tensor,
        update_min: torch.Tensor,
        update_max: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sum of both histograms over the wider range, which is that of `update_hist`."""
        if bool(update_min == orig_min) and bool(update_max == orig_max):
            return orig_hist + update_hist
        if bool(orig_min == orig_max):
            # All the old mass is one value.
            return update_hist + self._counts(orig_min, update_min, update_max) * torch.sum(orig_hist)
        return update_hist + self._upscale_histogram(orig_hist, orig_min, orig_max, update_min, update_max)

    def _upscale_histogram(
        self,
        histogram: torch.Tensor,
        orig_min: torch.Tensor,
        orig_max: torch.Tensor,
        update_min: torch.Tensor,
        update_max: torch.Tensor,
    ) -> torch.Tensor:
        """Return the counts moved to bins over the wider range from `update_min` to `update_max`."""
        parts = self.bins * self.upsample_rate
        part_width = (orig_max - orig_min) / parts
        device = orig_min.device
        middles = (
            torch.linspace(float(orig_min), float(orig_max), parts + 1, device=device)[:-1] + part_width / 2
        )
        edges = torch.linspace(float(update_min), float(update_max), self.bins + 1, device=update_min.device)
        if not torch.jit.is_scripting():
            moved = moved_to_edges(histogram, self.upsample_rate, middles, edges)
            if moved is not None:
                return moved
        mass = histogram.repeat_interleave(self.upsample_rate) / self.upsample_rate
        bins = torch.clamp(torch.bucketize(middles, edges, right=True) - 1, 0, self.bins - 1)
        return torch.bincount(bins, weights=mass, minlength=self.bins)

    def _get_norm(
        self, delta_begin: torch.Tensor, delta_end: torch.Tensor, density: torch.Tensor
    ) -> torch.Tensor:
        """Return the squared error of evenly spread mass; see `histogram_search.uniform_error`."""
        return uniform_error(delta_begin, delta_end, density)

    def _bin_width(self) -> float:
        return (float(self.max_val) - float(self.min_val)) / self.bins

    def _compute_quantization_error(self, next_start_bin: int, next_end_bin: int) -> float:
        """Return the squared error of quantizing the histogram over the given range of its bins."""
        errors = quantization_errors(
            self.histogram, self._bin_width(), [next_start_bin], [next_end_bin], self.dst_nbins
        )
        return errors[0]

    def _non_linear_param_search(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the range to quantize; subclasses override it to search differently."""
        if self.histogram.size(0) != self.bins:
            raise InvalidRequest(
                f"bins mismatch: {self.histogram.size(0)} in the histogram, bins={self.bins}"
            )
        start, end = best_bins(self.histogram, self._bin_width(), self.dst_nbins)
        bin_width = (self.max_val - self.min_val) / self.bins
        return self.min_val + bin_width * start, self.min_val + bin_width * (end + 1)

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and zero point of the best range; (1, 0) with a warning if nothing was observed."""
        if not torch.jit.is_scripting():
            return self._kept_qparams()
        return self._qparams_now()

    def _qparams_now(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not check_min_max_valid(self.min_val, self.max_val):
            return default_qparams(self.min_val)
        low, high = self._non_linear_param_search()
        return self._calculate_qparams(low, high)

    @torch.jit.export
    def reset_min_max_vals(self) -> None:
        """Forget what was observed, the histogram included."""
        self.min_val.fill_(float("inf"))
        self.max_val.fill_(float("-inf"))
        self.histogram.zero_()

    def extra_repr(self) -> str:
        """Show the observed range."""
        return f"min_val={self.min_val}, max_val={self.max_val}"
