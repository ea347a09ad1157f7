"""What the static modules without a packed weight share: where scale and zero point live, and `from_float`.

A cell names the constructor arguments it takes over from its float module (`_FIELDS`) and adds its `forward`.
Its output parameters are either buffers (`BufferCell`) or plain numbers (`NumberCell`), as in torch.ao.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from quantization.errors import InvalidRequest, QuantizationError
from quantization.nn.placed import Placed
from quantization.qparams import QParams, output_qparams


def expect_quantized(x: Tensor, who: str) -> None:
    """Refuse a plain tensor where only a quantized one can be computed with.

    Modules that call it declare it to `torch.fx.wrap`, so that symbolic tracing records it and goes on.
    """
    if not isinstance(x, Tensor) or not x.is_quantized:
        raise QuantizationError(
            f"Input to '{who}' must be quantized! It is float: put a QuantStub before this module, "
            "or leave the module float by setting its qconfig to None before prepare()"
        )


def expect_size(x: Tensor, dim: int, size: int, who: str) -> None:
    """Refuse an input that is not `size` long in dimension `dim`, before a kernel does in its own words."""
    # Not while tracing, where sizes are tensors and a condition on them draws a warning.
    if torch.jit.is_tracing():
        return
    if x.dim() == 0 or x.size(dim) != size:
        raise QuantizationError(
            f"Input to '{who}' must have size {size} in dimension {dim}, but its shape is {x.shape}: reshape "
            "it, or check that the layer before this one fits"
        )


def expect_kernel_dtype(x: Tensor, who: str) -> None:
    """Refuse codes that the kernels of the selected engine cannot read; not for TorchScript."""
    if x.dtype is torch.quint8:
        return
    engine = torch.backends.quantized.engine
    if x.dtype == torch.qint8 and engine in _SIGNED_INPUT:
        return
    raise QuantizationError(
        f"Input to '{who}' must be torch.quint8 on engine '{engine}', but it is {x.dtype}: use an activation "
        "observer of dtype torch.quint8 in the qconfig of the modules before this one"
    )


# Engines with some kernels for qint8 activations: oneDNN's linear, and QNNPACK's where torch has XNNPACK.
_SIGNED_INPUT = ("onednn", "qnnpack")


def calibrated_output(mod: nn.Module, target: str) -> QParams:
    """The output parameters of a prepared float module that becomes `target`, whose output is quantized."""
    observer = _observer_of(mod)
    source = type(mod).__name__
    if observer is None:
        raise InvalidRequest(
            f"{target}.from_float needs the range of its output: {source} must have activation_post_process "
            "attribute, an observer; prepare() the model and run it on data before convert()"
        )
    if not hasattr(observer, "calculate_qparams") or getattr(observer, "dtype", None) not in _STORED:
        raise InvalidRequest(
            f"{target} has a quantized output, but the activation observer of {source} is a "
            f"{type(observer).__name__} of dtype {getattr(observer, 'dtype', None)}; use one of dtype "
            "torch.quint8, or keep the module float by setting its qconfig to None"
        )
    qparams = QParams.of(observer)
    if qparams.scale.numel() != 1:
        output_qparams(mod)  # says why one scale per channel will not do
    return qparams


def _observer_of(mod: nn.Module) -> Any:
    """The observer of the output; for a module never prepared, a new one, so that scale 1 is assumed.

    `convert` has warned of that by then, as it does for weighted modules, which assume the same.
    """
    observer = getattr(mod, "activation_post_process", None)
    if observer is not None and not isinstance(observer, nn.Identity):
        return observer
    qconfig = getattr(mod, "qconfig", None)
    return None if qconfig is None else qconfig.activation()


_STORED = (torch.quint8, torch.qint8, torch.qint32)


class StaticCell(Placed):
    """A quantized module made from a float one and the parameters of its output."""

    _FIELDS: ClassVar[tuple[str, ...]] = ()
    _QPARAMS: ClassVar[tuple[str, str]] = ("scale", "zero_point")

    def _get_name(self) -> str:
        return "Quantized" + type(self).__name__

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        """Make the quantized module from a calibrated float one; the second argument changes nothing."""
        qparams = calibrated_output(mod, cls.__name__)
        return cls._like(mod, float(qparams.scale), int(qparams.zero_point))

    @classmethod
    def from_reference(cls, mod: nn.Module, scale: float | Tensor, zero_point: int | Tensor) -> Any:
        """Make the quantized module from a float one and given output parameters."""
        return cls._like(mod, float(scale), int(zero_point))

    @classmethod
    def _like(cls, mod: nn.Module, scale: float, zero_point: int) -> Any:
        arguments = taken_over(mod, cls._FIELDS, cls.__name__)
        return cls(**arguments, **dict(zip(cls._QPARAMS, (scale, zero_point), strict=True)))


def taken_over(mod: nn.Module, fields: tuple[str, ...], target: str) -> dict[str, Any]:
    """The named attributes of a float module; a module of another kind, which lacks them, is an error."""
    missing = [name for name in fields if not hasattr(mod, name)]
    if missing:
        raise InvalidRequest(
            f"quantized {target} is made from a float module with {', '.join(fields)}; "
            f"{type(mod).__name__} has no {', '.join(missing)}"
        )
    return {name: getattr(mod, name) for name in fields}


class BufferCell(StaticCell):
    """A cell whose scale and zero point are 0-dim buffers, float32 and int64, saved like any other."""

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are strings
        scale: Tensor
        zero_point: Tensor

    def _add_qparams(self, scale: float, zero_point: int, device: Any = None, dtype: Any = None) -> None:
        """Register the two buffers; call it last, for their place in the state dict."""
        dtype = torch.float32 if dtype is None else dtype
        self.register_buffer("scale", torch.tensor(scale, device=device, dtype=dtype))
        self.register_buffer("zero_point", torch.tensor(zero_point, device=device, dtype=torch.int64))


def save_numbers(module: nn.Module, table: dict[str, torch.dtype], destination: Any, prefix: str) -> None:
    """Put number attributes into a state dict, as 0-dim tensors of the given types."""
    for name, dtype in table.items():
        destination[prefix + name] = torch.tensor(getattr(module, name), dtype=dtype)


def load_numbers(
    module: nn.Module, table: dict[str, torch.dtype], state_dict: Any, prefix: str, errors: list[str]
) -> list[str]:
    """Take number attributes out of a state dict; returns the full keys that were not there."""
    missing: list[str] = []
    for name, dtype in table.items():
        if prefix + name not in state_dict:
            missing.append(prefix + name)
            continue
        value = torch.as_tensor(state_dict.pop(prefix + name))
        if value.numel() == 1:
            setattr(module, name, float(value) if dtype.is_floating_point else int(value))
        else:
            errors.append(f"'{prefix + name}' must hold one number; the checkpoint has {value.numel()}")
    return missing


class NumberCell(StaticCell):
    """A cell whose scale and zero point are plain numbers, kept to full precision in the state dict."""

    def _numbers(self) -> dict[str, torch.dtype]:
        return dict(zip(self._QPARAMS, (torch.float64, torch.int64), strict=True))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_numbers(self, self._numbers(), destination, prefix)

    # Version 1, as torch.ao, whose checkpoints lack these keys: it does not save them. Where they are missing
    # the module keeps the values it was made with, and they are not reported.
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        load_numbers(self, self._numbers(), state_dict, prefix, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
