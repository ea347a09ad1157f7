"""Observers that compute nothing: fixed qparams, placeholders for configuration, and a recorder.

The class names are read by TorchScript's C++ passes: an observer whose name holds `PlaceholderObserver`
marks an activation that is quantized dynamically (its `dtype` and `is_dynamic` fields say how).
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from observers.base import ObserverBase
from observers.dtypes import is_per_channel
from observers.errors import InvalidRequest, QuantizationError, QuantizationWarning, Unsupported


class FixedQParamsObserver(ObserverBase):
    """Answers the scale and zero point it was made with, for outputs of known range (sigmoid: 1/256, 0).

    >>> FixedQParamsObserver(scale=1 / 256, zero_point=0).calculate_qparams()
    (tensor([0.0039]), tensor([0], dtype=torch.int32))
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        is_dynamic: bool = False,
        **kwargs: Any,
    ) -> None:
        if is_dynamic:
            raise Unsupported(
                "FixedQParamsObserver doesn't support dynamic quantization: its qparams are known beforehand"
            )
        super().__init__(dtype=dtype, is_dynamic=is_dynamic, **kwargs)
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int))
        self.qscheme = qscheme

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return `X`."""
        return X

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scale and zero point given to the constructor."""
        return self.scale, self.zero_point


class PlaceholderObserver(ObserverBase):
    """Carries a dtype to the module that replaces the observed one, for dynamic quantization or casts.

    `compute_dtype` does nothing but warn; `is_dynamic` is its successor. To dynamic linear layers, a
    per-channel `qscheme` means a range for each row of the input, and `reduce_range=False` codes of all eight
    bits.

    >>> PlaceholderObserver(dtype=torch.quint8, is_dynamic=True)
    PlaceholderObserver(dtype=torch.quint8, is_dynamic=True)
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        custom_op_name: str = "",
        compute_dtype: torch.dtype | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
        *,
        reduce_range: bool = True,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.reduce_range = reduce_range
        self.qscheme = torch.per_tensor_affine if qscheme is None else qscheme
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps
        self.custom_op = custom_op_name
        if compute_dtype:
            warnings.warn(
                "Please use `is_dynamic` instead of `compute_dtype`, which has no effect",
                QuantizationWarning,
                stacklevel=2,
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`."""
        return x

    def extra_repr(self) -> str:
        """Show the dtype and whether it is dynamic."""
        return f"dtype={self.dtype}, is_dynamic={self.is_dynamic}"

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Raise: there are no statistics to compute qparams from."""
        raise QuantizationError(
            "calculate_qparams should not be called for PlaceholderObserver: it records nothing. "
            "Use an observer with statistics, such as MinMaxObserver, where a static range is needed"
        )


class RecordingObserver(ObserverBase):
    """Keeps a copy of every tensor it sees, for debugging.

    >>> observer = RecordingObserver()
    >>> _ = observer(torch.tensor([1.0]))
    >>> observer.get_tensor_value()
    [tensor([1.])]
    """

    __annotations__ = {"tensor_val": list[torch.Tensor]}

    def __init__(self, dtype: torch.dtype = torch.quint8) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.tensor_val = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep a copy of `x` and return `x`."""
        self.tensor_val.append(x.clone())
        return x

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Raise: recordings are for looking at."""
        raise QuantizationError(
            "calculate_qparams should not be called for RecordingObserver: it only keeps tensors. "
            "Use an observer with statistics, such as MinMaxObserver, in a model to be converted"
        )

    @torch.jit.export
    def get_tensor_value(self) -> list[torch.Tensor]:
        """Return the copies, oldest first."""
        return self.tensor_val


class NoopObserver(ObserverBase):
    """Carries a dtype (float16 by default) to the module that replaces the observed one, and records nothing.

    >>> NoopObserver().dtype
    torch.float16
    """

    def __init__(self, dtype: torch.dtype = torch.float16, custom_op_name: str = "") -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.custom_op = custom_op_name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`."""
        return x

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Raise: there are no statistics to compute qparams from."""
        raise QuantizationError(
            "calculate_qparams should not be called for NoopObserver: it records nothing. "
            "Use an observer with statistics, such as MinMaxObserver, where a static range is needed"
        )


class ReuseInputObserver(ObserverBase):
    """Says that an output has the qparams of the input, as for reshapes; used by graph-mode tools.

    >>> ReuseInputObserver().dtype
    torch.quint8
    """

    def __init__(self) -> None:
        super().__init__(torch.quint8, is_dynamic=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`."""
        return x

    @torch.jit.export
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Raise: the qparams are those of the input's observer."""
        raise QuantizationError(
            "calculate_qparams should not be called for ReuseInputObserver: ask the observer of the input"
        )


class _DerivedObserverOrFakeQuantize(ObserverBase):
    """Computes qparams from those of other observers, as a bias does from its input and its weight."""

    def __init__(
        self,
        dtype: torch.dtype,
        obs_or_fqs: list[Any],
        derive_qparams_fn: Callable[[list[Any]], tuple[torch.Tensor, torch.Tensor]],
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        ch_axis: int | None = None,
    ) -> None:
        super().__init__(dtype)
        if qscheme is not None and is_per_channel(qscheme) and ch_axis is None:
            raise InvalidRequest("Must provide a valid ch_axis if qscheme is per channel; got ch_axis=None")
        self.obs_or_fqs = obs_or_fqs
        self.derive_qparams_fn = derive_qparams_fn
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.qscheme = qscheme
        self.ch_axis = ch_axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`."""
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the given function derives from the given observers."""
        return self.derive_qparams_fn(self.obs_or_fqs)
