"""The reference column for recurrent layers, which hold several weights.

`forward` is that of torch's float layer, run on a stand-in that has the rounded weights in place of the float
ones; so all of its inputs are taken: packed sequences, single samples, projections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from quantization.errors import InvalidRequest, Unsupported
from quantization.nn.modes.reference import hold_qparams, load_qparams, through_codes, to_codes
from quantization.qparams import get_qparam_dict

QParamDicts = dict[str, Any]


class RecurrentReference(nn.Module):
    """A recurrent layer whose weights are rounded to quantized codes; biases stay float.

    The parameters come as one dictionary per weight, under the weight's name. The key `is_decomposed` beside
    them, which torch.ao requires, may be left out.
    """

    _float_type: ClassVar[type[nn.Module]]
    _FIELDS: ClassVar[tuple[str, ...]] = ("input_size", "hidden_size", "bias")

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}(Reference)"

    def _weight_names(self) -> list[str]:
        return [name for name, _ in self.named_parameters(recurse=False) if name.startswith("weight")]

    def _init_weight_qparams_dict(self, weight_qparams_dict: QParamDicts | None, device: Any) -> None:
        """Hold the parameters of every weight, by default those of scale 1; call it last in a constructor."""
        given, names = weight_qparams_dict or {}, self._weight_names()
        if given.get("is_decomposed", False):
            raise Unsupported(f"{self._get_name()} has no decomposed form; leave is_decomposed out")
        if given and not set(names) <= set(given):
            absent = ", ".join(name for name in names if name not in given)
            raise InvalidRequest(
                f"{self._get_name()} needs the parameters of each weight, but {absent} is not given"
            )
        for name in names:
            hold_qparams(self, name, given.get(name), device)
        self.is_decomposed = False

    def _arguments(self, name: str) -> tuple[Any, ...]:
        parts = ("", "_qscheme", "_dtype", "_scale", "_zero_point", "_axis_int")
        return tuple(getattr(self, name + part) for part in parts)

    def _rounded(self, name: str) -> Tensor:
        return through_codes(*self._arguments(name), codes=getattr(self, f"_{name}_codes"))

    def _codes(self, name: str) -> Tensor:
        return to_codes(*self._arguments(name))

    def _with_rounded_weights(self) -> Any:
        """A stand-in that shares everything but the weights; nothing of this module changes."""
        stand_in = object.__new__(type(self))
        rounded = {name: self._rounded(name) for name in self._weight_names()}
        stand_in.__dict__.update(self.__dict__)
        stand_in.__dict__["_parameters"] = {**self._parameters, **rounded}
        return stand_in

    def forward(self, input: Any, hx: Any = None) -> Any:
        """What the float layer computes, with rounded weights."""
        return self._float_type.forward(self._with_rounded_weights(), input, hx)

    @classmethod
    def from_float(cls, mod: nn.Module, weight_qparams_dict: QParamDicts | None = None) -> Any:
        """Make the reference layer, on the float layer's own parameters.

        Without `weight_qparams_dict` the observer of `qconfig.weight` measures each weight.
        """
        if not isinstance(mod, cls._float_type):
            raise InvalidRequest(
                f"reference {cls.__name__} is made from {cls._float_type.__name__}, "
                f"not from {type(mod).__name__}"
            )
        fields = {name: getattr(mod, name) for name in cls._FIELDS}
        new = cls(**fields, device="meta")
        parameters = dict(mod.named_parameters(recurse=False))
        for name, parameter in parameters.items():
            setattr(new, name, parameter)
        if weight_qparams_dict is None:
            weight_qparams_dict = _measured(mod, new._weight_names())
        new._init_weight_qparams_dict(weight_qparams_dict, next(iter(parameters.values())).device)
        return new.train(mod.training)

    # Version 1: the float tensors, and scale, zero point and axis of each weight; no qscheme and no dtype.
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        for name in self._weight_names():
            load_qparams(self, name, state_dict, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _measured(mod: nn.Module, names: list[str]) -> QParamDicts:
    qconfig = getattr(mod, "qconfig", None)
    if qconfig is None or qconfig.weight is None:
        raise InvalidRequest(
            f"{type(mod).__name__} has no qconfig with a weight observer: give it one, or pass "
            "weight_qparams_dict"
        )
    found: QParamDicts = {}
    for name in names:
        weight, observer = getattr(mod, name), qconfig.weight()
        observer.to(weight.device)(weight.detach())
        found[name] = get_qparam_dict(observer)
    return found


class CellReference(RecurrentReference):
    """A recurrent cell: one step, weights `weight_ih` and `weight_hh`."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None,
        weight_qparams_dict: QParamDicts | None = None, **others: Any,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype, **others)
        self._init_weight_qparams_dict(weight_qparams_dict, device)

    def get_weight_ih(self) -> Tensor:
        """The input weight, rounded to its codes, float."""
        return self._rounded("weight_ih")

    def get_weight_hh(self) -> Tensor:
        """The hidden weight, rounded to its codes, float."""
        return self._rounded("weight_hh")

    def get_quantized_weight_ih(self) -> Tensor:
        """The input weight as a quantized tensor."""
        return self._codes("weight_ih")

    def get_quantized_weight_hh(self) -> Tensor:
        """The hidden weight as a quantized tensor."""
        return self._codes("weight_hh")


class LayerReference(RecurrentReference):
    """A recurrent layer over sequences, of several layers and directions."""

    if TYPE_CHECKING:
        _flat_weights_names: list[str]

    _FIELDS = (
        *RecurrentReference._FIELDS,
        "num_layers",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    )

    def __init__(self, *args: Any, weight_qparams_dict: QParamDicts | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._init_weight_qparams_dict(weight_qparams_dict, kwargs.get("device"))

    def _with_rounded_weights(self) -> Any:
        stand_in = super()._with_rounded_weights()
        stand_in.__dict__["_flat_weights"] = [stand_in._parameters[name] for name in self._flat_weights_names]
        return stand_in

    def get_flat_weights(self) -> list[Tensor]:
        """All weights and biases in torch's order, the weights rounded to their codes."""
        return self._with_rounded_weights()._flat_weights

    def get_quantized_weight_bias_dict(self) -> dict[str, Any]:
        """All weights, as quantized tensors, and biases by name."""
        weights = set(self._weight_names())
        return {
            name: self._codes(name) if name in weights else getattr(self, name)
            for name in self._flat_weights_names
        }
