"""The QAT column for lookup tables: `Embedding` and `EmbeddingBag`, fake-quantized per row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.errors import InvalidRequest
from quantization.nn.modes.qat import Qat


class QatLookup(Qat):
    """What the two embedding cells share: the weight is quantized per row, with float zero points."""

    if TYPE_CHECKING:
        padding_idx: Any
        max_norm: Any
        norm_type: Any
        scale_grad_by_freq: Any
        mode: Any
        sparse: Any
        include_last_offset: Any

    # How messages name the layer.
    _LABEL = ""

    def _check_qscheme(self) -> None:
        got = getattr(self.weight_fake_quant, "qscheme", None)
        if got != torch.per_channel_affine_float_qparams:
            raise InvalidRequest(
                f"{self._LABEL} weights requires a qscheme of {torch.per_channel_affine_float_qparams} Got "
                f"{got}: give the module default_embedding_qat_qconfig (or its 4-bit variant), or set its "
                "qconfig to None to leave it float"
            )


class QatEmbedding(QatLookup):
    """Constructor and lookup of `Embedding`."""

    _LABEL = "Embedding"

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
        device: Any = None,
        dtype: Any = None,
        qconfig: Any = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            _weight=_weight,
            device=device,
            dtype=dtype,
        )
        self._fake_quantize_weight(qconfig, device, dtype)
        self._check_qscheme()

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight_fake_quant(self.weight),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


class QatEmbeddingBag(QatLookup):
    """Constructor and lookup of `EmbeddingBag`."""

    _LABEL = "Embedding Bag"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        qconfig: Any = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            sparse=sparse,
            _weight=_weight,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            device=device,
            dtype=dtype,
        )
        self._fake_quantize_weight(qconfig, device, dtype)
        self._check_qscheme()

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        return F.embedding_bag(
            input,
            self.weight_fake_quant(self.weight),
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
