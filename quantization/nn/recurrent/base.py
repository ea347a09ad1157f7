"""What dynamic recurrent layers share: sizes, packed cells by layer and direction, and how they are made."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantization.errors import InvalidRequest, QuantizationWarning
from quantization.nn.modes.state import explain_other_stage
from quantization.nn.recurrent.packed import (
    GATES,
    CellWeights,
    FloatWeights,
    FromFloat,
    PackedParameter,
    cell_params,
    checked_dtype,
    counterpart,
    packed_dtype,
)
from quantization.nn.recurrent.sequences import apply_permutation

# In the state dict: of layers that keep records, and of those that keep cells.
_FIRST_KEYS = tuple(f"_all_weight_values.0.{name}" for name in ("param", "_packed_weight_ih"))
_DEFAULTS: dict[str, Any] = {
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "proj_size": 0,
}


class RNNBase(FromFloat, nn.Module):
    """A recurrent layer; `dtype` of its weights is qint8 or float16.

    State dict, version 2: `_all_weight_values.<i>.param` with i = layer * directions + direction, objects of
    torch that `torch.load` reads with `weights_only=False` only. Weights of version 1 were made for the full
    range of the input's codes, later ones for half of it (`reduce_range`); the objects know. Layers that run
    step by step (`RNN`, and `LSTM` with `proj_size`) keep cells in place of these objects.
    """

    _version = 2
    _ONLY_READS = True
    _FLOAT_MODULE: ClassVar[Any] = nn.RNNBase
    _float_types: ClassVar[dict[Any, type[Any]]] = {}
    # Both forms of `forward`; the first that fits the type of the argument is compiled into a call.
    __overloads__: ClassVar[dict[str, list[str]]] = {"forward": ["forward_packed", "forward_tensor"]}
    __constants__: ClassVar[list[str]] = ["stepwise"]

    def __init_subclass__(cls, *, source: type[nn.Module] | None = None) -> None:
        super().__init_subclass__()
        if source is not None:
            cls._FLOAT_MODULE = source
            RNNBase._float_types[source] = cls

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: torch.dtype = torch.qint8,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        self._set_up(
            mode, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype,
            proj_size,
        )  # fmt: skip
        blank = [self._blank(layer) for layer, _, _ in self._places()]
        self._all_weight_values = nn.ModuleList([self._packed(weights) for weights in blank])

    def _set_up(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: torch.dtype,
        proj_size: int,
    ) -> None:
        """Everything but the weights."""
        if mode not in GATES:
            raise InvalidRequest(f"Unrecognized RNN mode: {mode}; expected one of {list(GATES)}")
        if not _is_share(dropout):
            raise InvalidRequest(
                "dropout should be a number in range [0, 1] representing the probability of an element being "
                f"zeroed, got {dropout!r}"
            )
        if proj_size and (mode != "LSTM" or not 0 < proj_size < hidden_size):
            raise InvalidRequest(
                f"proj_size must be 0, or less than hidden_size {hidden_size} in an LSTM; got {proj_size} in "
                f"mode {mode}"
            )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout acts between layers, so it does nothing with num_layers=1",
                QuantizationWarning,
                stacklevel=3,
            )
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.dtype = checked_dtype(dtype)
        self.version = self._version
        self.proj_size = proj_size
        self.stepwise = mode.startswith("RNN") or proj_size > 0
        self.training = False

    def _places(self) -> list[tuple[int, int, str]]:
        """Layer, direction and the suffix of the float module's names, in the order of the packed cells."""
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [
            (layer, k, f"_l{layer}{name}")
            for layer in range(self.num_layers)
            for k, name in enumerate(directions)
        ]

    def _blank(self, layer: int) -> CellWeights:
        inputs = self.input_size
        if layer > 0:
            inputs = (self.proj_size or self.hidden_size) * (2 if self.bidirectional else 1)
        rows = GATES[self.mode] * self.hidden_size
        return CellWeights.blank(rows, inputs, self.hidden_size, self.proj_size, self.dtype)

    def _packed(self, weights: CellWeights) -> nn.Module:
        """What is kept for one layer and direction."""
        reduce_range = self.version is not None and self.version >= 2
        return PackedParameter(cell_params(weights, self.dtype, reduce_range))

    def set_weight_bias(self, weight_bias_dict: dict[str, Tensor]) -> None:
        """Pack other tensors, under the float module's names; biases that are not there are zero."""
        named = [CellWeights.named(weight_bias_dict, suffix) for _, _, suffix in self._places()]
        self._all_weight_values = nn.ModuleList([self._packed(weights) for weights in named])

    def get_weight(self) -> dict[str, Tensor]:
        """The weights under the float module's names: qint8, or float32 where packed as float16."""
        return self._weight_bias()["weight"]

    def get_bias(self) -> dict[str, Tensor]:
        """The biases under the float module's names; zeros without bias."""
        return self._weight_bias()["bias"]

    def _weight_bias(self) -> dict[str, dict[str, Tensor]]:
        found: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
        for (_, _, suffix), cell in zip(self._places(), self._all_weight_values, strict=True):
            weights: CellWeights = cell.cell_weights()  # pyright: ignore[reportCallIssue]
            found["weight"].update(weights.weights(suffix))
            found["bias"].update(weights.biases(suffix))
        return found

    @classmethod
    def _read(cls, mod: Any) -> tuple[Any, FloatWeights]:
        call = "nn.quantized.dynamic.RNNBase.from_float only works for nn.LSTM and nn.GRU, and nn.RNN"
        target = counterpart(cls, mod, cls._float_types, call)
        return target, FloatWeights.of(mod, [name for names in mod._all_weights for name in names])

    @classmethod
    def from_reference(cls, ref_mod: Any) -> Any:
        """Pack the weights of a reference layer."""
        if not hasattr(ref_mod, "get_quantized_weight_bias_dict"):
            raise InvalidRequest(
                f"{cls.__name__}.from_reference takes a reference layer, which has "
                f"get_quantized_weight_bias_dict(), but got {type(ref_mod).__name__}"
            )
        return cls._made_of(ref_mod, ref_mod.get_quantized_weight_bias_dict(), ref_mod.weight_ih_l0_dtype)

    @classmethod
    def _made_of(cls, mod: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> Any:
        arguments = {
            name: getattr(mod, name)
            for name in ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
        }
        further = cls._further_arguments(mod)
        if cls not in cls._float_types.values():
            layer = cls(**arguments, **further, dtype=dtype)  # a subclass has a constructor of its own
        else:
            layer = cls.__new__(cls)
            nn.Module.__init__(layer)
            layer._set_up(
                mod.mode, **arguments, dropout=0.0, dtype=dtype, proj_size=further.pop("proj_size", 0)
            )
            for name, value in further.items():
                setattr(layer, name, value)
        layer.dropout = float(mod.dropout)
        layer.set_weight_bias(tensors)
        return layer

    @classmethod
    def _further_arguments(cls, mod: Any) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: Any) -> None:
        # Layers pickled by torch.ao lack these.
        super().__setstate__({"proj_size": 0, "stepwise": False, **state})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        explain_other_stage(self, _FIRST_KEYS, state_dict, prefix, rest[-1])
        self.version = local_metadata.get("version")
        first = state_dict.get(prefix + "_all_weight_values.0.param")
        if first is not None:
            self.dtype = packed_dtype(PackedParameter(first).packed_pair()[0])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def _get_name(self) -> str:
        return "DynamicQuantizedRNN"

    def __repr__(self) -> str:
        return f"{self._get_name()}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """Sizes, and what differs from the default."""
        named = [f"{k}={getattr(self, k)}" for k, default in _DEFAULTS.items() if getattr(self, k) != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *named])

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Refuse input of a wrong rank or width."""
        expected = 2 if batch_sizes is not None else 3
        if input.dim() != expected:
            raise RuntimeError(f"input must have {expected} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def _batch_size(self, input: Tensor, batch_sizes: Tensor | None) -> int:
        if batch_sizes is not None:
            return int(batch_sizes[0])
        return input.size(0) if self.batch_first else input.size(1)

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """(layers * directions, N, width) of the hidden state."""
        directions = 2 if self.bidirectional else 1
        width = self.proj_size if self.proj_size > 0 else self.hidden_size
        return self.num_layers * directions, self._batch_size(input, batch_sizes), width

    def check_hidden_size(
        self,
        hx: Tensor,
        expected_hidden_size: tuple[int, int, int],
        msg: str = "Expected hidden size {}, got {}",
    ) -> None:
        """Refuse a state of another shape; `msg` has places for the expected and the actual one."""
        rows, batch, width = expected_hidden_size
        if hx.dim() != 3 or hx.size(0) != rows or hx.size(1) != batch or hx.size(2) != width:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.shape)))

    def check_forward_args(self, input: Tensor, hidden: Tensor, batch_sizes: Tensor | None) -> None:
        """Refuse input and hidden state that do not fit."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden, expected, "Expected hidden size {}, got {}")

    def permute_hidden(self, hx: Tensor, permutation: Tensor | None) -> Tensor:
        """Reorder the batch of a state; None leaves it."""
        if permutation is None:
            return hx
        return apply_permutation(hx, permutation)

    def _batch_dim(self) -> int:
        return 0 if self.batch_first else 1

    def _unrolled(
        self, input: Tensor, states: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run cell after cell and step after step; `states` have shape (layers * directions, N, width)."""
        if batch_sizes is None:
            steps = list((input.transpose(0, 1) if self.batch_first else input).unbind(0))
        else:
            sizes: list[int] = batch_sizes.tolist()
            steps = list(torch.split(input, sizes))
        directions = 2 if self.bidirectional else 1
        ways: list[list[Tensor]] = []
        last: list[list[Tensor]] = []
        for i, cell in enumerate(self._all_weight_values):
            own = [part[i] for part in states]
            outputs, state = cell.unroll(steps, own, i % directions == 1)  # pyright: ignore[reportCallIssue]
            ways.append(outputs)
            last.append(state)
            if len(ways) == directions:
                steps = [torch.cat([way[t] for way in ways], 1) for t in range(len(steps))]
                ways = []
                if i + 1 < len(self._all_weight_values):
                    steps = [F.dropout(step, self.dropout, self.training) for step in steps]
        final = [torch.stack([state[k] for state in last]) for k in range(len(states))]
        if batch_sizes is not None:
            return torch.cat(steps), final
        return torch.stack(steps, 1 if self.batch_first else 0), final


def _is_share(dropout: Any) -> bool:
    return isinstance(dropout, int | float) and not isinstance(dropout, bool) and 0 <= dropout <= 1
