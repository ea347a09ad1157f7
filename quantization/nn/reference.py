"""Reference layers: the names of `torch.ao.nn.quantized.reference`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from quantization.nn.families import conv, embedding, linear
from quantization.nn.modes.reference import ReferenceQuantizedModule as ReferenceQuantizedModule
from quantization.nn.modes.reference_recurrent import CellReference, LayerReference

QParamDict = dict[str, Any]


class Linear(ReferenceQuantizedModule, nn.Linear, family=linear.LINEAR):
    """Float `nn.Linear` whose weight is rounded to quantized codes.

    >>> import torch
    >>> float_layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(float_layer.weight, 0.3)
    >>> qparams = {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 0.25, "zero_point": 0}
    >>> Linear.from_float(float_layer, qparams)(torch.tensor([1.0])).item()
    0.25
    """

    _BIAS = "bias_"

    def __init__(
        self, in_features: int, out_features: int, bias_: bool = True, device: Any = None, dtype: Any = None,
        weight_qparams: QParamDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias_, device=device, dtype=dtype)
        self._init_weight_qparams(weight_qparams, device)

    def forward(self, x: Tensor) -> Tensor:
        """`x @ get_weight().T + bias`."""
        return F.linear(x, self.get_weight(), self.bias)


class _ConvNd(ReferenceQuantizedModule):
    """A convolution of any rank, in every padding mode of the float layer."""

    if TYPE_CHECKING:
        bias: Tensor | None
        _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros",
        device: Any = None, dtype: Any = None, weight_qparams: QParamDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
        )  # fmt: skip
        self._init_weight_qparams(weight_qparams, device)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with `get_weight()`."""
        return self._conv_forward(x, self.get_weight(), self.bias)


class Conv1d(_ConvNd, nn.Conv1d, family=conv.CONV1D):
    """Float `nn.Conv1d` whose weight is rounded to quantized codes."""


class Conv2d(_ConvNd, nn.Conv2d, family=conv.CONV2D):
    """Float `nn.Conv2d` whose weight is rounded to quantized codes."""


class Conv3d(_ConvNd, nn.Conv3d, family=conv.CONV3D):
    """Float `nn.Conv3d` whose weight is rounded to quantized codes."""


def _transposed_forward(operator: Any) -> Any:
    """The forward of one transposed convolution; its operator is bound here, where TorchScript can see it."""

    def forward(self: Any, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve transposed with `get_weight()`; `output_size` resolves what the stride leaves open."""
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )
        return operator(
            x, self.get_weight(), self.bias, self.stride, self.padding, output_padding, self.groups,
            self.dilation,
        )  # fmt: skip

    return forward


class _ConvTransposeNd(ReferenceQuantizedModule):
    """A transposed convolution of any rank."""

    def __init_subclass__(cls, operator: Any = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if operator is not None:
            cls.forward = _transposed_forward(operator)

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, bias: bool = True, dilation: Any = 1,
        padding_mode: str = "zeros", device: Any = None, dtype: Any = None,
        weight_qparams: QParamDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, device, dtype,
        )  # fmt: skip
        self._init_weight_qparams(weight_qparams, device)


class ConvTranspose1d(
    _ConvTransposeNd, nn.ConvTranspose1d, family=conv.CONV_TRANSPOSE1D, operator=F.conv_transpose1d
):
    """Float `nn.ConvTranspose1d` whose weight is rounded to quantized codes."""


class ConvTranspose2d(
    _ConvTransposeNd, nn.ConvTranspose2d, family=conv.CONV_TRANSPOSE2D, operator=F.conv_transpose2d
):
    """Float `nn.ConvTranspose2d` whose weight is rounded to quantized codes."""


class ConvTranspose3d(
    _ConvTransposeNd, nn.ConvTranspose3d, family=conv.CONV_TRANSPOSE3D, operator=F.conv_transpose3d
):
    """Float `nn.ConvTranspose3d` whose weight is rounded to quantized codes."""


class Embedding(ReferenceQuantizedModule, nn.Embedding, family=embedding.EMBEDDING):
    """Float `nn.Embedding` whose table is rounded to quantized codes."""

    _BIAS = None

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
        max_norm: float | None = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
        sparse: bool = False, _weight: Tensor | None = None, device: Any = None, dtype: Any = None,
        weight_qparams: QParamDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse,
            _weight, device=device, dtype=dtype,
        )  # fmt: skip
        self._init_weight_qparams(weight_qparams, device)

    def forward(self, input: Tensor) -> Tensor:
        """The rows of `get_weight()` at the indices `input`."""
        return F.embedding(
            input, self.get_weight(), self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip


class EmbeddingBag(ReferenceQuantizedModule, nn.EmbeddingBag, family=embedding.EMBEDDING_BAG):
    """Float `nn.EmbeddingBag` whose table is rounded to quantized codes."""

    _BIAS = None

    def __init__(
        self, num_embeddings: int, embedding_dim: int, max_norm: float | None = None, norm_type: float = 2.0,
        scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
        _weight: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
        device: Any = None, dtype: Any = None, weight_qparams: QParamDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, _weight,
            include_last_offset, padding_idx, device=device, dtype=dtype,
        )  # fmt: skip
        self._init_weight_qparams(weight_qparams, device)

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """The rows of `get_weight()` at the indices `input`, reduced bag by bag."""
        return F.embedding_bag(
            input, self.get_weight(), offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq,
            self.mode, self.sparse, per_sample_weights, self.include_last_offset, self.padding_idx,
        )  # fmt: skip


class RNNCell(CellReference, nn.RNNCell):
    """Float `nn.RNNCell` whose weights are rounded to quantized codes."""

    _float_type = nn.RNNCell
    _FIELDS = (*CellReference._FIELDS, "nonlinearity")

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: Any = None, dtype: Any = None, weight_qparams_dict: QParamDict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            input_size, hidden_size, bias, device, dtype, weight_qparams_dict, nonlinearity=nonlinearity
        )


class LSTMCell(CellReference, nn.LSTMCell):
    """Float `nn.LSTMCell` whose weights are rounded to quantized codes."""

    _float_type = nn.LSTMCell


class GRUCell(CellReference, nn.GRUCell):
    """Float `nn.GRUCell` whose weights are rounded to quantized codes."""

    _float_type = nn.GRUCell


class LSTM(LayerReference, nn.LSTM):
    """Float `nn.LSTM` whose weights are rounded to quantized codes."""

    _float_type = nn.LSTM


class GRU(LayerReference, nn.GRU):
    """Float `nn.GRU` whose weights are rounded to quantized codes."""

    _float_type = nn.GRU
    _FIELDS = tuple(name for name in LayerReference._FIELDS if name != "proj_size")
