"""Dynamically quantized recurrent cells: one step of float input and hidden state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest
from quantization.nn.recurrent.cell_base import RNNCellBase
from quantization.nn.recurrent.packed import CellWeights, pack_weight_bias, unpack_weight_bias


class LSTMCell(RNNCellBase, source=nn.LSTMCell):
    """Dynamic `nn.LSTMCell`.

    >>> hidden, cell = LSTMCell(3, 4)(torch.ones(2, 3))
    >>> hidden.shape
    torch.Size([2, 4])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, num_chunks=4, **kwargs)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Input of shape (N, input_size) or (input_size), any float dtype, to the next two states."""
        x = self._batched(input, input)
        self.check_forward_input(x)
        if hx is None:
            hidden, cell = self._zeros(x), self._zeros(x)
        else:
            hidden, cell = self._batched(hx[0], input), self._batched(hx[1], input)
        self.check_forward_hidden(x, hidden, "[0]")
        self.check_forward_hidden(x, cell, "[1]")
        state = self._step(x, [hidden, cell])
        return self._like(state[0], input), self._like(state[1], input)

    def _step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        hidden, cell = q.lstm_cell(
            x, state, self._packed_weight_ih, self._packed_weight_hh, self.bias_ih, self.bias_hh
        )
        return [hidden, cell]


class ProjectedLSTMCell(LSTMCell):
    """The cell of an LSTM with `proj_size`: one more weight makes its hidden state smaller."""

    _packed_names: ClassVar[tuple[str, ...]] = (*RNNCellBase._packed_names, "_packed_weight_hr")

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, dtype: torch.dtype, proj_size: int
    ) -> None:
        super().__init__(input_size, hidden_size, bias=bias, dtype=dtype)
        self.proj_size = proj_size
        self._pack(CellWeights.blank(4 * hidden_size, input_size, hidden_size, proj_size, dtype))

    def _pack(self, weights: CellWeights) -> None:
        super()._pack(weights)
        if weights.weight_hr is not None:
            self._packed_weight_hr = pack_weight_bias(weights.weight_hr, None, self.weight_dtype)

    def cell_weights(self) -> CellWeights:
        """The tensors that are packed."""
        plain = super().cell_weights()
        return CellWeights(
            plain.weight_ih,
            plain.weight_hh,
            plain.bias_ih,
            plain.bias_hh,
            unpack_weight_bias(self._packed_weight_hr)[0],
        )

    def _step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        hidden, cell = q.lstm_cell(
            x, state, self._packed_weight_ih, self._packed_weight_hh, self.bias_ih, self.bias_hh
        )
        if self.weight_dtype == torch.qint8:
            return [q.linear_dynamic(hidden, self._packed_weight_hr, True), cell]
        return [q.linear_dynamic_fp16(hidden, self._packed_weight_hr), cell]


class _OneStateCell(RNNCellBase):
    """The `forward` of cells whose only state is the hidden one."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Input of shape (N, input_size) or (input_size), any float dtype, to the next hidden state."""
        x = self._batched(input, input)
        self.check_forward_input(x)
        hidden = self._zeros(x) if hx is None else self._batched(hx, input)
        self.check_forward_hidden(x, hidden, "")
        return self._like(self._step(x, [hidden])[0], input)


class GRUCell(_OneStateCell, source=nn.GRUCell):
    """Dynamic `nn.GRUCell`.

    >>> GRUCell(3, 4)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, dtype: torch.dtype = torch.qint8
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, dtype=dtype)

    def _step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        hidden = q.gru_cell(
            x, state[0], self._packed_weight_ih, self._packed_weight_hh, self.bias_ih, self.bias_hh
        )
        return [hidden]


class RNNCell(_OneStateCell, source=nn.RNNCell):
    """Dynamic `nn.RNNCell`, with tanh or ReLU.

    >>> RNNCell(3, 4, nonlinearity="relu")(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, dtype=dtype)
        if nonlinearity not in ("tanh", "relu"):
            raise InvalidRequest(f"Unknown nonlinearity: {nonlinearity}; expected 'tanh' or 'relu'")
        self.nonlinearity = nonlinearity

    def _step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        ih, hh = self._packed_weight_ih, self._packed_weight_hh
        if self.nonlinearity == "tanh":
            return [q.rnn_tanh_cell(x, state[0], ih, hh, self.bias_ih, self.bias_hh)]
        return [q.rnn_relu_cell(x, state[0], ih, hh, self.bias_ih, self.bias_hh)]
