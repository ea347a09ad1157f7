"""Types that torch.ao keeps for torchao: granularities, mapping types, sub-byte dtypes, an observer base.

No workflow of this library uses them; they are here so that code which imports them keeps working.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import nn

from observers.errors import InvalidRequest, Unsupported
from observers.factory import _PartialWrapper, _with_args


class MappingType(Enum):
    """How floats map to integers: around zero, around zero without clipping error, or over all the range."""

    SYMMETRIC = auto()
    SYMMETRIC_NO_CLIPPING_ERR = auto()
    ASYMMETRIC = auto()


class ZeroPointDomain(Enum):
    """Whether the zero point is an integer, a float, or absent."""

    INT = auto()
    FLOAT = auto()
    NONE = auto()


class TorchAODType(Enum):
    """Signed integers of one to seven bits, which torch has no dtype for."""

    INT1 = auto()
    INT2 = auto()
    INT3 = auto()
    INT4 = auto()
    INT5 = auto()
    INT6 = auto()
    INT7 = auto()


@dataclass(frozen=True)
class Granularity:
    """Which elements of a tensor share one scale."""


@dataclass(frozen=True)
class PerTensor(Granularity):
    """All elements share one scale."""


@dataclass(frozen=True)
class PerAxis(Granularity):
    """Each index along `axis` has its own scale."""

    axis: int


@dataclass(frozen=True)
class PerBlock(Granularity):
    """Each block of shape `block_size` has its own scale."""

    block_size: tuple[int, ...]


@dataclass(frozen=True)
class PerGroup(Granularity):
    """Each run of `group_size` elements along the last axis has its own scale."""

    group_size: int


@dataclass(frozen=True)
class PerRow(Granularity):
    """Each vector along the last axis has its own scale."""


@dataclass(frozen=True)
class PerToken(Granularity):
    """Each vector along the last axis has its own scale: the name for activations."""


def get_block_size(input_shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """Return the shape of the blocks that share one scale in a tensor of `input_shape`.

    >>> get_block_size((2, 8), PerAxis(0))
    (1, 8)
    >>> get_block_size((2, 8), PerGroup(4))
    (1, 4)
    """
    shape = tuple(input_shape)
    if isinstance(granularity, PerTensor):
        return shape
    if isinstance(granularity, PerAxis):
        return tuple(1 if axis == granularity.axis % len(shape) else n for axis, n in enumerate(shape))
    if isinstance(granularity, PerRow | PerToken):
        return (1,) * (len(shape) - 1) + shape[-1:]
    if isinstance(granularity, PerGroup):
        if len(shape) != 2:
            raise InvalidRequest(
                "PerGroup divides the rows of a matrix: expected an input shape dim of 2, "
                f"got input shape {shape}"
            )
        return (1, granularity.group_size)
    if isinstance(granularity, PerBlock):
        return granularity.block_size
    raise InvalidRequest(f"Unsupported Granularity: {granularity!r}")


class AffineQuantizedObserverBase(nn.Module, metaclass=ABCMeta):
    """Base of observers that compute a scale and a zero point for any granularity."""

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: torch.dtype,
        granularity: Granularity,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain | None = ZeroPointDomain.INT,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if granularity is None:
            raise InvalidRequest("granularity is None; pass one, for instance PerTensor()")
        self.mapping_type = mapping_type
        self.target_dtype = target_dtype
        self.granularity = granularity
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.eps = eps
        self.scale_dtype = scale_dtype
        self.zero_point_dtype = zero_point_dtype
        self.preserve_zero = preserve_zero
        self.zero_point_domain = zero_point_domain
        # Known only once the observer has been inserted into a graph or has seen a tensor.
        self.block_size: tuple[int, ...] | None = None
        self.original_dtype: torch.dtype | None = None

    @classmethod
    def with_args(cls, **kwargs: Any) -> _PartialWrapper:
        """Return a factory of this class with `kwargs` filled in."""
        return _with_args(cls, **kwargs)

    @abstractmethod
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Record the statistics of `input` and return it."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scales and the zero points."""

    def convert(self, model: Any, observer_node: Any) -> None:
        """Always raises Unsupported: replacing graph nodes is the work of FX quantization (torchao, pt2e)."""
        raise Unsupported(f"{type(self).__name__}.convert rewrites FX graphs, which this library does not do")
