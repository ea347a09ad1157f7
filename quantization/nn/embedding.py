"""Statically quantized embeddings: integer indices in, float rows out, with a weight of 8 or 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantization.backends import torch_quantized
from quantization.errors import InvalidRequest
from quantization.nn import qat
from quantization.nn.modes.embedded import PackedEmbedding
from quantization.nn.modes.packed_rows import PackedRows


class EmbeddingPackedParams(PackedRows, ops=torch_quantized.EMBEDDING_BYTE):
    """The packed weight of an embedding."""


class Embedding(
    PackedEmbedding,
    rows=(torch_quantized.EMBEDDING_BYTE, torch_quantized.EMBEDDING_4BIT),
    params=EmbeddingPackedParams,
    source=nn.Embedding,
    trained=qat.Embedding,
):
    """Quantized `nn.Embedding`: int32 or int64 indices of any shape to float32 of shape (*, embedding_dim).

    >>> Embedding(10, 3)(torch.tensor([[1, 2]])).shape
    torch.Size([1, 2, 3])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        dtype: torch.dtype = torch.quint8,
    ) -> None:
        # The arguments of training are nn.Embedding's, and do nothing here.
        super().__init__()
        self._construct(num_embeddings, embedding_dim, _weight, dtype)

    def forward(self, indices: Tensor) -> Tensor:
        """The rows that the indices name."""
        rows = self._lookup(indices)
        return rows.reshape(list(indices.shape) + list(rows.shape[1:]))


class EmbeddingBag(
    Embedding,
    bags=(torch_quantized.EMBEDDING_BAG_BYTE, torch_quantized.EMBEDDING_BAG_4BIT),
    source=nn.EmbeddingBag,
    trained=qat.EmbeddingBag,
):
    """Quantized `nn.EmbeddingBag`: indices (N,) with offsets, or (bags, N), to rows (bags, embedding_dim).

    The operator sums bags; for modes 'mean' and 'max', and with a `padding_idx`, the rows are looked up and
    then reduced in float. (torch.ao sums whatever the mode, and adds padding.)

    >>> EmbeddingBag(10, 3)(torch.tensor([1, 2, 4]), torch.tensor([0, 2])).shape
    torch.Size([2, 3])
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are strings
        mode: str
        pruned_weights: bool
        include_last_offset: bool
        padding_idx: Any

    _FIELDS: ClassVar[dict[str, Any]] = {
        "mode": "sum",
        "pruned_weights": False,
        "include_last_offset": False,
        "padding_idx": None,
    }

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "sum",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        dtype: torch.dtype = torch.quint8,
        padding_idx: int | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if mode not in ("sum", "mean", "max"):
            raise InvalidRequest(f"mode must be 'sum', 'mean' or 'max', got {mode!r}")
        own = {"mode": mode, "include_last_offset": include_last_offset, "padding_idx": padding_idx}
        self._construct(num_embeddings, embedding_dim, _weight, dtype, **own)

    def forward(
        self,
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
        compressed_indices_mapping: Tensor | None = None,
    ) -> Tensor:
        """One row for each bag; `compressed_indices_mapping` is for `pruned_weights`, as in the operator."""
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.to(torch.float32)
        if self.mode == "sum" and self.padding_idx is None:
            return self._sum_bags(indices, offsets, per_sample_weights, compressed_indices_mapping)
        if self.pruned_weights:
            raise RuntimeError("pruned_weights go with mode 'sum' and no padding_idx only")
        return self._reduce_rows(indices, offsets, per_sample_weights)

    def _reduce_rows(
        self, indices: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Tensor:
        """Look the rows up, and let the float operator reduce them; padding becomes a row past the last."""
        rows = self._lookup(indices)
        count = rows.size(0)
        rows = torch.cat([rows, torch.zeros(1, self.embedding_dim)])
        positions = torch.arange(count, device=indices.device).reshape(indices.shape)
        padding: int | None = None
        if self.padding_idx is not None:
            positions = positions.masked_fill(torch.eq(indices, self.padding_idx), count)
            padding = count
        return F.embedding_bag(
            positions,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )
