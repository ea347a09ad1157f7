"""LSTMs written out in parts that can be observed: linear gates, activations, and arithmetic as modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantization.errors import InvalidRequest, Unsupported, notify
from quantization.markers import Composite
from quantization.nn.functional_modules import FloatFunctional
from quantization.nn.quantizable.parts import (
    prepare_parts,
    prepare_parts_for_training,
    qconfig_of,
    require_type,
)

GATES = ("input", "forget", "cell", "output")  # the order of torch's LSTM weights


def _expect_sequence(x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            "a quantizable LSTM takes a tensor, not a PackedSequence: pad the batch with pad_packed_sequence, "
            "or use quantize_dynamic, whose LSTM takes packed sequences"
        )
    if x.dim() != 2 and x.dim() != 3:
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {x.dim()}D instead")


def _expect_same_kind(x: Tensor, hidden: tuple[Tensor, Tensor]) -> None:
    if x.is_quantized != hidden[0].is_quantized or x.is_quantized != hidden[1].is_quantized:
        raise ValueError(
            "the input of an LSTM and both tensors of its hidden state must be quantized, or all float; they are "
            "not: send a float state through a QuantStub of its own, or leave it out to start from zeros"
        )


class LSTMCell(nn.Module):
    """One step of an LSTM: x (batch, input_dim) and a state (h, c) to the next state.

    With `split_gates` each of the four gates has its own linear layers, and so its own output range.

    >>> h, c = LSTMCell(4, 5)(torch.ones(2, 4))
    >>> h.shape
    torch.Size([2, 5])
    """

    _FLOAT_MODULE = nn.LSTMCell
    __constants__ = ["split_gates"]  # noqa: RUF012 (TorchScript's own name for it)

    def __init__(
        self, input_dim: int, hidden_dim: int, bias: bool = True, device: Any = None, dtype: Any = None,
        *, split_gates: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size = input_dim
        self.hidden_size = hidden_dim
        self.bias = bias
        self.split_gates = split_gates

        def linear(features: int, width: int) -> nn.Linear:
            return nn.Linear(features, width, bias=bias, device=device, dtype=dtype)

        self.igates: nn.Module
        self.hgates: nn.Module
        self.gates: nn.Module
        if split_gates:
            self.igates = nn.ModuleDict({gate: linear(input_dim, hidden_dim) for gate in GATES})
            self.hgates = nn.ModuleDict({gate: linear(hidden_dim, hidden_dim) for gate in GATES})
            self.gates = nn.ModuleDict({gate: FloatFunctional() for gate in GATES})
        else:
            self.igates = linear(input_dim, 4 * hidden_dim)
            self.hgates = linear(hidden_dim, 4 * hidden_dim)
            self.gates = FloatFunctional()
        self.input_gate = nn.Sigmoid()
        self.forget_gate = nn.Sigmoid()
        self.cell_gate = nn.Tanh()
        self.output_gate = nn.Sigmoid()
        self.fgate_cx = FloatFunctional()
        self.igate_cgate = FloatFunctional()
        self.fgate_cx_igate_cgate = FloatFunctional()
        self.ogate_cy = FloatFunctional()
        self.initial_hidden_state_qparams: tuple[float, int] = (1.0, 0)
        self.initial_cell_state_qparams: tuple[float, int] = (1.0, 0)
        self.hidden_state_dtype: torch.dtype = torch.quint8
        self.cell_state_dtype: torch.dtype = torch.quint8

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if hidden is None:
            hidden = self.initialize_hidden(x.shape[0], x.is_quantized)
            if not x.is_quantized:
                hidden = (hidden[0].to(x), hidden[1].to(x))
        hx, cx = hidden
        if self.split_gates:
            i = self.gates["input"].add(self.igates["input"](x), self.hgates["input"](hx))
            f = self.gates["forget"].add(self.igates["forget"](x), self.hgates["forget"](hx))
            g = self.gates["cell"].add(self.igates["cell"](x), self.hgates["cell"](hx))
            o = self.gates["output"].add(self.igates["output"](x), self.hgates["output"](hx))
        else:
            i, f, g, o = self.gates.add(self.igates(x), self.hgates(hx)).chunk(4, 1)
        i, f, g, o = self.input_gate(i), self.forget_gate(f), self.cell_gate(g), self.output_gate(o)
        cy = self.fgate_cx_igate_cgate.add(self.fgate_cx.mul(f, cx), self.igate_cgate.mul(i, g))
        hy = self.ogate_cy.mul(o, torch.tanh(cy))
        return hy, cy

    def initialize_hidden(self, batch_size: int, is_quantized: bool = False) -> tuple[Tensor, Tensor]:
        """Zeros for h and c, each (batch, hidden_size); quantized as the `initial_*` attributes say."""
        h = torch.zeros((batch_size, self.hidden_size))
        c = torch.zeros((batch_size, self.hidden_size))
        if is_quantized:
            h_scale, h_zero_point = self.initial_hidden_state_qparams
            c_scale, c_zero_point = self.initial_cell_state_qparams
            h = torch.quantize_per_tensor(h, h_scale, h_zero_point, self.hidden_state_dtype)
            c = torch.quantize_per_tensor(c, c_scale, c_zero_point, self.cell_state_dtype)
        return h, c

    def _get_name(self) -> str:
        return "QuantizableLSTMCell"

    @classmethod
    def from_params(
        cls, wi: Tensor, wh: Tensor, bi: Tensor | None = None, bh: Tensor | None = None, split_gates: bool = False
    ) -> LSTMCell:
        """Make a cell of the weights of a float one: wi (4*hidden, input), wh (4*hidden, hidden).

        Unless the gates are split, parameters are taken over as they are.

        >>> LSTMCell.from_params(torch.ones(8, 3), torch.ones(8, 2)).hidden_size
        2
        """
        if (bi is None) != (bh is None):
            raise InvalidRequest("bi and bh must both be None or both have values; one of them is missing")
        if wh.shape[0] != 4 * wh.shape[1] or wi.shape[0] != wh.shape[0]:
            raise InvalidRequest(
                f"an LSTM cell has weights of shapes (4*hidden, input) and (4*hidden, hidden), got "
                f"{tuple(wi.shape)} and {tuple(wh.shape)}"
            )
        cell = cls(wi.shape[1], wh.shape[1], bias=bi is not None, device="meta", split_gates=split_gates)
        for linear, weight, bias in ((cell.igates, wi, bi), (cell.hgates, wh, bh)):
            if isinstance(linear, nn.ModuleDict):
                biases = (None,) * 4 if bias is None else bias.detach().chunk(4)
                for gate, part, part_bias in zip(GATES, weight.detach().chunk(4), biases, strict=True):
                    _fill(linear[gate], part.clone(), None if part_bias is None else part_bias.clone())
            else:
                _fill(linear, weight, bias)
        return cell

    @classmethod
    def from_float(
        cls, other: nn.LSTMCell, use_precomputed_fake_quant: bool = False, split_gates: bool = False
    ) -> LSTMCell:
        """Make the cell of an `nn.LSTMCell` with a qconfig, which goes to its linear layers; no observers yet."""
        require_type(other, cls._FLOAT_MODULE, cls.__name__)
        qconfig = qconfig_of(other)
        cell = cls.from_params(
            other.weight_ih, other.weight_hh, _bias(other, "bias_ih"), _bias(other, "bias_hh"), split_gates
        )
        for module in (cell, cell.igates, cell.hgates):
            module.qconfig = qconfig
        return cell.train(other.training)


def _fill(linear: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    if bias is not None:
        linear.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)


def _bias(mod: nn.Module, name: str) -> Tensor | None:
    return getattr(mod, name, None) if mod.bias else None


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
        h, c = self.cell(x[0], hidden)
        result = [h]
        for step in range(1, x.shape[0]):
            h, c = self.cell(x[step], (h, c))
            result.append(h)
        return torch.stack(result, 0), (h, c)

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
            result = torch.cat([result, result_bw.flip(0)], result.dim() - 1)
            h, c = torch.stack([h, h_bw], 0), torch.stack([c, c_bw], 0)
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
        if hidden is not None:
            _expect_same_kind(x, hidden)
        batched = x.dim() == 3
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        directions = 2 if self.bidirectional else 1
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
        h = torch.stack(h_list).reshape(-1, x.shape[1], self.hidden_size)
        c = torch.stack(c_list).reshape(-1, x.shape[1], self.hidden_size)
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
            "It looks like you are trying to convert a non-quantizable LSTM module. Please, see the examples on "
            "quantizable LSTMs: quantized.LSTM.from_observed takes an observed one, and convert() calls it"
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
            "dropout option for quantizable LSTM is ignored: between its layers nothing is dropped in training. "
            "Train the float LSTM first, or set its dropout to 0",
            strict=False,
            stacklevel=5,
        )
