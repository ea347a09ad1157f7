"""Where accuracy went: the error of each quantized layer, in numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from quantization.engine.swap import FLOAT_TYPE
from quantization.engine.tree import walk
from quantization.errors import InvalidRequest
from quantization.markers import NotObserved, ObserverSlot


def compute_sqnr(x: Tensor, y: Tensor) -> Tensor:
    """The signal-to-quantization-noise ratio of `y` as an approximation of `x`, in decibels, a 0-dim tensor.

    20 * log10(|x| / |x - y|); every 6 dB are one bit. Infinite if the two are equal.

    >>> round(compute_sqnr(torch.tensor([1.0, 1.0]), torch.tensor([1.1, 0.9])).item(), 3)
    20.0
    """
    x, y = _plain(x), _plain(y)
    return 20 * torch.log10(torch.linalg.vector_norm(x) / torch.linalg.vector_norm(x - y))


def compute_normalized_l2_error(x: Tensor, y: Tensor) -> Tensor:
    """The error of `y` relative to `x`, |x - y| / |x|, a 0-dim tensor.

    >>> round(compute_normalized_l2_error(torch.tensor([1.0, 1.0]), torch.tensor([1.1, 0.9])).item(), 3)
    0.1
    """
    x, y = _plain(x), _plain(y)
    return torch.linalg.vector_norm(x - y) / torch.linalg.vector_norm(x)


def compute_cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """The cosine of the angle between `x` and `y` as vectors, a 0-dim tensor.

    >>> compute_cosine_similarity(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])).item()
    1.0
    """
    return torch.nn.functional.cosine_similarity(_plain(x).flatten(), _plain(y).flatten(), dim=0)


def _plain(x: Tensor) -> Tensor:
    return (x.dequantize() if x.is_quantized else x).detach().float()


@dataclass(frozen=True)
class LayerError:
    """What quantization did to one layer, in decibels of SQNR: higher is better, every 6 dB are one bit.

    `own` compares the layer with the float one on the same inputs, those it gets in the quantized model;
    `output` compares both models at this place, so it holds the errors of earlier layers too; `weight`
    compares the weights (nan without any).
    """

    name: str
    kind: str
    weight: float
    own: float
    output: float


class Comparison:
    """One `LayerError` per quantized layer, in `rows`, in the order of the model; prints as a table."""

    def __init__(self, rows: list[LayerError]) -> None:
        self.rows = rows

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries, ready for json or a data frame."""
        return [asdict(row) for row in self.rows]

    def worst(self, count: int = 5) -> list[str]:
        """The names of the layers that lose most by themselves: those to leave float first."""
        return [row.name for row in sorted(self.rows, key=lambda row: row.own)[:count]]

    def __str__(self) -> str:
        lines = [[field.name for field in fields(LayerError)]]
        lines += [[r.name, r.kind, *(f"{v:.1f} dB" for v in (r.weight, r.own, r.output))] for r in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    __repr__ = __str__


def compare(float_model: nn.Module, quantized_model: nn.Module, data: Iterable[Any]) -> Comparison:
    """Measure every quantized layer against its float one; both models stay as they are.

    Functional modules (`FloatFunctional`) are not measured, for they have no forward.

    Args:
        float_model: the model that was quantized, fused if it was fused before, in evaluation mode.
        quantized_model: what `convert` or `quantize_dynamic` made of it.
        data: batches; each is an input, or a tuple of all arguments of `forward`.

    Raises:
        InvalidRequest: no data, or no quantized layer has a float one of the same name and type.

    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> table = compare(model, quantize_dynamic(model), [torch.randn(4, 8)])
    >>> [(row.name, row.kind, row.own > 20) for row in table.rows]
    [('0', 'DynamicQuantizedLinear', True), ('2', 'DynamicQuantizedLinear', True)]
    """
    pairs = _pairs(float_model, quantized_model)
    measures = {name: _Measure() for name in pairs}
    batches = 0
    with torch.no_grad():
        for batch in data:
            arguments = batch if isinstance(batch, (tuple, list)) else (batch,)
            _measure(float_model, quantized_model, pairs, measures, tuple(arguments))
            batches += 1
    if not batches:
        raise InvalidRequest("compare got no data: pass an iterable of batches, such as [x]")
    rows = [
        LayerError(name, module._get_name(), _weight_sqnr(float_module, module), *measures[name].sqnrs())
        for name, (float_module, module) in pairs.items()
    ]
    return Comparison(rows)


Pairs = dict[str, tuple[nn.Module, nn.Module]]


def _pairs(float_model: nn.Module, quantized_model: nn.Module) -> Pairs:
    """Quantized leaves with the float module that they were made of, by name."""
    floats = {site.path: site.module for site in walk(float_model)}
    pairs: Pairs = {}
    for site in walk(quantized_model):
        counterpart = floats.get(site.path)
        origin = getattr(site.module, FLOAT_TYPE, None)
        # Functional modules have no forward, and where quantization ends there is no error.
        skipped = isinstance(counterpart, (NotObserved, ObserverSlot))
        if counterpart is not None and origin == type(counterpart).__name__ and not skipped:
            pairs[site.path] = (counterpart, site.module)
    if not pairs:
        raise InvalidRequest(
            "compare found no layer to compare: no quantized module has a float one of the same name and of "
            "the type it was made of. Pass the float model as it was before prepare (after fuse_modules, if "
            "that was called), then the converted one"
        )
    return pairs


class _Measure:
    """Sums of squares over batches: of the signal and of the error, for both comparisons."""

    def __init__(self) -> None:
        self.sums = {"own": [0.0, 0.0], "output": [0.0, 0.0]}

    def add(self, which: str, x: Any, y: Any) -> None:
        x, y = _plain(_first(x)).double(), _plain(_first(y)).double()
        self.sums[which][0] += float(x.square().sum())
        self.sums[which][1] += float((x - y).square().sum())

    def sqnrs(self) -> tuple[float, float]:
        own, output = (_decibels(*sums) for sums in self.sums.values())
        return own, output


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf if signal else math.nan
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _measure(
    float_model: nn.Module,
    quantized_model: nn.Module,
    pairs: Pairs,
    measures: dict[str, _Measure],
    arguments: tuple[Any, ...],
) -> None:
    """Run one batch through both models."""
    outputs: dict[str, list[Any]] = {name: [] for name in pairs}

    def remember(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: outputs[name].append(_copied(output))

    with _hooked({name: float_module for name, (float_module, _) in pairs.items()}, remember):
        float_model(*arguments)
    waiting = {name: iter(seen) for name, seen in outputs.items()}

    def judge(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            expected = next(waiting[name], None)
            if expected is not None:
                measures[name].add("output", expected, output)
            floats = {key: _floats(value) for key, value in kwargs.items()}
            measures[name].add("own", pairs[name][0](*map(_floats, args), **floats), output)

        return hook

    with _hooked({name: module for name, (_, module) in pairs.items()}, judge):
        quantized_model(*arguments)


@contextlib.contextmanager
def _hooked(modules: dict[str, nn.Module], make: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    handles = [module.register_forward_hook(make(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(value: Any) -> Any:
    return _first(value[0]) if isinstance(value, (tuple, list)) else value


def _copied(value: Any) -> Any:
    # A later operation may write into the output.
    return _first(value).detach().clone()


def _floats(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_floats, value))
    return value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value


def _weight_sqnr(float_module: Any, module: Any) -> float:
    """Of one weight; recurrent layers have several, and functional modules none."""
    inner = float_module[0] if isinstance(float_module, nn.Sequential) else float_module
    expected, weight = getattr(inner, "weight", None), getattr(module, "weight", None)
    weight = weight() if callable(weight) else weight
    if not isinstance(expected, Tensor) or not isinstance(weight, Tensor) or weight.shape != expected.shape:
        return math.nan
    return float(compute_sqnr(expected, weight))
