"""Swapping the modules of a model so that little memory is needed and a failure costs nothing.

Conversion has two phases. The first looks at everything that can be wrong with any module, and swaps those
whose classes cannot tell beforehand: convolutions, composites, and classes of the user's. Until it is over
the model can be put back. The second, which has nothing left to fail on, makes the others one by one, and
each float weight goes when its layer is made: linear and recurrent layers and embeddings, where the memory
is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from quantization.engine.copying import Loan, is_plainly_copied
from quantization.engine.observe import has_qconfig, is_observed
from quantization.engine.swap import PLACE, only_reads, planned_swap, swap_module
from quantization.engine.tree import Site, rewrite, walk
from quantization.errors import at
from quantization.markers import Composite, FusedModule
from quantization.workflows.tables import get_default_custom_config_dict


class Conversion:
    """One conversion of `model`, in place: `begin`, and when nothing else can fail, `finish`.

    Args:
        mapping: from module types to the classes that replace them.
        custom_config: its `observed_to_quantized_custom_module_class` is used; default
            `get_default_custom_config_dict()`.
        use_precomputed_fake_quant: let QAT weights keep the ranges that training ended with.
    """

    def __init__(
        self,
        model: nn.Module,
        mapping: Mapping[Any, Any],
        custom_config: Mapping[str, Any] | None = None,
        use_precomputed_fake_quant: bool = False,
    ) -> None:
        config = get_default_custom_config_dict() if custom_config is None else custom_config
        self._model = model
        self._mapping = mapping
        self._custom: Mapping[Any, Any] = config.get("observed_to_quantized_custom_module_class", {})
        self._use_precomputed = use_precomputed_fake_quant
        # Reference parts do float arithmetic: a fused float module runs with them inside, but a composite
        # that the custom classes list becomes a quantized one, which cannot take them: it is converted whole.
        self._reference = any(getattr(target, "_IS_REFERENCE", False) for target in mapping.values())
        self._pending: dict[int, Callable[[], nn.Module]] = {}

    def reads(self) -> set[int]:
        """The ids of the modules that the conversion leaves nothing of, not even a tensor."""
        found: set[int] = set()
        others: set[int] = set()

        def replaced(site: Site) -> bool:
            listed = site.type not in self._custom and only_reads(self._mapping.get(site.type))
            return listed and has_qconfig(site.module)

        def whole(site: Site) -> bool:
            return replaced(site) or self._whole(site)

        for site in walk(self._model, every_name=True, whole=whole):
            inside = site.module.modules() if whole(site) else [site.module]
            (found if replaced(site) else others).update(map(id, inside))
        return found - others

    def begin(self) -> nn.Module:
        """The first phase, to be run under `restoring`; returns the root, perhaps replaced."""
        needed = self._needed_at_once()

        def swap(site: Site) -> nn.Module:
            with at(site.path, "converting"):
                if site.type not in self._custom and id(site.module) not in needed:
                    make = planned_swap(site.module, self._mapping, self._use_precomputed)
                    if make is not None:
                        self._pending[id(site.module)] = make
                        return site.module
                swapped = swap_module(site.module, self._mapping, self._custom, self._use_precomputed)
            return _placed(swapped, site)

        self._model = rewrite(self._model, swap, self._whole)
        return self._model

    def finish(self) -> nn.Module:
        """The second phase; returns the root, perhaps replaced."""

        def swap(site: Site) -> nn.Module:
            make = self._pending.pop(id(site.module), None)
            return site.module if make is None else _placed(make(), site)

        model, self._model = self._model, nn.Identity()  # which would hold on to a root that is replaced
        return rewrite(model, swap, self.is_pending) if self._pending else model

    def is_pending(self, site: Site) -> bool:
        """Whether the module is going to be swapped in the second phase."""
        return id(site.module) in self._pending

    @property
    def swaps_later(self) -> bool:
        """Whether any module is."""
        return bool(self._pending)

    def _whole(self, site: Site) -> bool:
        if isinstance(site.module, FusedModule):
            is_container = not site.path and site.type not in self._mapping and not is_observed(site.module)
            return not (is_container or self._reference)
        return site.type in self._custom and (self._reference or not isinstance(site.module, Composite))

    def _needed_at_once(self) -> set[int]:
        """The ids of all modules below one that is swapped, whose class may look at what they have become."""
        return {
            id(module)
            for site in walk(self._model, whole=self._whole)
            if has_qconfig(site.module) and (site.type in self._mapping or site.type in self._custom)
            for module in site.module.modules()
            if module is not site.module
        }


def _placed(swapped: nn.Module, site: Site) -> nn.Module:
    if swapped is not site.module:
        setattr(swapped, PLACE, site.path)
    return swapped


def borrowed(model: nn.Module, mapping: Mapping[Any, Any]) -> Loan:
    """A copy of the model; modules that `mapping` may replace share their tensors with the original."""
    return Loan(model, lambda module: only_reads(mapping.get(type(module))) and is_plainly_copied(module))


def convert_modules(
    model: nn.Module,
    mapping: Mapping[Any, Any],
    custom_config: Mapping[str, Any] | None = None,
    use_precomputed_fake_quant: bool = False,
) -> nn.Module:
    """Swap modules in place and keep everything else; returns the root, perhaps replaced."""
    conversion = Conversion(model, mapping, custom_config, use_precomputed_fake_quant)
    conversion.begin()
    return conversion.finish()
