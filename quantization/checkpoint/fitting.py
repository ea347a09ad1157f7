"""Whether a float model is the one that a file was made from, and in which modules it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from quantization.checkpoint.kinds import TAILS, head_of, is_quantized
from quantization.checkpoint.values import Reader
from quantization.engine.observe import is_observed
from quantization.engine.swap import FLOAT_TYPE
from quantization.errors import QuantizationError
from quantization.markers import FusedModule

_SIZES = (
    "in_features", "out_features", "in_channels", "out_channels", "kernel_size", "groups", "num_embeddings",
    "embedding_dim", "input_size", "hidden_size", "num_layers", "bidirectional", "num_features", "num_groups",
    "normalized_shape", "embed_dim", "num_heads",
)  # fmt: skip


class DoesNotFit(QuantizationError):
    """A float model and a file are of different architectures."""


def check_fits(
    path: str, structure: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> None:
    """Raise `DoesNotFit` with every difference in it."""
    done = [name for name, module in model.named_modules() if is_quantized(module)]
    if done:
        raise DoesNotFit(
            f"quantization.load takes a float model, but {done[:5]} are quantized already: build the float "
            "model anew and pass that"
        )
    found = [*_module_differences(structure, model), *_tensor_differences(structure, tensors, model)]
    if found:
        more = f"\n  and {len(found) - 10} more" if len(found) > 10 else ""
        listed = "\n  ".join(found[:10])
        raise DoesNotFit(
            f"'{path}' was made from another model than this one:\n  {listed}{more}\nBuild the float model "
            "as it was before prepare() or quantize_dynamic(), with the same arguments, and with the same "
            "QuantWrapper or add_quant_dequant() where these were used; fusing it or not makes no difference"
        )


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    for name in path.split(".") if path else ():
        child = model._modules.get(name)
        if child is None:
            return None
        model = child
    return model


def _module_differences(structure: Mapping[str, Any], model: nn.Module) -> Iterator[str]:
    for path, record in structure["modules"].items():
        yield from _difference(path, record, _module_at(model, path))
    for path in structure["same"]:
        if _module_at(model, path) is None:
            yield f"'{path}': no such module, but the file has one"
    for path in structure["identities"]:
        module = _module_at(model, path)
        if module is None:
            yield f"'{path}': no such module, but the file has an Identity"
        elif type(module).__name__ not in TAILS:
            yield f"'{path}': {type(module).__name__}, but in the file it was fused away"
    replaced = {*structure["modules"], *structure["same"], *structure["identities"]}
    for path, module in model.named_modules():
        if not _within(path, replaced) and is_observed(module):
            yield f"'{path}': has an observer; pass the model as it was before prepare()"


def _within(path: str, replaced: set[str]) -> bool:
    return any(one in ("", path) or path.startswith(f"{one}.") for one in replaced)


def _difference(path: str, record: Any, module: nn.Module | None) -> Iterator[str]:
    attributes = record["attributes"]
    was = attributes.get(FLOAT_TYPE)
    said = f"a {was}" if was else f"a {str(record.get('class', '')).partition(':')[2]}"
    if module is None:
        yield f"'{path}': no such module, but the file has {said}"
        return
    kind = type_before_parametrizations(module).__name__
    if isinstance(was, str) and head_of(kind) != head_of(was):
        yield f"'{path}': {kind}, but the file has {said}"
        return
    inner: Any = module[0] if isinstance(module, FusedModule) and len(module) else module
    for name in _SIZES:
        if name in attributes and hasattr(inner, name):
            saved, got = Reader({}).value(attributes[name]), getattr(inner, name)
            if _plain(saved) != _plain(got):
                yield f"'{path}': {name}={got}, but the file has {name}={saved}"


def _plain(size: Any) -> Any:
    return tuple(size) if isinstance(size, list | tuple) else size


def _tensor_differences(
    structure: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module
) -> Iterator[str]:
    replaced = {*structure["modules"], *structure["same"], *structure["identities"]}
    wanted = {key: key for key in structure["float"]} | dict(structure["tied"])
    present = dict(_tensors_outside(model, replaced))
    for key in sorted(wanted.keys() - present.keys()):
        yield f"'{key}': in the file, but the model has no such tensor"
    for key in sorted(present.keys() - wanted.keys()):
        yield f"'{key}': in the model, but not in the file"
    for key in sorted(present.keys() & wanted.keys()):
        stored = tensors.get(wanted[key])
        if stored is None:
            yield f"'{key}': the file lists it, but does not hold it"
        elif stored.shape != present[key].shape:
            yield f"'{key}': shape {tuple(present[key].shape)}, but the file has {tuple(stored.shape)}"


def _tensors_outside(model: nn.Module, replaced: set[str]) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if _within(path, replaced):
            continue
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, tensor
