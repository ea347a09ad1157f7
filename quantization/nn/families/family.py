"""The record that describes a kind of weighted layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Geometry = dict[str, Any]
Sliver = Callable[[Tensor, Geometry], tuple[Tensor, Geometry]]


@dataclass(frozen=True)
class Family:
    """A kind of layer: its float types, constructor arguments and weight shape.

    `fields` are constructor arguments that are attributes of the float module too, `weight_shape` maps them
    to the shape of the weight, and `rank` counts the spatial dimensions of the input. `sliver` cuts weight
    and arguments down to a layer that an engine packs in no time, and refuses for the same reasons. The
    arithmetic is not here but in the modes, because TorchScript compiles no method that reads a record.
    """

    float_types: tuple[type[nn.Module], ...]
    fields: tuple[str, ...]
    weight_shape: Callable[[Mapping[str, Any]], tuple[int, ...]]
    rank: int = 0
    sliver: Sliver | None = None

    def geometry(self, module: nn.Module) -> Geometry:
        """Read the constructor arguments off a float, QAT or reference module.

        >>> from quantization.nn.families.linear import LINEAR
        >>> LINEAR.geometry(nn.Linear(2, 3))
        {'in_features': 2, 'out_features': 3}
        """
        return {field: getattr(module, field) for field in self.fields}

    def describes(self, module: nn.Module) -> bool:
        """Whether the module has this family's arguments and a weight of its rank."""
        weight = getattr(module, "weight", None)
        has_fields = all(hasattr(module, field) for field in self.fields)
        return has_fields and isinstance(weight, Tensor) and weight.dim() == self.rank + 2
