"""What a module says about itself to the engine, which knows no concrete layer.

`FusedModule`   several float modules that quantize as one; observed as a whole, never descended into
`ObserverSlot`  carries its own observer as `activation_post_process` and calls it itself (no hook)
`NotObserved`   never gets an observer, whatever its qconfig
`Composite`     a custom module whose children the engine instruments and converts
"""

from __future__ import annotations

from torch import nn


class FusedModule(nn.Sequential):
    """Base of every fused float or QAT module, e.g. `ConvBn2d`; torch.ao's `_FusedModule`."""


class ObserverSlot:
    """The module owns an `activation_post_process` child and runs it in its own methods.

    `only_scalars` says of an instance that it adds or multiplies numbers alone, for which no range is needed.
    """

    only_scalars = False


class NotObserved:
    """The engine leaves this module without an observer."""


class Composite:
    """The engine descends into the children instead of observing the output."""
