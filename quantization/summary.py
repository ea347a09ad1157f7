"""A report of every module: what it was, what it became, or why it stayed float."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from observers.state import has_seen_data
from quantization.engine.observe import is_observed
from quantization.engine.swap import AS_IS, FLOAT_TYPE, OUTPUT_KIND, STAYED_FLOAT, kind_text
from quantization.engine.tree import Site, is_leaf, walk
from quantization.markers import FusedModule
from quantization.nn.modes.dynamic import Dynamic
from quantization.nn.recurrent.base import RNNBase
from quantization.nn.recurrent.cell_base import RNNCellBase
from quantization.workflows.reuse import runs_per_forward


@dataclass(frozen=True)
class Row:
    """One module of a summary; every field is a plain string.

    `name` is dotted; `float_type` what the module was, `now` what it is; `state` is one of "quantized",
    "as is" (torch's own module, which takes quantized tensors), "prepared" and "float"; `weight` and
    `activation` give dtype and qscheme or qparams ('' where there is none); `note` says why a module stayed
    float, or what its observer still lacks.
    """

    name: str
    float_type: str
    now: str
    state: str
    weight: str
    activation: str
    note: str


class Summary:
    """Rows of a model; prints as a table, shows as one in a notebook, and is plain data in `rows`."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def to_dicts(self) -> list[dict[str, str]]:
        """The rows as dictionaries, ready for json or a data frame."""
        return [asdict(row) for row in self.rows]

    def counts(self) -> dict[str, int]:
        """How many modules are in each state: quantized, as is, prepared, float."""
        states = [row.state for row in self.rows]
        return {state: states.count(state) for state in ("quantized", "as is", "prepared", "float")}

    def __str__(self) -> str:
        table = [_HEADER, *([*asdict(row).values()] for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in table]
        rule = "  ".join("-" * w for w in widths)
        totals = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:], totals or "no modules"))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(line([*asdict(row).values()], "td") for row in self.rows)
        return f"<table><thead>{line(_HEADER, 'th')}</thead><tbody>{body}</tbody></table>"


_HEADER = [f.name.replace("_", " ") for f in fields(Row)]


def summary(model: nn.Module) -> Summary:
    """What each module of `model` is: float type, what it became, dtypes and qschemes, or why it is float.

    Works on float, prepared, QAT and converted models. Containers have no row, nor have the insides of fused,
    observed and quantized modules; a module registered under two names has two.

    >>> model = quantize_dynamic(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), {nn.Linear})
    >>> [(row.name, row.now, row.state) for row in summary(model).rows]
    [('0', 'DynamicQuantizedLinear', 'quantized'), ('1', 'ReLU', 'float')]
    """
    rows: list[Row] = []
    runs = runs_per_forward(model)
    for site in walk(model, every_name=True, whole=_has_row):
        if _has_row(site):
            rows.append(_row(site, runs.get(site.path, 1)))
    return Summary(rows)


def _has_row(site: Site) -> bool:
    module = site.module
    known = hasattr(module, FLOAT_TYPE) or hasattr(module, STAYED_FLOAT) or is_observed(module)
    empty_container = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return known or isinstance(module, FusedModule) or (is_leaf(module) and not empty_container)


def _row(site: Site, runs: int) -> Row:
    module = site.module
    weight = _weight(module)
    return Row(
        name=site.path or "<root>",
        float_type=getattr(module, FLOAT_TYPE, type(module).__name__),
        now=module._get_name(),
        state=_state(module, weight),
        weight=weight,
        activation=_activation(module, weight),
        note=_note(module, runs),
    )


def _state(module: nn.Module, weight: str) -> str:
    if is_observed(module) or "weight_fake_quant" in module._modules:
        return "prepared"
    if weight or hasattr(module, FLOAT_TYPE):
        return "quantized"
    return "as is" if getattr(module, STAYED_FLOAT, "") == AS_IS else "float"


def _weight(module: nn.Module) -> str:
    """dtype and qscheme of the weight as stored, or as its fake quantizer will make it."""
    fake_quantizer = module._modules.get("weight_fake_quant")
    if fake_quantizer is not None:
        return kind_text(fake_quantizer.dtype, getattr(fake_quantizer, "qscheme", None))
    if hasattr(module, "weight_qscheme"):
        return kind_text(module.weight_dtype, module.weight_qscheme)
    packed = module._modules.get("_packed_params")
    weight = _one_weight(module)
    if isinstance(weight, torch.Tensor) and weight.is_quantized:
        return kind_text(weight.dtype, weight.qscheme())
    if isinstance(module, (RNNBase, RNNCellBase)):
        return kind_text(torch.float16, None)
    return kind_text(packed.dtype, None) if packed is not None else ""


def _one_weight(module: Any) -> Any:
    """The weight, or of a recurrent module, whose weights are all alike, the first."""
    if isinstance(module, (RNNBase, RNNCellBase)):
        return next(iter(module.get_weight().values()))
    weight = getattr(module, "weight", None)
    return weight() if callable(weight) else weight


def _activation(module: nn.Module, weight: str) -> str:
    """dtype and qscheme that the observer is for; of a converted module, also scale and zero point."""
    observer = module._modules.get("activation_post_process")
    if is_observed(module) and observer is not None:
        return kind_text(observer.dtype, getattr(observer, "qscheme", None))
    if isinstance(module, (Dynamic, RNNBase, RNNCellBase)):
        return "float" if weight == "float16" else "quantized per call"
    scale, zero_point = getattr(module, "scale", None), getattr(module, "zero_point", None)
    if not hasattr(module, FLOAT_TYPE) or scale is None or zero_point is None:
        return ""
    kind = getattr(module, OUTPUT_KIND, "")
    return f"{kind} scale={float(scale):.4g} zero_point={int(zero_point)}".lstrip()


def _note(module: nn.Module, runs: int) -> str:
    if runs > 1:
        return f"runs {runs} times per forward pass, with one range for all"
    if is_observed(module) and has_seen_data(module.get_submodule("activation_post_process")) is False:
        return "its observer has seen no data"
    return getattr(module, STAYED_FLOAT, "")
