"""Replace a run of modules by one: check the run, fold batch norms, move hooks, put the result in place.

Which runs fuse, and into what, is not known here: the caller passes the function that makes the fused module.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from quantization.engine.attributes import carry_attributes
from quantization.engine.observe import is_observed
from quantization.engine.tree import devices_of, restoring, walk
from quantization.engine.weight_hooks import require_plain_weight
from quantization.errors import InvalidRequest
from quantization.markers import FusedModule

_SEQUENTIAL: Any = nn.Sequential
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _NoSuchModule(InvalidRequest, AttributeError):
    """A dotted name leads to no module; an `AttributeError` too, which callers of torch.ao catch."""


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The module at a dotted name.

    Raises:
        InvalidRequest: nothing is there, or no module; names the closest names that exist.
    """
    found: Any = model
    for part in name.split("."):
        if not isinstance(found, nn.Module):
            break
        if not hasattr(found, part):
            close = difflib.get_close_matches(name, [site.path for site in walk(model)], cutoff=0.4)
            children = ", ".join(repr(child) for child, _ in found.named_children()) or "no children"
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {children}"
            raise _NoSuchModule(
                f"cannot fuse {name!r}: {type(found).__name__!r} object has no attribute {part!r}; {hint}"
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        raise InvalidRequest(f"cannot fuse {name!r}: it is a {type(found).__name__}, expected a module")
    return found


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at a dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(get_module(model, parent) if parent else model, last, module)


def as_runs(modules_to_fuse: Any) -> list[list[str]]:
    """One list of names or a list of such lists, as a list of lists.

    >>> as_runs(["conv", "relu"])
    [['conv', 'relu']]
    """
    if isinstance(modules_to_fuse, (list, tuple)):
        items: list[Any] = list(modules_to_fuse)  # pyright: ignore[reportUnknownArgumentType]
        if all(isinstance(item, str) for item in items):
            return [items]
        if all(isinstance(item, (list, tuple)) for item in items):
            runs: list[list[Any]] = [list(item) for item in items]
            if all(isinstance(name, str) for run in runs for name in run):
                return runs
    raise InvalidRequest(
        "modules_to_fuse must be a list of module names, or a list of such lists, for example "
        f"[['conv1', 'bn1'], ['fc', 'relu']]; got {modules_to_fuse!r}"
    )


def check_runs(model: nn.Module, runs: Sequence[Sequence[str]]) -> None:
    """Raise unless every name exists, no module is listed twice, and runs in a Sequential are in order.

    Only a `nn.Sequential` says in which order its children run; elsewhere the order is not checked.
    """
    first_seen: dict[int, str] = {}
    for run in runs:
        for name in run:
            module = get_module(model, name)
            if id(module) in first_seen:
                raise InvalidRequest(
                    f"cannot fuse {name!r}: that module is already listed as {first_seen[id(module)]!r}; "
                    "list each module once, all that fuse together in one list; a module called in two "
                    "places, such as a shared nn.ReLU, needs a second instance"
                )
            first_seen[id(module)] = name
            if is_observed(module):
                raise InvalidRequest(
                    f"cannot fuse {name!r}: it has an observer, which would watch a value that fusing "
                    "removes; fuse first, then prepare"
                )
        _check_order(model, run)


def _check_order(model: nn.Module, run: Sequence[str]) -> None:
    """The run must be consecutive leaves of the innermost chain of Sequentials that holds all of it."""
    if len(run) < 2:
        return
    parts = [name.split(".")[:-1] for name in run]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    container = get_module(model, ".".join(shared)) if shared else model
    order = list(_leaves(container, "".join(part + "." for part in shared)))
    if not set(run) <= set(order):
        return
    start = order.index(run[0])
    follows = order[start : start + len(run)]
    if follows != list(run):
        raise InvalidRequest(
            f"modules to fuse must follow each other, but {list(run)} do not: in {type(container).__name__} "
            f"{('.'.join(shared) or '<root>')!r} the run that starts with {run[0]!r} is {follows}; list "
            "modules in the order in which they run, with nothing in between"
        )


def _leaves(module: nn.Module, prefix: str) -> Iterator[str]:
    """Names in the order of execution, as far as Sequentials tell it, without what does nothing."""
    if not _is_chain(module):
        return
    for name, child in module.named_children():
        if _is_chain(child):
            yield from _leaves(child, f"{prefix}{name}.")
        elif type(child) is not nn.Identity:
            yield prefix + name


def _is_chain(module: nn.Module) -> bool:
    """Whether calling the module is calling its children one after the other."""
    forward = getattr(type(module), "forward", None)
    return forward is _SEQUENTIAL.forward and not isinstance(module, FusedModule)


def fuse_run(modules: Sequence[nn.Module], make: Callable[..., nn.Module], is_qat: bool) -> list[nn.Module]:
    """Fuse modules with `make(is_qat, *modules)`: the fused module, then an Identity for each other one.

    The pre-hooks of the first module and the forward hooks of the last one move to the fused module, so
    each runs once; hooks in between stay on the parts, where the parts live on. Attributes that a user set
    on the first module are set on the fused one too. If `make` raises, all is as before.
    """
    for module in modules:
        require_plain_weight(module, "fusing")
    _check_device(modules)
    first, last = modules[0], modules[-1]
    with restoring(first), restoring(last):
        # Taken before `make`, which may copy the first module with all its hooks.
        pre_hooks, hooks = _take_pre_hooks(first), _take_hooks(last)
        fused = make(is_qat, *modules)
    carry_attributes(first, fused)
    for hook, with_kwargs in pre_hooks:
        fused.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    for hook, with_kwargs, always_call in hooks:
        fused.register_forward_hook(hook, with_kwargs=with_kwargs, always_call=always_call)
    return [fused, *(nn.Identity().train(first.training) for _ in modules[1:])]


def _check_device(modules: Sequence[nn.Module]) -> None:
    """One device for all, and `meta` is a device like any other: folding mixes their values."""
    places = {str(device): type(module).__name__ for module in modules for device in devices_of(module)}
    if len(places) > 1:
        found = ", ".join(f"{name} on {device}" for device, name in sorted(places.items()))
        raise InvalidRequest(
            f"modules to fuse must be on one device, got {found}; move them with .to(device)"
        )


def _take_pre_hooks(module: Any) -> list[tuple[Any, bool]]:
    flags = module._forward_pre_hooks_with_kwargs
    taken = [(hook, key in flags) for key, hook in module._forward_pre_hooks.items()]
    module._forward_pre_hooks.clear()
    flags.clear()
    return taken


def _take_hooks(module: Any) -> list[tuple[Any, bool, bool]]:
    with_kwargs, always = module._forward_hooks_with_kwargs, module._forward_hooks_always_called
    taken = [(hook, key in with_kwargs, key in always) for key, hook in module._forward_hooks.items()]
    for hooks in (module._forward_hooks, with_kwargs, always):
        hooks.clear()
    return taken


def fold_batch_norm(layer: nn.Module, bn: nn.Module) -> nn.Module:
    """A copy of a linear layer or convolution that does in evaluation mode what `layer` and then `bn` do.

    With s = weight / sqrt(running_var + eps) per output channel: W' = W * s and
    b' = (b - running_mean) * s + bias.

    Raises:
        InvalidRequest: the two differ in width, or `bn` keeps no running statistics.

    >>> folded = fold_batch_norm(nn.Linear(2, 3, bias=False).eval(), nn.BatchNorm1d(3).eval())
    >>> folded
    Linear(in_features=2, out_features=3, bias=True)
    """
    check_widths(layer, bn)
    norm: Any = bn
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidRequest(
            f"bn.running_mean and bn.running_var must not be None: this {type(bn).__name__} normalizes by "
            "the statistics of each batch, in evaluation mode too, and cannot be folded; build it with "
            "track_running_stats=True"
        )
    folded: Any = _copy_of(layer)
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    stats = norm.running_mean, norm.running_var, norm.eps, gamma, beta
    if isinstance(layer, _TRANSPOSED):
        folded.weight, folded.bias = _fold_transposed(folded, stats)
    elif isinstance(layer, nn.Linear):
        folded.weight, folded.bias = fuse_linear_bn_weights(folded.weight, folded.bias, *stats)
    else:
        folded.weight, folded.bias = fuse_conv_bn_weights(folded.weight, folded.bias, *stats)
    return folded


def _fold_transposed(layer: Any, stats: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """The weight is [in, out / groups, ...]: each group of input channels has output channels of its own."""
    mean, variance, eps, gamma, beta = stats
    parts = zip(
        layer.weight.chunk(layer.groups),
        *(_chunks(values, layer.groups) for values in (layer.bias, mean, variance, gamma, beta)),
        strict=True,
    )
    folded = [
        fuse_conv_bn_weights(weight, bias, m, v, eps, g, b, transpose=True)
        for weight, bias, m, v, g, b in parts
    ]
    if layer.groups == 1:
        return folded[0]
    weights, biases = zip(*folded, strict=True)
    return (
        nn.Parameter(torch.cat([w.detach() for w in weights]), weights[0].requires_grad),
        nn.Parameter(torch.cat([b.detach() for b in biases]), biases[0].requires_grad),
    )


def _chunks(values: torch.Tensor | None, count: int) -> Sequence[torch.Tensor | None]:
    return [None] * count if values is None else values.chunk(count)


def _copy_of(layer: Any) -> nn.Module:
    """A deep copy with plain parameters, on which hooks are the very same objects."""
    hooks = [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]
    copied = copy.deepcopy(layer, {id(hook): hook for hook in hooks})
    if parametrize.is_parametrized(layer):
        # Not `remove_parametrizations`: it edits the class, which the copy shares with the layer.
        copied.__class__ = parametrize.type_before_parametrizations(layer)
        del copied.parametrizations
        for name in layer.parametrizations:
            copied.register_parameter(name, nn.Parameter(getattr(layer, name).detach().clone()))
    return copied


def check_widths(layer: nn.Module, bn: nn.Module) -> None:
    """Raise unless the batch norm normalizes as many channels as the layer puts out."""
    linear = isinstance(layer, nn.Linear)
    width = getattr(layer, "out_features" if linear else "out_channels", None)
    features = getattr(bn, "num_features", None)
    if width is None or features is None:
        raise InvalidRequest(
            "a batch norm folds into a convolution or linear layer before it, got "
            f"{type(layer).__name__} and {type(bn).__name__}"
        )
    if width != features:
        what = "features" if linear else "channel"
        raise InvalidRequest(
            f"Output {what} of {type(layer).__name__} must match num_features of {type(bn).__name__}, got "
            f"{width} and {features}: the norm belongs to another layer, or the two do not follow each other"
        )
