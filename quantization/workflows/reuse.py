"""Modules that run more than once in a forward pass, and so share one range between places that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from observers.calls import calls_of
from quantization.engine.observe import is_observed
from quantization.engine.tree import Site, walk
from quantization.markers import Composite, FusedModule, ObserverSlot


def runs_per_forward(model: nn.Module) -> dict[str, int]:
    """The dotted names of observed modules that ran several times per forward pass, with how often.

    How often the model itself ran is what most of its observers say, the smaller number in a tie: there is no
    hook on the root to ask. The insides of a `Composite`, which steps through time, are left out.

    >>> runs_per_forward(nn.Sequential(nn.Linear(2, 2)))
    {}
    """
    calls = {site.path: _calls(site.module) for site in _observed_sites(model)}
    frequency = Counter(count for count in calls.values() if count)
    if not frequency:
        return {}
    passes = min(frequency, key=lambda count: (-frequency[count], count))
    return {path: count // passes for path, count in calls.items() if count > passes and count % passes == 0}


def shared_ranges(model: nn.Module) -> str | None:
    """Which functional and fused modules of a prepared `model` run more than once per pass, in words."""
    kinds = (ObserverSlot, FusedModule)
    times = runs_per_forward(model)
    found = [path for path in times if isinstance(model.get_submodule(path), kinds)]
    if not found:
        return None
    named = ", ".join(f"{path!r} ({times[path]} times)" for path in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return (
        f"these modules run more than once per forward pass: {named}{more}. All their results share one "
        "scale and zero point, which costs accuracy where ranges differ: use an instance of its own "
        "in each place"
    )


def _observed_sites(model: nn.Module) -> Iterator[Site]:
    for site in walk(model, whole=_is_composite):
        if is_observed(site.module) and not _is_composite(site):
            yield site


def _is_composite(site: Site) -> bool:
    return isinstance(site.module, Composite)


def _calls(module: Any) -> int:
    return calls_of(module.activation_post_process)
