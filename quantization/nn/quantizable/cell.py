"""One step of an LSTM, in parts that can be observed: linear gates, activations, arithmetic as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantization.errors import InvalidRequest
from quantization.nn.functional_modules import FloatFunctional
from quantization.nn.quantizable.parts import qconfig_of, require_type

GATES = ("input", "forget", "cell", "output")  # the order of torch's LSTM weights


class LSTMCell(nn.Module):
    """One step of an LSTM: x (batch, input_dim) and a state (h, c) to the next state.

    With `split_gates` each of the four gates has its own linear layers, and so its own output range.

    >>> h, c = LSTMCell(4, 5)(torch.ones(2, 4))
    >>> h.shape
    torch.Size([2, 5])
    """

    _FLOAT_MODULE = nn.LSTMCell
    __constants__ = ["split_gates"]  # noqa: RUF012 (TorchScript's own name for it)

    if TYPE_CHECKING:  # one module, or with split gates four in an nn.ModuleDict
        igates: Any
        hgates: Any
        gates: Any

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
        cls,
        wi: Tensor,
        wh: Tensor,
        bi: Tensor | None = None,
        bh: Tensor | None = None,
        split_gates: bool = False,
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
        """Make the cell of an `nn.LSTMCell` with a qconfig, which its linear layers get; no observers yet."""
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
