"""LSTMs over sequences, made of `LSTMCell`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantization.backends import torch_quantized as q
from quantization.errors import Unsupported, notify
from quantization.markers import Composite
from quantization.nn.quantizable import over_time
from quantization.nn.quantizable.cell import LSTMCell
from quantization.nn.quantizable.parts import (
    prepare_parts,
    prepare_parts_for_training,
    qconfig_of,
    require_type,
)


def _expect_sequence(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            "a quantizable LSTM takes a tensor, not a PackedSequence: pad the batch with "
            "pad_packed_sequence, or use quantize_dynamic, whose LSTM takes packed sequences"
        )
    if x.dim() != 2 and x.dim() != 3:
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {x.dim()}D instead")


def _expect_same_kind(x: Tensor, hidden: tuple[Tensor, Tensor]) -> None:
    if x.is_quantized != hidden[0].is_quantized or x.is_quantized != hidden[1].is_quantized:
        raise ValueError(
            "the input of an LSTM and both tensors of its hidden state must be quantized, or all float; "
            "they are not: send a float state through a QuantStub of its own, or leave it out to start at 0"
        )


def _expect_state(
    hidden: tuple[Tensor, Tensor], layers: int, batch: int, hidden_size: int, batched: bool
) -> None:
    expected = [layers, batch, hidden_size] if batched else [layers, hidden_size]
    if list(hidden[0].shape) != expected or list(hidden[1].shape) != expected:
        raise ValueError(
            f"LSTM: expected a hidden state of two tensors of size {expected}, got {list(hidden[0].shape)} "
            f"and {list(hidden[1].shape)}"
        )


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    """Concatenate; quantized tensors with the scale of the first, of which torch.cat would warn."""
    first = tensors[0]
    if first.is_quantized:
        return q.cat(tensors, dim, first.q_scale(), first.q_zero_point())
    return torch.cat(tensors, dim)


def _stack(tensors: list[Tensor]) -> Tensor:
    return _cat([tensor.unsqueeze(0) for tensor in tensors], 0)


class _LSTMSingleLayer(nn.Module):
    """A cell run over a sequence (time, batch, input_dim), in one direction."""

    def __init__(
        self, input_dim: int, hidden_dim: int, bias: bool = True, device: Any = None, dtype: Any = None,
        *, split_gates: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cell = LSTMCell(
            input_dim, hidden_dim, bias=bias, device=device, dtype=dtype, split_gates=split_gates
        )

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if x.shape[0] == 0:
            raise ValueError("LSTM: expected a sequence length larger than 0")
        if not torch.jit.is_scripting():
            found = over_time.run(self.cell, x, hidden)
            if found is not None:
                return found
        h, c = self.cell(x[0], hidden)
        result = [h]
        for step in range(1, x.shape[0]):
            h, c = self.cell(x[step], (h, c))
            result.append(h)
        return _stack(result), (h, c)

    @classmethod
    def from_params(cls, *args: Any, **kwargs: Any) -> _LSTMSingleLayer:
        """Make the layer of what `LSTMCell.from_params` takes."""
        cell = LSTMCell.from_params(*args, **kwargs)
        layer = cls(cell.input_size, cell.hidden_size, cell.bias, device="meta", split_gates=cell.split_gates)
        layer.cell = cell
        return layer


class _LSTMLayer(nn.Module):
    """One layer of an LSTM: `layer_fw` and, if bidirectional, `layer_bw` from the end of the sequence."""

    __constants__ = ["batch_first", "bidirectional"]  # noqa: RUF012

    def __init__(
        self, input_dim: int, hidden_dim: int, bias: bool = True, batch_first: bool = False,
        bidirectional: bool = False, device: Any = None, dtype: Any = None, *, split_gates: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        options = {"bias": bias, "device": device, "dtype": dtype, "split_gates": split_gates}
        self.layer_fw = _LSTMSingleLayer(input_dim, hidden_dim, **options)
        if bidirectional:
            self.layer_bw = _LSTMSingleLayer(input_dim, hidden_dim, **options)

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if self.batch_first:
            x = x.transpose(0, 1)
        if self.bidirectional:
            forward: tuple[Tensor, Tensor] | None = None
            backward: tuple[Tensor, Tensor] | None = None
            if hidden is not None:
                forward, backward = (hidden[0][0], hidden[1][0]), (hidden[0][1], hidden[1][1])
            result, (h, c) = self.layer_fw(x, forward)
            result_bw, (h_bw, c_bw) = self.layer_bw(x.flip(0), backward)
            result = _cat([result, result_bw.flip(0)], result.dim() - 1)
            h, c = _stack([h, h_bw]), _stack([c, c_bw])
        else:
            result, (h, c) = self.layer_fw(x, hidden)
        if self.batch_first:
            result = result.transpose(0, 1)
        return result, (h, c)

    @classmethod
    def from_float(cls, other: nn.LSTM, layer_idx: int = 0, qconfig: Any = None, **kwargs: Any) -> _LSTMLayer:
        """Make the layer of layer `layer_idx` of an `nn.LSTM`; no observers yet.

        Args:
            qconfig: for a float LSTM that has none.
            kwargs: `batch_first`, `bidirectional`, `bias`, `split_gates`: instead of what `other` has.
        """
        qconfig = qconfig_of(other, qconfig)
        bias, bidirectional = kwargs.get("bias", other.bias), kwargs.get("bidirectional", other.bidirectional)
        split_gates = kwargs.get("split_gates", False)
        first = getattr(other, f"weight_ih_l{layer_idx}")
        layer = cls(
            first.shape[1], other.hidden_size, bias, kwargs.get("batch_first", other.batch_first),
            bidirectional, device="meta", split_gates=split_gates,
        )  # fmt: skip
        layer.qconfig = qconfig
        for name, suffix in (("layer_fw", ""), ("layer_bw", "_reverse"))[: 1 + bidirectional]:
            kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if bias else ()))
            params = [getattr(other, f"{kind}_l{layer_idx}{suffix}") for kind in kinds]
            setattr(layer, name, _LSTMSingleLayer.from_params(*params, split_gates=split_gates))
        return layer.train(other.training)


class LSTM(nn.Module, Composite):
    """`nn.LSTM` made of parts that can be observed and quantized; the arguments are those of `nn.LSTM`.

    `dropout` is kept as an attribute and not applied. Input is (time, batch, input_size), with `batch_first`
    (batch, time, input_size), or one sequence without the batch dimension.

    >>> lstm = nn.LSTM(4, 5, num_layers=2)
    >>> x = torch.ones(3, 1, 4)
    >>> from quantization.qconfig import default_qconfig
    >>> prepared = LSTM.from_float(lstm.eval(), default_qconfig)
    >>> torch.allclose(prepared(x)[0], lstm(x)[0], atol=1e-6)
    True
    """

    _FLOAT_MODULE: type[nn.Module] = nn.LSTM
    __constants__ = ["batch_first"]  # noqa: RUF012

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        device: Any = None, dtype: Any = None, *, split_gates: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_dropout(dropout)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        width = hidden_size * (2 if bidirectional else 1)
        self.layers = nn.ModuleList(
            _LSTMLayer(
                width if index else input_size, hidden_size, bias, batch_first=False,
                bidirectional=bidirectional, device=device, dtype=dtype, split_gates=split_gates,
            )
            for index in range(num_layers)
        )  # fmt: skip

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        _expect_sequence(x)
        batched = x.dim() == 3
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        directions = 2 if self.bidirectional else 1
        if hidden is not None:
            _expect_same_kind(x, hidden)
            _expect_state(hidden, directions * self.num_layers, x.shape[1], self.hidden_size, batched)
        shape = [self.num_layers, directions, x.shape[1], self.hidden_size]
        h_list: list[Tensor] = []
        c_list: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            state: tuple[Tensor, Tensor] | None = None
            if hidden is not None:
                h_in, c_in = hidden[0].reshape(shape)[index], hidden[1].reshape(shape)[index]
                state = (h_in, c_in) if self.bidirectional else (h_in[0], c_in[0])
            x, (h, c) = layer(x, state)
            h_list.append(h)
            c_list.append(c)
        h = _stack(h_list).reshape(-1, x.shape[1], self.hidden_size)
        c = _stack(c_list).reshape(-1, x.shape[1], self.hidden_size)
        if not batched:
            return x.squeeze(1), (h.squeeze(1), c.squeeze(1))
        if self.batch_first:
            x = x.transpose(0, 1)
        return x, (h, c)

    def _get_name(self) -> str:
        return "QuantizableLSTM"

    @classmethod
    def from_float(cls, other: nn.LSTM, qconfig: Any = None, split_gates: bool = False) -> LSTM:
        """Make the composite of a float LSTM, with observers: for training if that is in training mode.

        Args:
            qconfig: for a float LSTM that has none.
            split_gates: give each gate its own linear layers and range.
        """
        require_type(other, nn.LSTM, cls.__name__)
        qconfig = qconfig_of(other, qconfig)
        if other.proj_size:
            raise Unsupported(
                f"a static LSTM has no projections, and this one has proj_size={other.proj_size}: use "
                "quantize_dynamic for it, or leave it float by setting its qconfig to None"
            )
        new = cls(
            other.input_size, other.hidden_size, 0, other.bias, other.batch_first, 0.0, other.bidirectional
        )
        new.num_layers, new.dropout = other.num_layers, other.dropout
        new.layers.extend(
            _LSTMLayer.from_float(other, index, qconfig, batch_first=False, split_gates=split_gates)
            for index in range(other.num_layers)
        )
        new.train(other.training)
        new.qconfig = qconfig
        if not other.training:
            prepare_parts(new)
            return new
        _note_dropout(other.dropout)
        prepare_parts_for_training(new)
        return new

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """Raise: the quantized LSTM is what comes of an observed one."""
        raise Unsupported(
            "It looks like you are trying to convert a non-quantizable LSTM module. Please, see the examples "
            "on quantizable LSTMs: quantized.LSTM.from_observed takes an observed one, and convert() calls it"
        )


def _check_dropout(dropout: float) -> None:
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being "
            f"zeroed, got {dropout!r}"
        )
    _note_dropout(dropout)


def _note_dropout(dropout: float) -> None:
    if dropout > 0:
        notify(
            "dropout option for quantizable LSTM is ignored: between its layers nothing is dropped in "
            "training. Train the float LSTM first, or set its dropout to 0",
            strict=False,
            stacklevel=5,
        )
