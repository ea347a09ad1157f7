"""The module tree: the only recursion in the library, and the way back when something fails."""

# pyright: reportPrivateUsage=false
# nn.Module has no public access to its own children by name and to its hooks.
from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from quantization.errors import InvalidRequest, QuantizationError


@dataclass(frozen=True)
class Site:
    """A module and the dotted name it is reached by ('' for the root)."""

    module: nn.Module
    path: str

    @property
    def type(self) -> type[nn.Module]:
        """The class that mapping tables are keyed by: the one before `torch.nn.utils.parametrize`."""
        return cast("type[nn.Module]", type_before_parametrizations(self.module))

    def children(self) -> Iterator[tuple[str, Site]]:
        """Each registered child with its name; one registered under two names comes twice."""
        for name, child in self.module._modules.items():
            if child is not None:
                yield name, Site(child, self._path_of(name))

    def child(self, name: str) -> Site | None:
        """The child registered under that name; None where nothing is."""
        module = self.module._modules[name]
        return None if module is None else Site(module, self._path_of(name))

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def walk(
    model: nn.Module, every_name: bool = False, whole: Callable[[Site], bool] | None = None
) -> Iterator[Site]:
    """Every module of `model`, parents first; below a `whole` site nothing is visited.

    A module with several names comes under the first, or under each.
    """
    named = cast("Iterator[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=not every_name))
    below: tuple[str, ...] = ()
    for path, module in named:
        if below and path.startswith(below):
            continue
        site = Site(module, path)
        if whole is not None and whole(site):
            below += (f"{path}." if path else "",)
        yield site


def rewrite(model: nn.Module, swap: Callable[[Site], nn.Module], whole: Callable[[Site], bool]) -> nn.Module:
    """Replace each module by `swap(site)`, children first; below a `whole` site nothing is visited.

    A module registered under several names is swapped once and its replacement registered under all of
    them, so ties stay ties. The root is a module like any other: use the return value.
    """
    done: dict[int, nn.Module] = {}

    def visit(site: Site) -> nn.Module:
        key = id(site.module)
        if key not in done:
            if not whole(site):
                # By names: a list of the children would keep alive what has been replaced.
                for name in [name for name, _ in site.module._modules.items()]:
                    child = site.child(name)
                    if child is not None:
                        site.module._modules[name] = visit(child)
            done[key] = swap(site)
        return done[key]

    root = visit(Site(model, ""))
    done.clear()  # `visit` refers to itself, so that only the garbage collector would let go of what it knows
    return root


class WayBack:
    """What it takes to put the structure of a model back: children, hooks, attributes, modes.

    Tensors are kept by reference, not copied: nothing here writes into a tensor of the model. Dictionaries
    are restored in place because hook handles refer to them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = [(module, _shallow(module)) for module in model.modules()]

    def go(self) -> None:
        """Put everything back."""
        for module, attributes in self._before:
            vars(module).clear()
            for name, (value, content) in attributes.items():
                if content is not None:
                    value.clear()
                    value.update(content)
                vars(module)[name] = value

    def cut(self) -> None:
        """Let go of what was replaced so far, and of what will be: from here on there is no way back."""
        self._before = []


@contextlib.contextmanager
def restoring(model: nn.Module) -> Generator[WayBack]:
    """Put the structure of `model` back if the block raises, unless it has cut the way back."""
    way_back = WayBack(model)
    try:
        yield way_back
    except BaseException:
        way_back.go()
        raise


def _shallow(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, with a copy of its content where that can change under the same object."""

    mutable: Any = (MutableMapping, set)

    def content(value: Any) -> Any:
        return copy.copy(value) if isinstance(value, mutable) else None

    attributes: dict[str, Any] = vars(module)
    return {name: (value, content(value)) for name, value in attributes.items()}


def check_model(model: object) -> None:
    """Raise a `TypeError` unless `model` is an `nn.Module` that can be rewritten."""
    if isinstance(model, torch.jit.ScriptModule):
        raise _NotEager("got a TorchScript module; quantize the eager model first, then script the result")
    if not isinstance(model, nn.Module):
        raise _NotEager(f"expected a torch.nn.Module, got {type(model).__name__}")


class _NotEager(QuantizationError, TypeError):
    """What was passed is not an eager module."""


def is_leaf(module: nn.Module) -> bool:
    """Whether the module has no children, not counting `torch.nn.utils.parametrize`'s."""
    return not module._modules or set(module._modules) == {"parametrizations"}


def devices_of(module: nn.Module) -> set[torch.device]:
    """The devices of all parameters and buffers below `module`."""
    return {t.device for t in module.parameters()} | {t.device for t in module.buffers()}


def single_device(module: nn.Module) -> torch.device | None:
    """The device the module is on (None without tensors), beside which only `meta` is allowed.

    Raises:
        InvalidRequest: tensors on several devices, with an example of each.
    """
    devices = devices_of(module)
    real = devices - {torch.device("meta")} or devices
    if len(real) > 1:
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        examples = {str(t.device): name for name, t in tensors.items()}
        places = ", ".join(f"{name!r} on {device}" for device, name in sorted(examples.items()))
        raise InvalidRequest(
            "quantization needs a module that is on a single device (meta aside), but found "
            f"{places}; move it with .to(device) first, or prepare the parts one by one"
        )
    return next(iter(real), None)
