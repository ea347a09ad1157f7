"""Lookup tables: one row of the weight per index, or per bag of indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

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


EMBEDDING = Family((nn.Embedding,), _SHARED, _weight_shape)
EMBEDDING_BAG = Family((nn.EmbeddingBag,), (*_SHARED, "mode", "include_last_offset"), _weight_shape)
