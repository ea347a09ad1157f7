"""Attach observers to a model: which module gets one is an ordered table of rules.

The first rule that applies to a module decides, and nothing below that module is visited; where none applies
the children are. The order matters:

    skipped      types that never change a range (Dropout)
    observed     already has its observer: preparing twice is harmless
    slot         FloatFunctional calls its own observer, so a hook would run it twice
    fused        one unit: ranges inside it never exist in the quantized model
    unit         types the caller observes as a whole (QAT modules, with their fake quantizers as children)
    fixed range  Sigmoid and its like in training: the range is known and must not be learned
    custom       replaced by its observed class first
    leaf         a childless module of a type that quantizes
    weighted     carries a `weight_fake_quant` and quantizes (AdaRound-style precomputed weights)
"""

# pyright: reportPrivateUsage=false
# nn.Module has no public access to its own children by name and to its hooks.
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from observers import FakeQuantizeBase, ObserverBase
from observers.calls import count_call
from quantization.engine.attributes import carry_attributes
from quantization.engine.propagate import propagate_qconfig_
from quantization.engine.tree import Site, is_leaf, rewrite, single_device
from quantization.errors import InvalidRequest, at
from quantization.markers import Composite, FusedModule, NotObserved, ObserverSlot
from quantization.qconfig import _activation_is_memoryless as is_memoryless


@dataclass(frozen=True)
class Plan:
    """Everything `attach` has to know, as data."""

    leaves: Collection[type] = ()
    units: Collection[type] = ()
    skipped: Collection[type] = ()
    fixed_ranges: Mapping[Any, Callable[[], nn.Module]] = field(default_factory=dict[Any, Any])
    observed_classes: Mapping[type, Any] = field(default_factory=dict[Any, Any])
    unobserved_classes: Collection[type] = ()


@dataclass(frozen=True)
class Rule:
    """What to do (`act`) with a module for which `applies` holds."""

    name: str
    applies: Callable[[Site, Plan], bool]
    act: Callable[[Site, Plan, torch.device | None], nn.Module]


def attach(model: nn.Module, plan: Plan) -> nn.Module:
    """Give every module that the rules choose its observer, in place; returns the root, perhaps replaced.

    Observers land on the one device of the model.

    Raises:
        InvalidRequest: the model is spread over several devices.
    """
    device = single_device(model)

    def swap(site: Site) -> nn.Module:
        rule = rule_for(site, plan)
        if rule is None:
            return site.module
        with at(site.path, "preparing"):
            return rule.act(site, plan, device)

    return rewrite(model, swap, whole=lambda site: rule_for(site, plan) is not None)


def rule_for(site: Site, plan: Plan) -> Rule | None:
    """The first rule that applies, or None: descend."""
    return next((rule for rule in RULES if rule.applies(site, plan)), None)


def is_observed(module: nn.Module) -> bool:
    """Whether the module carries an observer of its output; a fake quantizer's own observer is no such."""
    return is_observer(module._modules.get("activation_post_process")) and not is_observer(module)


def is_observer(module: object) -> bool:
    """Whether the module is an observer or a fake quantizer."""
    return isinstance(module, (ObserverBase, FakeQuantizeBase))


def has_qconfig(module: nn.Module) -> bool:
    """Whether a qconfig applies to the module."""
    return getattr(module, "qconfig", None) is not None


def observer_forward_hook(module: Any, input: Any, output: Any) -> Any:
    """Pass the output of `module` through its observer."""
    count_call(module.activation_post_process)
    return module.activation_post_process(output)


def observer_forward_pre_hook(module: Any, input: tuple[Any, ...]) -> Any:
    """Pass the first input of `module` through its observer, for dynamic quantization-aware training."""
    count_call(module.activation_post_process)
    return (module.activation_post_process(input[0]), *input[1:])


def register_observer_hook(module: nn.Module, pre_hook: bool = False) -> None:
    """Run `module.activation_post_process` before all other hooks of the module."""
    if not hasattr(module, "activation_post_process"):
        raise InvalidRequest(
            "Expect activation_post_process attribute already attached to the module; got "
            f"{type(module).__name__} without one: add_module('activation_post_process', observer) first"
        )
    if pre_hook:
        module.register_forward_pre_hook(observer_forward_pre_hook, prepend=True)
    else:
        module.register_forward_hook(observer_forward_hook, prepend=True)


def drop_observer(module: nn.Module) -> None:
    """Remove the observer of a module and the hooks that run it; an `ObserverSlot` gets an Identity back."""
    if is_observed(module):
        del module.activation_post_process
        if isinstance(module, ObserverSlot):
            module.activation_post_process = nn.Identity()
    drop_observer_hooks(module)


def drop_observer_hooks(module: nn.Module) -> None:
    """Remove the hooks that run the observer, and no other."""
    for hooks in hooks_of(module):
        for key in [k for k, hook in hooks.items() if hook in OBSERVER_HOOKS]:
            hooks.pop(key)


def hooks_of(module: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    """The registries of forward pre-hooks and of forward hooks."""
    return module._forward_pre_hooks, module._forward_hooks


OBSERVER_HOOKS = (observer_forward_hook, observer_forward_pre_hook)


def _new_observer(site: Site, factory: Any, device: torch.device | None) -> nn.Module:
    if not callable(factory):
        raise InvalidRequest(
            f"qconfig.activation must make an observer when called, got {factory!r}; "
            "use a class or Observer.with_args(...), or torch.nn.Identity for no observer"
        )
    observer = factory()
    if not isinstance(observer, nn.Module):
        raise InvalidRequest(
            f"qconfig.activation must make an observer, a module, when called; {factory!r} made {observer!r}"
        )
    try:
        return observer if device is None else observer.to(device)
    except NotImplementedError as error:  # what torch says of tensors on meta
        raise InvalidRequest(
            f"{type(site.module).__name__} is on the meta device, without values, and the rest of the model "
            f"is on {device}: give it memory with .to_empty(device=...) and load its weights first"
        ) from error


def _observe(site: Site, plan: Plan, device: torch.device | None) -> nn.Module:
    """Attach the observer that the qconfig makes, and its hook."""
    module: Any = site.module
    if has_qconfig(module) and not isinstance(site.module, NotObserved):
        module.add_module("activation_post_process", _new_observer(site, module.qconfig.activation, device))
        register_observer_hook(module, pre_hook=is_memoryless(module.qconfig))
    return module


def _leave(site: Site, plan: Plan, device: torch.device | None) -> nn.Module:
    return site.module


def _fill_slot(site: Site, plan: Plan, device: torch.device | None) -> nn.Module:
    module: Any = site.module
    if has_qconfig(module):
        module.activation_post_process = _new_observer(site, module.qconfig.activation, device)
    return module


def _observe_fixed_range(site: Site, plan: Plan, device: torch.device | None) -> nn.Module:
    module: Any = site.module
    if has_qconfig(module):
        factory = plan.fixed_ranges[type(module)]
        module.add_module("activation_post_process", _new_observer(site, factory, device))
        register_observer_hook(module, pre_hook=is_memoryless(module.qconfig))
    return module


def _make_observed(site: Site, plan: Plan, device: torch.device | None) -> nn.Module:
    """Replace a custom module by its observed class; of a `Composite`, the engine prepares the children."""
    observed: nn.Module = plan.observed_classes[site.type].from_float(site.module)
    carry_attributes(site.module, observed)
    if isinstance(observed, Composite):
        _prepare_children(observed, site, plan)
    elif type(observed) not in plan.unobserved_classes:
        _observe(Site(observed, site.path), plan, device)
    return observed


def _prepare_children(observed: nn.Module, site: Site, plan: Plan) -> None:
    """Attach observers below a composite, unless its `from_float` has: called by hand, it has to."""
    if any(is_observed(module) for module in observed.modules()):
        return
    observed.qconfig = site.module.qconfig
    propagate_qconfig_(observed)
    for name, child in Site(observed, site.path).children():
        observed._modules[name] = attach(child.module, plan)


def _is_fused_unit(site: Site, plan: Plan) -> bool:
    """Fused modules are observed as a whole. A root of a type not listed is a container."""
    is_root = not site.path
    return isinstance(site.module, FusedModule) and not (is_root and site.type not in plan.leaves)


RULES: tuple[Rule, ...] = (
    Rule("skipped", lambda site, plan: type(site.module) in plan.skipped, _leave),
    Rule("observed", lambda site, plan: is_observed(site.module), _leave),
    Rule("slot", lambda site, plan: isinstance(site.module, ObserverSlot), _fill_slot),
    Rule("fused", _is_fused_unit, _observe),
    Rule("unit", lambda site, plan: site.type in plan.units, _observe),
    Rule(
        "fixed range",
        lambda site, plan: site.module.training and type(site.module) in plan.fixed_ranges,
        _observe_fixed_range,
    ),
    Rule(
        "custom",
        lambda site, plan: site.type in plan.observed_classes and has_qconfig(site.module),
        _make_observed,
    ),
    Rule(
        "leaf",
        lambda site, plan: (
            site.type in plan.leaves and is_leaf(site.module) and not isinstance(site.module, nn.Sequential)
        ),
        _observe,
    ),
    Rule(
        "weighted",
        lambda site, plan: hasattr(site.module, "weight_fake_quant") and site.type in plan.leaves,
        _observe,
    ),
)
