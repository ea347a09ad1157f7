"""The hooks of `torch.nn.utils.weight_norm` and `spectral_norm`, which compute a weight before each call.

They belong to the float layer and not to the user. `torch.nn.utils.parametrizations` has their successors,
which need no hook.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from quantization.engine.observe import hooks_of
from quantization.errors import InvalidRequest


def computes_weight(hook: Any) -> bool:
    """Whether a forward pre-hook is one of the two."""
    return isinstance(hook, (WeightNorm, SpectralNorm))


def require_plain_weight(module: nn.Module, doing: str) -> None:
    """Raise an `InvalidRequest` that names the cure if a hook computes the module's weight."""
    hooks, _ = hooks_of(module)
    found = next((hook for hook in hooks.values() if computes_weight(hook)), None)
    if found is None:
        return
    norm = "weight_norm" if isinstance(found, WeightNorm) else "spectral_norm"
    raise InvalidRequest(
        f"{doing} {type(module).__name__} needs a weight that is a parameter, but a hook of "
        f"torch.nn.utils.{norm} computes it before each call: call torch.nn.utils.remove_{norm} first, or "
        f"use torch.nn.utils.parametrizations.{norm} instead"
    )
