"""Bias correction: shift each bias by the mean error that quantizing weights and activations brought.

With e_c the mean over data and positions of quantized minus float output of channel c, b_c <- b_c - e_c.
Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), the
empirical variant. The names are those of torch.ao.quantization._correct_bias.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quantization.engine.tree import walk
from quantization.errors import InvalidRequest, at, notify
from quantization.loggers import ShadowLogger, dequantized, first
from quantization.nn import quantized

_supported_modules: set[Any] = {nn.Linear, nn.Conv2d}
_supported_modules_quantized: set[Any] = {quantized.Linear, quantized.Conv2d}


def bias_correction(
    float_model: nn.Module,
    quantized_model: nn.Module,
    img_data: Iterable[Any],
    target_modules: Collection[Any] = frozenset(_supported_modules_quantized),
    neval_batches: int | None = None,
) -> None:
    """Correct the biases of `quantized_model` in place, one layer after the other, and change nothing else.

    Each layer runs beside the float one on the inputs that it gets in the quantized model, whose earlier
    layers are corrected already; that takes one pass over the data per layer. Layers without a bias stay.

    Args:
        float_model: the model that was quantized, with the same module names.
        img_data: batches `(input, ...)`, of which the first entry is the model's input.
        target_modules: the exact types of quantized layers to correct.
        neval_batches: use only so many batches.

    Raises:
        InvalidRequest: no data. If anything fails while a layer runs, biases are as before.

    >>> model = nn.Sequential(QuantStub(), nn.Linear(4, 2), DeQuantStub()).eval()
    >>> data = [(torch.randn(8, 4), None)]
    >>> model.qconfig = get_default_qconfig()
    >>> quantized = quantize(model, default_eval_fn, [data])
    >>> bias_correction(model, quantized, data)
    >>> type(quantized[1]).__name__
    'Linear'
    """
    batches = list(itertools.islice(img_data, neval_batches))
    if not batches:
        raise InvalidRequest("bias_correction got no data: pass an iterable of (input, target) batches")
    targets = list(_targets(float_model, quantized_model, target_modules))
    if not targets:
        names = ", ".join(sorted(t.__name__ for t in target_modules))
        notify(
            f"bias_correction found no layer with a bias that is a quantized {names} and has a float layer "
            "of the same name: pass the float model, the converted one, and the types to correct",
            strict=False,
        )
    before = [(module, *module._weight_bias()) for _, _, module in targets]
    try:
        with torch.no_grad():
            for name, float_module, module in targets:
                with at(name, "correcting the bias of"):
                    _correct(quantized_model, float_module, module, batches)
    except BaseException:
        for module, weight, bias in before:
            module.set_weight_bias(weight, bias)
        raise


def _targets(
    float_model: nn.Module, quantized_model: nn.Module, types: Collection[Any]
) -> Iterator[tuple[str, nn.Module, Any]]:
    floats = {site.path: site.module for site in walk(float_model)}
    for site in walk(quantized_model):
        module: Any = site.module
        if type(module) in types and site.path in floats and module._weight_bias()[1] is not None:
            yield site.path, floats[site.path], module


def _correct(model: nn.Module, float_module: nn.Module, module: Any, batches: Iterable[Any]) -> None:
    error = _MeanError(float_module, channels=-1 if isinstance(float_module, nn.Linear) else 1)
    handle = module.register_forward_hook(error)
    try:
        for batch in batches:
            model(batch[0])
    finally:
        handle.remove()
    if error.count:
        weight, bias = module._weight_bias()
        module.set_weight_bias(weight, (bias - error.mean()).detach())


class _MeanError:
    """A forward hook that sums up, for each channel, how far the output is from the float module's."""

    def __init__(self, float_module: nn.Module, channels: int) -> None:
        self.float_module = float_module
        self.channels = channels
        self.total: Tensor | float = 0.0
        self.count = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        error = dequantized(output) - self.float_module(*map(dequantized, args))
        error = error.movedim(self.channels, 0).flatten(1).double()
        self.total = self.total + error.sum(1)
        self.count += error.shape[1]

    def mean(self) -> Tensor:
        return (torch.as_tensor(self.total) / self.count).float()


class MeanShadowLogger(ShadowLogger):
    """Averages the outputs of a quantized and of a float module over batches of one shape.

    >>> logger = MeanShadowLogger()
    >>> for value in (1.0, 3.0):
    ...     logger(torch.tensor([value]), torch.tensor([0.0]))
    >>> logger.stats
    {'float': tensor([0.]), 'quantized': tensor([2.])}
    """

    def __init__(self) -> None:
        super().__init__()
        self.clear()

    def forward(self, x: Any, y: Any) -> None:
        """Add the quantized output `x` and the float one `y`, and renew the means in `stats`."""
        x, y = dequantized(first(x)).detach(), dequantized(first(y)).detach()
        self.quant_sum = x if self.quant_sum is None else self.quant_sum + x
        self.float_sum = y if self.float_sum is None else self.float_sum + y
        self.count += 1
        self.stats.update(float=self.float_sum / self.count, quantized=self.quant_sum / self.count)

    def clear(self) -> None:
        """Forget everything."""
        self.stats.update(float=None, quantized=None)
        self.count = 0
        self.float_sum: Any = None
        self.quant_sum: Any = None


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule at a dotted name.

    >>> get_module(nn.Sequential(nn.ReLU()), "0")
    ReLU()
    """
    return dict(model.named_modules())[name]


def parent_child_names(name: str) -> tuple[str, str]:
    """A dotted name split into that of the parent ('' for the root) and the rest.

    >>> parent_child_names("a.b.c"), parent_child_names("a")
    (('a.b', 'c'), ('', 'a'))
    """
    parent, _, child = name.rpartition(".")
    return parent, child


def get_param(module: nn.Module, attr: str) -> Any:
    """The parameter of a float or quantized module, where it may be a method; None if there is none.

    >>> get_param(nn.Linear(4, 2), "weight").shape
    torch.Size([2, 4])
    """
    found = getattr(module, attr, None)
    return found() if callable(found) else found
