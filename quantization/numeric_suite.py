"""Compare a float model with its quantized one, layer by layer; the names of torch.ao.ns._numeric_suite.

`compare_weights` reads two state dicts. `compare_model_outputs` records what corresponding modules put out
when both models run on the same data. `compare_model_stub` runs each float module on the inputs its quantized
counterpart gets, so that errors do not add up. The latter two put loggers into the models they are given;
pass copies, or use `quantization.compare`, which leaves models as they are and gives numbers, not tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from quantization.accuracy import compare as compare, compute_sqnr as compute_sqnr
from quantization.engine.observe import Plan, attach, drop_observer_hooks
from quantization.engine.tree import Site, rewrite, walk
from quantization.loggers import (
    Logger as Logger,
    OutputLogger as OutputLogger,
    Shadow as Shadow,
    ShadowLogger as ShadowLogger,
    dequantized,
)
from quantization.markers import FusedModule
from quantization.nn import dynamic, quantized
from quantization.qconfig import QConfig
from quantization.workflows.ptq import prepare as prepare
from quantization.workflows.tables import (
    get_default_compare_output_module_list as get_default_compare_output_module_list,
)

NON_LEAF_MODULE_TO_ADD_OBSERVER_ALLOW_LIST = {dynamic.Linear, dynamic.LSTM, quantized.Linear, nn.LSTM}
_SEQUENTIAL: Any = nn.Sequential


def compare_weights(
    float_dict: Mapping[str, Any], quantized_dict: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """The weights of two state dicts side by side: `{key: {"float": ..., "quantized": ...}}`.

    Keys are those of the quantized state dict. A fused float module's weight is found one level down. Of
    dynamic LSTMs and GRUs it is the hidden-to-hidden weight of each layer and direction.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> found = compare_weights(model.state_dict(), quantize_dynamic(model).state_dict())
    >>> [(key, pair["quantized"].dtype) for key, pair in found.items()]
    [('0._packed_params._packed_params', torch.qint8)]
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in quantized_dict.items():
        postfix = key.rpartition(".")[2]
        if postfix == "param":
            match, value = _recurrent_weight(float_dict, key, value)
        else:
            match = _find_match(float_dict, key, postfix) if postfix in ("weight", "_packed_params") else None
            value = value[0] if postfix == "_packed_params" else value
        if match is not None:
            found[key] = {"float": float_dict[match], "quantized": value}
    return found


def _recurrent_weight(float_dict: Mapping[str, Any], key: str, params: Any) -> tuple[str | None, Any]:
    """The float key for a packed layer `<owner>._all_weight_values.<i>.param`, and its quantized weight."""
    owner, _, rest = key.rpartition("_all_weight_values.")
    index = rest.partition(".")[0]
    if not index.isdigit():
        return None, None
    directions = 2 if f"{owner}weight_hh_l0_reverse" in float_dict else 1
    layer, direction = divmod(int(index), directions)
    match = f"{owner}weight_hh_l{layer}" + "_reverse" * direction
    if match not in float_dict:
        return None, None
    packed = params.__getstate__()[0][4]
    return match, packed[1].__getstate__()[0][0]


def _find_match(str_list: Iterable[str], key_str: str, postfix: str) -> str | None:
    """The one of `str_list` that stands for `key_str`, whose last part is `postfix`, in the float model.

    That is the key itself, the key with one more part before the last (a fused module's first), or for packed
    parameters the `weight` in their place.
    """
    names = set(str_list)
    owner, _, last = key_str.rpartition(".")
    if last != postfix:
        return None
    if key_str in names:
        return key_str
    leaf = last
    if postfix == "_packed_params":
        owner, leaf = owner.removesuffix("_packed_params").rstrip("."), "weight"
    depth = owner.count(".") + 1 if owner else 0
    prefix = owner + "." if owner else ""
    fits = [name for name in names if name.startswith(prefix) and name.rpartition(".")[2] == leaf]
    exact = [name for name in fits if name.count(".") == depth]
    nested = sorted(name for name in fits if name.count(".") == depth + 1)
    return next(iter(exact + nested), None)


def get_logger_dict(mod: nn.Module, prefix: str = "") -> dict[str, dict[str, Any]]:
    """What the loggers in `mod` recorded: `{"<dotted name>.stats": stats}`, names after `prefix`."""
    start = f"{prefix}." if prefix else ""
    found: dict[str, dict[str, Any]] = {}
    for site, logger in _logged(mod):
        found[f"{start}{site.path}{'.' if site.path else ''}stats"] = logger.stats
    return found


def _logged(model: nn.Module) -> Iterator[tuple[Site, Logger]]:
    for site in walk(model):
        for child in site.module.children():
            if isinstance(child, Logger):
                yield site, child
                break


def prepare_model_with_stubs(
    float_module: nn.Module,
    q_module: nn.Module,
    module_swap_list: Collection[type],
    logger_cls: Callable[[], Any],
) -> None:
    """Wrap modules of `q_module` into `Shadow`s, in place, with those of `float_module` of the same name.

    Wrapped are those whose float type is in `module_swap_list` and that did change with quantization.
    """
    floats = {site.path: site.module for site in walk(float_module, every_name=True)}

    def chosen(site: Site) -> bool:
        counterpart = floats.get(site.path)
        return (
            site.path != ""
            and type(counterpart) in module_swap_list
            and not _is_identical_module_type(counterpart, site.module)
        )

    def wrap(site: Site) -> nn.Module:
        return Shadow(site.module, floats[site.path], logger_cls) if chosen(site) else site.module

    rewrite(q_module, wrap, whole=lambda site: chosen(site) or isinstance(site.module, Shadow))


def _is_identical_module_type(mod1: Any, mod2: Any) -> bool:
    """Whether both consist of modules of the same types."""
    return [type(m) for m in mod1.modules()] == [type(m) for m in mod2.modules()]


def compare_model_stub(
    float_model: nn.Module,
    q_model: nn.Module,
    module_swap_list: Collection[type],
    *data: Any,
    logger_cls: Callable[[], Any] = ShadowLogger,
) -> dict[str, dict[str, Any]]:
    """Run `q_model(*data)` with float modules as shadows: `{"<name>.stats": {"float": [], "quantized": []}}`.

    `q_model` keeps its `Shadow`s; pass a copy if it is still needed.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> found = compare_model_stub(model, quantize_dynamic(model), {nn.Linear}, torch.randn(3, 4))
    >>> [(key, stats["float"][0].shape) for key, stats in found.items()]
    [('0.stats', torch.Size([3, 2]))]
    """
    prepare_model_with_stubs(float_model, q_model, module_swap_list, logger_cls)
    q_model(*data)
    return get_logger_dict(q_model)


def get_matching_activations(float_module: nn.Module, q_module: nn.Module) -> dict[str, dict[str, list[Any]]]:
    """What the loggers of two models recorded at equal places: `{"<name>.stats": {"float", "quantized"}}`."""
    floats, quantizeds = get_logger_dict(float_module), get_logger_dict(q_module)
    found: dict[str, dict[str, list[Any]]] = {}
    for key, stats in quantizeds.items():
        match = _find_match(floats, key, "stats")
        if match is not None and stats["tensor_val"]:
            found[key] = {"float": floats[match]["tensor_val"], "quantized": stats["tensor_val"]}
    return found


def prepare_model_outputs(
    float_module: nn.Module,
    q_module: nn.Module,
    logger_cls: Callable[[], Any] = OutputLogger,
    allow_list: Collection[Any] | None = None,
) -> None:
    """Attach a logger to the modules of both models whose type is in `allow_list`, in place.

    The default list is `get_default_compare_output_module_list()`: all types that quantize or are quantized.
    """
    types = get_default_compare_output_module_list() if allow_list is None else allow_list
    for model, units in ((float_module, ()), (q_module, NON_LEAF_MODULE_TO_ADD_OBSERVER_ALLOW_LIST)):
        _attach_loggers(model, Plan(leaves=types, units=set(units) & set(types)), logger_cls)


def _attach_loggers(model: nn.Module, plan: Plan, logger_cls: Callable[[], Any]) -> None:
    """Let the engine attach them, as it does observers, under a qconfig that lasts only for that long."""
    for site, _ in list(_logged(model)):
        if "activation_post_process" in site.module._modules:
            del site.module.activation_post_process
            drop_observer_hooks(site.module)
    before = [(site.module, vars(site.module).get("qconfig", _ABSENT)) for site in walk(model)]
    for module, _ in before:
        vars(module)["qconfig"] = QConfig(activation=logger_cls, weight=None)
    try:
        attach(model, plan)
    finally:
        for module, qconfig in before:
            del vars(module)["qconfig"]
            if qconfig is not _ABSENT:
                vars(module)["qconfig"] = qconfig
    for site, _ in _logged(model):
        if isinstance(site.module, FusedModule) and type(site.module).forward is _SEQUENTIAL.forward:
            # A sequence calls the logger as the last of its children; the hook would do so once more.
            drop_observer_hooks(site.module)


_ABSENT = object()


def compare_model_outputs(
    float_model: nn.Module,
    q_model: nn.Module,
    *data: Any,
    logger_cls: Callable[[], Any] = OutputLogger,
    allow_list: Collection[Any] | None = None,
) -> dict[str, dict[str, list[Any]]]:
    """Run both models on `*data`: `{"<name>.stats": {"float": [...], "quantized": [...]}}`.

    Both models keep their loggers; pass copies if they are still needed.

    >>> model = nn.Sequential(nn.Linear(4, 2))
    >>> found = compare_model_outputs(model, quantize_dynamic(model), torch.randn(3, 4))
    >>> [(key, stats["quantized"][0].shape) for key, stats in found.items()]
    [('0.stats', torch.Size([3, 2]))]
    """
    prepare_model_outputs(float_model, q_model, logger_cls, allow_list)
    float_model(*data)
    q_model(*data)
    return get_matching_activations(float_model, q_model)


# torch.ao's names of two helpers.
_dequantize_tensor_list = dequantized


def _convert_tuple_to_list(t: Any) -> Any:
    return [_convert_tuple_to_list(part) for part in t] if isinstance(t, tuple) else t
