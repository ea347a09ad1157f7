"""Dynamic quantization: float input and output; the input's range is found anew in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from observers import PlaceholderObserver
from observers.dtypes import is_per_channel
from quantization.backends import native_linear
from quantization.backends.native_linear import PER_ROW, REDUCE_RANGE
from quantization.backends.ops import PackedOps
from quantization.errors import QuantizationError
from quantization.nn.calibrated import calibrated_weight, unwrapped
from quantization.nn.modes.weighted import WeightedQuantizedModule
from quantization.nn.static_cell import expect_size
from quantization.qconfig_binding import sample
from quantization.qconfig_engines import has_vnni


class Dynamic(WeightedQuantizedModule):
    """How a dynamically quantized layer comes out of a float, QAT or reference module."""

    def _get_name(self) -> str:
        return "DynamicQuantized" + type(self).__name__

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Self:
        """Quantize the weight of a float, fused or QAT module; the source stays as it is.

        The observer is a new `qconfig.weight()`; a qconfig of None stands for the default one.
        """
        cls._check_source(mod)
        found = calibrated_weight(mod)
        geometry = cls._geometry_of(mod, found.geometry)
        return cls._quantized(found.weight, found.bias, found.weight_observer, geometry)

    @classmethod
    def planned(
        cls, mod: nn.Module, _use_precomputed_fake_quant: bool, **attributes: Any
    ) -> Callable[[], Self] | None:
        """`from_float` in two steps, the checks now and the rest when called; None: only in one."""
        sliver = cls.family.sliver
        if sliver is None:
            return None
        cls._check_source(mod)
        found = calibrated_weight(mod)
        return cls._planned(found, cls._geometry_of(mod, found.geometry), sliver, **attributes)

    @classmethod
    def from_reference(cls, ref: nn.Module) -> Self:
        """Pack the weight of a reference module, or of the one that a fused reference module starts with."""
        return cls._from_reference(ref)


def expect_float(x: Tensor, who: str) -> None:
    """Refuse a quantized tensor, which a dynamic layer would have to take apart first."""
    if x.is_quantized:
        raise QuantizationError(
            f"Input to the dynamic '{who}' must be float, but it is quantized: put a DeQuantStub before it"
        )


def input_mode_of(mod: nn.Module) -> int:
    """How the layer made of `mod` quantizes its input, as its qconfig says: bits of `native_linear`.

    All eight bits are used where the CPU has VNNI; others would overflow on them.
    """
    qconfig = getattr(unwrapped(mod), "qconfig", None) or getattr(mod, "qconfig", None)
    activation = None if qconfig is None or qconfig.activation is None else sample(qconfig.activation)
    if not isinstance(activation, PlaceholderObserver):
        return REDUCE_RANGE
    bits = REDUCE_RANGE if activation.reduce_range or not has_vnni() else 0
    return bits | (PER_ROW if is_per_channel(activation.qscheme) else 0)


def _natively(layer: Any, x: Tensor) -> Tensor | None:
    """The layer by the compiled kernel, None where that cannot be."""
    native = layer._for_kernel()
    if native is None:
        return None
    y = native_linear.run(
        native, x, layer.input_mode | layer._native_flags, layer.in_features, layer.out_features
    )
    return y if y is None or x.dtype == torch.float32 else y.to(x.dtype)


def _suit(layer: Any, rows: Tensor) -> None:
    """Let the packed weight follow the number of rows; not where a graph is being recorded."""
    if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        layer._packed_params.suit(rows.numel() // max(layer.in_features, 1))


def dynamic_linear_forward(fp16: PackedOps) -> Any:
    """A builder for `forward(x)` of shape (*, in_features) and any float dtype, which the output shares."""

    def build(int8: PackedOps) -> Any:
        run, run_fp16 = int8.run, fp16.run

        def forward(self: Any, x: Tensor) -> Tensor:
            if not torch.jit.is_scripting():
                done = _natively(self, x)
                if done is not None:
                    return done
            expect_float(x, self._kind)
            expect_size(x, -1, self.in_features, self._kind)
            rows = (x.unsqueeze(0) if x.dim() == 1 else x).to(torch.float32)
            if not torch.jit.is_scripting():
                _suit(self, rows)
            packed = self._packed_params._packed_params
            if self._packed_params.dtype == torch.qint8:
                reduce_range = self.input_mode & 1 != 0  # REDUCE_RANGE; TorchScript reads no globals
                if self.input_mode & 2 != 0 and rows.numel() > 0:  # PER_ROW: alone, a row has its own range
                    flat = rows.reshape(-1, self.in_features)
                    each = [run(flat[i : i + 1], packed, reduce_range) for i in range(flat.size(0))]
                    shape = list(rows.shape)
                    shape[-1] = self.out_features
                    y = torch.cat(each).reshape(shape)
                else:
                    y = run(rows, packed, reduce_range)
            else:
                y = run_fp16(rows, packed)
            y = y.to(x.dtype)
            return y.squeeze(0) if x.dim() == 1 else y

        return forward

    return build


def dynamic_conv_forward(ops: PackedOps) -> Any:
    """`forward(input, reduce_range=True)` of shape (N, C, ...) or (C, ...) and any float dtype."""
    run = ops.run

    def forward(self: Any, input: Tensor, reduce_range: bool = True) -> Tensor:
        expect_float(input, self._kind)
        x = self._batched(input).to(torch.float32)
        expect_size(x, 1, self.in_channels, self._kind)
        y = run(x, self._packed_params, reduce_range).to(input.dtype)
        return y if x.dim() == input.dim() else y.squeeze(0)

    return forward
