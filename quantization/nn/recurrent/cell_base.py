"""What dynamic recurrent cells share: two packed weights, how they are made, and how they run over time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from quantization.errors import InvalidRequest
from quantization.nn.modes.state import explain_other_stage, same_shape, take
from quantization.nn.recurrent.packed import (
    CellWeights,
    FloatWeights,
    FromFloat,
    checked_dtype,
    counterpart,
    pack_weight_bias,
    packed_dtype,
    unpack_weight_bias,
)

_TENSORS = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


class RNNCellBase(FromFloat, nn.Module):
    """What the cells share: two packed weights, which hold the biases too, and how they are made.

    `weight_dtype` is qint8 or float16. State dict, version 1: `_packed_weight_ih` and `_packed_weight_hh`,
    objects of torch that `torch.load` reads with `weights_only=False` only. `bias_ih` and `bias_hh` are
    arguments of the operators that go unused.
    """

    _ONLY_READS = True
    _float_types: ClassVar[dict[Any, type[Any]]] = {}
    _packed_names: ClassVar[tuple[str, ...]] = ("_packed_weight_ih", "_packed_weight_hh")

    def __init_subclass__(cls, *, source: type[nn.Module] | None = None) -> None:
        super().__init_subclass__()
        if source is not None:
            RNNCellBase._float_types[source] = cls

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        num_chunks: int = 4,
        dtype: torch.dtype = torch.qint8,
    ) -> None:
        super().__init__()
        rows = num_chunks * hidden_size
        self._set_up(input_size, hidden_size, bias, rows, dtype)
        self._pack(CellWeights.blank(rows, input_size, hidden_size, 0, dtype))

    def _set_up(self, input_size: int, hidden_size: int, bias: bool, rows: int, dtype: torch.dtype) -> None:
        """Everything but the weights."""
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.weight_dtype = checked_dtype(dtype)
        self.bias_ih = torch.zeros(rows)
        self.bias_hh = torch.zeros(rows)

    @classmethod
    def holding(
        cls, weights: CellWeights, hidden_size: int, bias: bool, dtype: torch.dtype, **further: Any
    ) -> Self:
        """A cell with these weights, packed once; `further` attributes are those a constructor would set."""
        cell = cls.__new__(cls)
        nn.Module.__init__(cell)
        rows, inputs = weights.weight_ih.shape
        cell._set_up(inputs, hidden_size, bias, rows, dtype)
        for name, value in further.items():
            setattr(cell, name, value)
        cell._pack(weights)
        return cell

    def _pack(self, weights: CellWeights) -> None:
        self._packed_weight_ih = pack_weight_bias(weights.weight_ih, weights.bias_ih, self.weight_dtype)
        self._packed_weight_hh = pack_weight_bias(weights.weight_hh, weights.bias_hh, self.weight_dtype)

    def cell_weights(self) -> CellWeights:
        """The tensors that are packed."""
        (ih, bias_ih), (hh, bias_hh) = map(
            unpack_weight_bias, (self._packed_weight_ih, self._packed_weight_hh)
        )
        return CellWeights(ih, hh, bias_ih, bias_hh)

    def get_weight(self) -> dict[str, Tensor]:
        """`weight_ih` and `weight_hh`: qint8, or float32 where packed as float16."""
        return self.cell_weights().weights("")

    def get_bias(self) -> dict[str, Tensor]:
        """`bias_ih` and `bias_hh`; zeros without bias."""
        return self.cell_weights().biases("")

    def _weight_bias(self) -> dict[str, dict[str, Tensor]]:
        return {"weight": self.get_weight(), "bias": self.get_bias()}

    def set_weight_bias(self, weight_bias_dict: dict[str, Any]) -> None:
        """Pack other tensors, named as `get_weight` and `get_bias` name them.

        They come in one dictionary, or in two under "weight" and "bias", as from `_weight_bias`.
        """
        if "weight" in weight_bias_dict:
            weight_bias_dict = {**weight_bias_dict["weight"], **weight_bias_dict["bias"]}
        self._pack(CellWeights.named(weight_bias_dict, ""))

    @classmethod
    def _read(cls, mod: Any) -> tuple[Any, FloatWeights]:
        call = (
            "nn.quantized.dynamic.RNNCellBase.from_float only works for nn.LSTMCell, nn.GRUCell and "
            "nn.RNNCell"
        )
        target = counterpart(cls, mod, cls._float_types, call)
        return target, FloatWeights.of(mod, _TENSORS if mod.bias else _TENSORS[:2])

    @classmethod
    def from_reference(cls, ref_mod: Any) -> Any:
        """Pack the weights of a reference cell."""
        if not hasattr(ref_mod, "get_quantized_weight_ih"):
            raise InvalidRequest(
                f"{cls.__name__}.from_reference takes a reference cell, which has get_quantized_weight_ih(), "
                f"but got {type(ref_mod).__name__}"
            )
        tensors = {
            "weight_ih": ref_mod.get_quantized_weight_ih(),
            "weight_hh": ref_mod.get_quantized_weight_hh(),
            "bias_ih": ref_mod.bias_ih,
            "bias_hh": ref_mod.bias_hh,
        }
        return cls._made_of(ref_mod, tensors, ref_mod.weight_ih_dtype)

    @classmethod
    def _made_of(cls, mod: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> Self:
        extra = {"nonlinearity": mod.nonlinearity} if hasattr(mod, "nonlinearity") else {}
        if cls not in cls._float_types.values():  # a subclass has a constructor of its own
            cell = cls(mod.input_size, mod.hidden_size, bias=mod.bias, dtype=dtype, **extra)
            cell.set_weight_bias(tensors)
        else:
            cell = cls.holding(CellWeights.named(tensors, ""), mod.hidden_size, mod.bias, dtype, **extra)
        return cell.train(mod.training)

    def check_forward_input(self, input: Tensor) -> None:
        """Refuse input that is not (N, input_size)."""
        if input.size(1) != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.size(1)}, expected {self.input_size}"
            )

    def check_forward_hidden(self, input: Tensor, hx: Tensor, hidden_label: str = "") -> None:
        """Refuse hidden state that is not (N, hidden_size)."""
        if input.size(0) != hx.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{hidden_label} batch size {hx.size(0)}"
            )
        if hx.size(1) != self.hidden_size:
            raise RuntimeError(
                f"hidden{hidden_label} has inconsistent hidden_size: got {hx.size(1)}, "
                f"expected {self.hidden_size}"
            )

    def _batched(self, x: Tensor, like: Tensor) -> Tensor:
        """In float32 and with a batch of one where `like`, the input, has none."""
        if like.dim() == 1:
            return x.to(torch.float32).unsqueeze(0)
        if like.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, or 1 without a batch, got {like.dim()}")
        return x.to(torch.float32)

    def _zeros(self, x: Tensor) -> Tensor:
        return torch.zeros(x.size(0), self.hidden_size, device=x.device)

    def _like(self, y: Tensor, input: Tensor) -> Tensor:
        """With the dtype of the input, and without a batch where it has none."""
        y = y.to(input.dtype)
        return y.squeeze(0) if input.dim() == 1 else y

    def unroll(
        self, steps: list[Tensor], state: list[Tensor], reverse: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run over time: outputs in the order of `steps`, and the last state.

        Steps may be of unequal batch sizes, the longest sequences first, as in a `PackedSequence`: a step
        takes the first rows of the state, and the others wait.
        """
        outputs: list[Tensor] = []
        for t in range(len(steps)):
            x = steps[len(steps) - 1 - t] if reverse else steps[t]
            size = x.size(0)
            stepped = self._step(x, [part[:size] for part in state])
            outputs.append(stepped[0])
            state = [torch.cat([stepped[k], state[k][size:]]) for k in range(len(state))]
        if reverse:
            outputs.reverse()
        return outputs, state

    def _step(self, x: Tensor, state: list[Tensor]) -> list[Tensor]:
        """The next state, hidden first; batched, float32 and checked."""
        raise NotImplementedError

    def _get_name(self) -> str:
        return "DynamicQuantized" + type(self).__name__

    def extra_repr(self) -> str:
        """Sizes, and what differs from the default."""
        text = f"{self.input_size}, {self.hidden_size}"
        if not self.bias:
            text += f", bias={self.bias}"
        nonlinearity = getattr(self, "nonlinearity", "tanh")
        return text if nonlinearity == "tanh" else f"{text}, nonlinearity={nonlinearity}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._packed_names:
            destination[prefix + name] = getattr(self, name)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        explain_other_stage(self, self._packed_names, state_dict, prefix, error_msgs)
        loaded = {name: take(state_dict, prefix + name, missing_keys) for name in self._packed_names}
        here = {name: packed for name, packed in loaded.items() if packed is not None}
        fitting = [self._fits(prefix, *one, error_msgs) for one in here.items()]
        if len(here) == len(loaded) and all(fitting):
            self.weight_dtype = packed_dtype(loaded["_packed_weight_ih"])
            for name, packed in loaded.items():
                setattr(self, name, packed)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _fits(self, prefix: str, name: str, packed: Any, error_msgs: list[str]) -> bool:
        got, present = (unpack_weight_bias(one)[0].shape for one in (packed, getattr(self, name)))
        return same_shape(prefix + name, got, present, error_msgs)
