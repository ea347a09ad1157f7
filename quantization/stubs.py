"""Markers for where a float model enters and leaves quantized arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from quantization.markers import NotObserved

if TYPE_CHECKING:
    from quantization.qconfig import QConfig


class QuantStub(nn.Module):
    """Identity that `prepare` gives an observer and `convert` replaces by `Quantize`.

    A `qconfig` given here overrides the one the stub would inherit.

    >>> import torch
    >>> QuantStub()(torch.tensor([1.5]))
    tensor([1.5000])
    """

    def __init__(self, qconfig: QConfig | None = None) -> None:
        super().__init__()
        if qconfig:
            self.qconfig = qconfig

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        if prefix + "scale" in state_dict:
            done = "is prepared" if "activation_post_process" in self._modules else "is float"
            error_msgs.append(
                f"'{prefix[:-1] or 'the model'}' is a QuantStub here, but the checkpoint is of a converted "
                f"model, and this one {done}: call prepare(model), convert(model) before load_state_dict. "
                "Any input will do to calibrate; the numbers come from the checkpoint. quantization.save and "
                "quantization.load need no such steps."
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class DeQuantStub(nn.Module, NotObserved):
    """Identity that `convert` replaces by `DeQuantize`; it never gets an observer.

    It is replaced only if it has a `qconfig`, its own or an inherited one.

    >>> import torch
    >>> DeQuantStub()(torch.tensor([1.5]))
    tensor([1.5000])
    """

    def __init__(self, qconfig: QConfig | None = None) -> None:
        super().__init__()
        if qconfig:
            self.qconfig = qconfig

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x


# No class annotations at run time: torch.jit.script would then insist that `quant` stays a QuantStub, and
# refuse the converted wrapper, in which it is a Quantize.
class QuantWrapper(nn.Module):
    """A module between a `QuantStub` and a `DeQuantStub`, so that float goes in and float comes out.

    Both stubs take the module's `qconfig`, and the wrapper starts in the module's training mode.

    >>> import torch
    >>> QuantWrapper(nn.ReLU())(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    if TYPE_CHECKING:
        quant: nn.Module
        dequant: nn.Module
        module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"QuantWrapper wraps a torch.nn.Module, got {type(module).__name__}")
        qconfig = getattr(module, "qconfig", None)
        self.add_module("quant", QuantStub(qconfig))
        self.add_module("dequant", DeQuantStub(qconfig))
        self.add_module("module", module)
        self.train(module.training)

    def forward(self, X: Tensor) -> Tensor:
        """Quantize, run the module, dequantize."""
        return self.dequant(self.module(self.quant(X)))
