"""From an observed composite to a quantized one; `nn/quantized.py` says what its parts become."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantization.engine.observe import drop_observer
from quantization.engine.swap import swap_module
from quantization.engine.tree import rewrite
from quantization.errors import Unsupported, notify
from quantization.nn.quantizable.parts import require_type


class Converted(nn.Module):
    """The quantized form of a composite: `_PARTS` says what becomes of its parts."""

    _FLOAT_MODULE: ClassVar[type[nn.Module]]
    _KIND: ClassVar[str]
    _PARTS: ClassVar[Mapping[type[nn.Module], Any]] = {}

    @classmethod
    def from_float(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise: ranges are missing; the way leads over the observed composite."""
        raise Unsupported(
            f"It looks like you are trying to convert a non-observed {cls._KIND} module. Please, see the "
            f"examples on quantizable {cls._KIND}s: prepare() the model, run it on data, and convert() that"
        )

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """Make the quantized module of a calibrated composite, which stays as it is."""
        require_type(other, cls._FLOAT_MODULE, f"quantized {cls._KIND}", "from_observed")
        new = copy.deepcopy(other)
        for hooks in (new._forward_hooks, new._forward_pre_hooks):
            hooks.clear()  # they are the caller's to carry over
        rewrite(new, lambda site: swap_module(site.module, cls._PARTS), whole=lambda site: False)
        for module in new.modules():
            vars(module).pop("qconfig", None)
            drop_observer(module)
        new.__class__ = cls
        return new

    def _get_name(self) -> str:
        return "Quantized" + type(self).__name__


class ConvertedAttention(Converted):
    """What is particular to attention: the joint projections go, and two biases are tensors of their own."""

    if TYPE_CHECKING:
        bias_k: Tensor | None
        bias_v: Tensor | None

    @classmethod
    def from_observed(cls, other: nn.Module) -> Any:
        """Make the quantized module of a calibrated composite, which stays as it is."""
        new = super().from_observed(other)
        # Separate projections (`kdim`, `vdim`) stay beside the quantized ones, as in torch.ao's checkpoints.
        for name in ("in_proj_weight", "in_proj_bias"):
            new._parameters[name] = None
        for name in ("bias_k", "bias_v"):
            value = new._parameters.pop(name, None)
            if value is not None:
                new.register_buffer(name, _quantized(value.detach()))
        return new

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what torch.ao pickled, too: there the two biases are attributes, the projections gone."""
        super().__setstate__(state)
        for name in ("in_proj_weight", "in_proj_bias"):
            self._parameters.setdefault(name, None)
        for name in ("bias_k", "bias_v"):
            if isinstance(vars(self).get(name), Tensor):
                self.register_buffer(name, vars(self).pop(name))

    # Version 1. torch.ao does not save `bias_k` and `bias_v`: where missing, those of the module stay.
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        kept = [key for key in missing if key in (prefix + "bias_k", prefix + "bias_v")]
        missing_keys += [key for key in missing if key not in kept]
        if kept:
            notify(
                f"the checkpoint lacks {kept}, as those of torch.ao do: the module keeps the values it has. "
                "They are right if it was converted from the model that the checkpoint is of",
                strict=False,
                stacklevel=5,
            )


def _quantized(value: Tensor) -> Tensor:
    """The tensor as quint8, with the scale that its own range asks for."""
    scale, zero_point = torch._choose_qparams_per_tensor(value, reduce_range=False)
    return torch.quantize_per_tensor(value, scale, zero_point, torch.quint8)
