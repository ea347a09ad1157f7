"""Dynamically quantized recurrent layers: whole sequences of float input, padded or packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from quantization.backends import torch_quantized as q
from quantization.errors import InvalidRequest
from quantization.nn.recurrent import native
from quantization.nn.recurrent.base import RNNBase
from quantization.nn.recurrent.cells import ProjectedLSTMCell, RNNCell
from quantization.nn.recurrent.packed import CellWeights
from quantization.nn.recurrent.sequences import apply_permutation


class LSTM(RNNBase, source=nn.LSTM):
    """Dynamic `nn.LSTM` on a `PackedSequence` or a tensor of any float dtype.

    A tensor is (T, N, input_size), (N, T, input_size) with `batch_first`, or (T, input_size).
    The output has the input's dtype. With `proj_size` it runs step by step, which is slower.

    >>> output, (hidden, cell) = LSTM(3, 4, bidirectional=True)(torch.ones(5, 2, 3))
    >>> output.shape, hidden.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 2, 4]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    @classmethod
    def _further_arguments(cls, mod: Any) -> dict[str, Any]:
        return {"proj_size": getattr(mod, "proj_size", 0)}

    def _packed(self, weights: CellWeights) -> nn.Module:
        if not self.proj_size:
            return super()._packed(weights)
        return ProjectedLSTMCell.holding(
            weights, self.hidden_size, self.bias, self.dtype, proj_size=self.proj_size
        )

    def _get_name(self) -> str:
        return "DynamicQuantizedLSTM"

    def _states(
        self, input: Tensor, states: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Output, hidden and cell state from states of shape (layers * directions, N, width)."""
        # `stepwise` is a constant to TorchScript, which compiles only the branch taken: the children differ.
        if self.stepwise:
            return self._unrolled(input, states, batch_sizes)
        else:
            if not torch.jit.is_scripting():
                found = native.run(self, input, states, batch_sizes)
                if found is not None:
                    return found
            params = [cell.param for cell in self._all_weight_values]
            if batch_sizes is None:
                output, hidden, cell = q.lstm(
                    input, states, params, True, self.num_layers, self.dropout, self.training,
                    self.bidirectional, self.batch_first, dtype=self.dtype, use_dynamic=True,
                )  # fmt: skip
            else:
                output, hidden, cell = q.lstm(
                    input, batch_sizes, states, params, True, self.num_layers, self.dropout, self.training,
                    self.bidirectional, dtype=self.dtype, use_dynamic=True,
                )  # fmt: skip
            return output, [hidden, cell]

    def check_forward_args(
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Refuse input and states that do not fit."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = expected[0], expected[1], self.hidden_size
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(self, hx: tuple[Tensor, Tensor], permutation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reorder the batch of both states; None leaves them."""
        if permutation is None:
            return hx
        return apply_permutation(hx[0], permutation), apply_permutation(hx[1], permutation)

    def forward_impl(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None,
        batch_sizes: Tensor | None,
        max_batch_size: int,
        sorted_indices: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Both forms of `forward`, in float32, with states in the caller's order, or None for zeros."""
        self.check_input(input, batch_sizes)
        if hx is None:
            rows, _, width = self.get_expected_hidden_size(input, batch_sizes)
            hidden = torch.zeros(rows, max_batch_size, width, device=input.device)
            hx = (hidden, torch.zeros(rows, max_batch_size, self.hidden_size, device=input.device))
        else:
            hx = self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(input, hx, batch_sizes)
        output, states = self._states(input, [hx[0].to(torch.float32), hx[1].to(torch.float32)], batch_sizes)
        return output, (states[0], states[1])

    @torch.jit.export
    def forward_tensor(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`forward` of a tensor."""
        x = input.to(torch.float32)
        batched = input.dim() != 2
        if not batched:
            x = x.unsqueeze(self._batch_dim())
            if hx is not None:
                hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if x.dim() != 3:
            raise RuntimeError(f"input must have 3 dimensions, or 2 without a batch, got {input.dim()}")
        output, (hidden, cell) = self.forward_impl(x, hx, None, x.size(self._batch_dim()), None)
        output, hidden, cell = output.to(input.dtype), hidden.to(input.dtype), cell.to(input.dtype)
        if batched:
            return output, (hidden, cell)
        return output.squeeze(self._batch_dim()), (hidden.squeeze(1), cell.squeeze(1))

    @torch.jit.export
    def forward_packed(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        """`forward` of sequences of different lengths."""
        data, batch_sizes, sorted_indices, unsorted_indices = input
        output, states = self.forward_impl(
            data.to(torch.float32), hx, batch_sizes, int(batch_sizes[0]), sorted_indices
        )
        hidden, cell = self.permute_hidden(states, unsorted_indices)
        packed = PackedSequence(output.to(data.dtype), batch_sizes, sorted_indices, unsorted_indices)
        return packed, (hidden.to(data.dtype), cell.to(data.dtype))

    @torch.jit.ignore(drop=False)
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Output, and the pair of last hidden and cell states, of a tensor or a `PackedSequence`."""
        if isinstance(input, PackedSequence):
            return self.forward_packed(input, hx)
        return self.forward_tensor(input, hx)


class _OneState(RNNBase):
    """The `forward` of layers whose only state is the hidden one."""

    def _states(self, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output and hidden state from a hidden state of shape (layers * directions, N, hidden_size)."""
        raise NotImplementedError

    def forward_impl(
        self,
        input: Tensor,
        hx: Tensor | None,
        batch_sizes: Tensor | None,
        max_batch_size: int,
        sorted_indices: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Both forms of `forward`, in float32, with a state in the caller's order, or None for zeros."""
        self.check_input(input, batch_sizes)
        if hx is None:
            rows, _, width = self.get_expected_hidden_size(input, batch_sizes)
            hx = torch.zeros(rows, max_batch_size, width, device=input.device)
        else:
            hx = self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(input, hx, batch_sizes)
        return self._states(input, hx.to(torch.float32), batch_sizes)

    @torch.jit.export
    def forward_tensor(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`forward` of a tensor."""
        x = input.to(torch.float32)
        batched = input.dim() != 2
        if not batched:
            x = x.unsqueeze(self._batch_dim())
            if hx is not None:
                hx = hx.unsqueeze(1)
        if x.dim() != 3:
            raise RuntimeError(f"input must have 3 dimensions, or 2 without a batch, got {input.dim()}")
        output, hidden = self.forward_impl(x, hx, None, x.size(self._batch_dim()), None)
        output, hidden = output.to(input.dtype), hidden.to(input.dtype)
        if batched:
            return output, hidden
        return output.squeeze(self._batch_dim()), hidden.squeeze(1)

    @torch.jit.export
    def forward_packed(
        self, input: PackedSequence, hx: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]:
        """`forward` of sequences of different lengths."""
        data, batch_sizes, sorted_indices, unsorted_indices = input
        output, hidden = self.forward_impl(
            data.to(torch.float32), hx, batch_sizes, int(batch_sizes[0]), sorted_indices
        )
        packed = PackedSequence(output.to(data.dtype), batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(hidden, unsorted_indices).to(data.dtype)

    @torch.jit.ignore(drop=False)
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Output and last hidden state of a tensor or a `PackedSequence`."""
        if isinstance(input, PackedSequence):
            return self.forward_packed(input, hx)
        return self.forward_tensor(input, hx)


class GRU(_OneState, source=nn.GRU):
    """Dynamic `nn.GRU` on a `PackedSequence` or a tensor of any float dtype, shaped as for `LSTM`.

    >>> output, hidden = GRU(3, 4)(torch.ones(5, 2, 3))
    >>> output.shape, hidden.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("GRU", *args, **kwargs)

    def _get_name(self) -> str:
        return "DynamicQuantizedGRU"

    def _states(self, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output and hidden state from a hidden state of shape (layers * directions, N, hidden_size)."""
        if not torch.jit.is_scripting():
            found = native.run(self, input, [hidden], batch_sizes)
            if found is not None:
                return found[0], found[1][0]
        params = [cell.param for cell in self._all_weight_values]
        if batch_sizes is None:
            output, hidden = q.gru(
                input, hidden, params, True, self.num_layers, self.dropout, self.training, self.bidirectional,
                self.batch_first,
            )  # fmt: skip
        else:
            output, hidden = q.gru(
                input, batch_sizes, hidden, params, True, self.num_layers, self.dropout, self.training,
                self.bidirectional,
            )  # fmt: skip
        return output, hidden


class RNN(_OneState, source=nn.RNN):
    """Dynamic `nn.RNN`, with tanh or ReLU, step by step; torch.ao has none.

    >>> RNN(3, 4, nonlinearity="relu")(torch.ones(5, 2, 3))[0].shape
    torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise InvalidRequest(f"Unknown nonlinearity: {nonlinearity}; expected 'tanh' or 'relu'")
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        )
        self.nonlinearity = nonlinearity

    @classmethod
    def _further_arguments(cls, mod: Any) -> dict[str, Any]:
        return {"nonlinearity": mod.nonlinearity}

    def _packed(self, weights: CellWeights) -> nn.Module:
        nonlinearity = self.mode.removeprefix("RNN_").lower()
        return RNNCell.holding(weights, self.hidden_size, self.bias, self.dtype, nonlinearity=nonlinearity)

    def _states(self, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output and hidden state from a hidden state of shape (layers * directions, N, hidden_size)."""
        output, states = self._unrolled(input, [hidden], batch_sizes)
        return output, states[0]
