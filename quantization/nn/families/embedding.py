"""Lookup tables: one row of the weight per index, or per bag of indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from quantization.nn.families.family import Family

_SHARED = (
    "num_embeddings",
    "embedding_dim",
    "padding_idx",
    "max_norm",
    "norm_type",
    "scale_grad_by_freq",
    "sparse",
)


def _weight_shape(geometry: Mapping[str, Any]) -> tuple[int, ...]:
    return geometry["num_embeddings"], geometry["embedding_dim"]


def _lookup(module: Any, x: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    return F.embedding(
        x,
        weight,
        module.padding_idx,
        module.max_norm,
        module.norm_type,
        module.scale_grad_by_freq,
        module.sparse,
    )


def _reduce_bags(module: Any, x: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    """Bags of equal length: one row of indices each."""
    return F.embedding_bag(
        x,
        weight,
        max_norm=module.max_norm,
        norm_type=module.norm_type,
        scale_grad_by_freq=module.scale_grad_by_freq,
        mode=module.mode,
        sparse=module.sparse,
        padding_idx=module.padding_idx,
    )


EMBEDDING = Family((nn.Embedding,), _SHARED, _weight_shape, _lookup)
EMBEDDING_BAG = Family(
    (nn.EmbeddingBag,), (*_SHARED, "mode", "include_last_offset"), _weight_shape, _reduce_bags
)
