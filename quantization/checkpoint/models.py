"""`save` and `load`: a converted model to a file, and from a float model and the file back."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantization.checkpoint import file
from quantization.checkpoint.fitting import check_fits
from quantization.checkpoint.kinds import is_quantized
from quantization.checkpoint.records import module_of, record_of
from quantization.checkpoint.values import CannotStore, Damaged, Reader, Writer
from quantization.engine.attributes import carry_attributes
from quantization.engine.observe import is_observed, is_observer
from quantization.engine.swap import STAYED_FLOAT
from quantization.engine.tree import Site, check_model, restoring, walk
from quantization.errors import QuantizationError, notify

Path_ = file.Path_


def save(model: nn.Module, path: Path_) -> None:
    """Write a converted model to a safetensors file that `load` rebuilds it from.

    The file holds plain tensors (integer codes, scales, zero points, float weights) and, as json, which
    module became what, by which qconfig, with which dtypes; and the engine and versions. It holds no code:
    classes of your own stay in your program, as the float model that `load` takes.

    Raises:
        QuantizationError: the model is prepared and not converted, or nothing in it is quantized, or it has a
            module that plain data cannot describe. A file that was there before stays as it was.

    >>> import tempfile, os
    >>> def build():
    ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> quantized, x = quantize_dynamic(build()), torch.randn(3, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(quantized, os.path.join(folder, "model.eq"))
    ...     restored = load(os.path.join(folder, "model.eq"), build())
    >>> torch.equal(restored(x), quantized(x))
    True
    """
    check_model(model)
    _check_converted(model)
    writer, left_out = Writer(), list[str]()
    structure = _structure_of(model, writer, left_out)
    file.write(path, structure, writer.tensors)
    if left_out:
        notify(
            f"quantization.save left out what is no plain data: {', '.join(left_out[:10])}; load takes such "
            "attributes from the float model, where it has them",
            strict=False,
        )


def load(path: Path_, float_model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Rebuild the converted model that `save` wrote, from a float model of the same architecture.

    Neither calibration nor a qconfig is needed. The weights of `float_model` do not matter; it may be on the
    meta device, and fused or not. Hooks and attributes of your own on modules that are replaced: attributes
    are carried over. The result is on the CPU.

    Args:
        inplace: change `float_model` itself instead of a copy, which shares nothing with it. Use the return
            value either way: a model that is a single layer is replaced.

    Raises:
        QuantizationError: the file is foreign or damaged, or does not fit the model; the message lists the
            modules that differ, and `float_model` is as before.
    """
    check_model(float_model)
    structure, tensors, metadata = file.read(path)
    check_fits(os.fspath(path), structure, tensors, float_model)
    _check_engine(metadata)
    replacements = _replacements(structure, tensors)
    if inplace:
        with restoring(float_model):
            return _placed(float_model, replacements, structure, tensors)
    return _placed(_copied(float_model, replacements), replacements, structure, tensors)


def _check_converted(model: nn.Module) -> None:
    prepared = [
        path
        for path, module in model.named_modules()
        if is_observer(module) or is_observed(module) or "weight_fake_quant" in module._modules
    ]
    if prepared:
        raise CannotStore(
            f"quantization.save takes a converted model, but {prepared[:5]} still observe or fake-quantize: "
            "call convert(model) first. To continue calibration or training later, use "
            "torch.save(model.state_dict(), ...) and the same prepare call"
        )
    if not any(is_quantized(module) for module in model.modules()):
        raise CannotStore(
            "quantization.save found no quantized module: quantize the model first (prepare, calibrate, "
            "convert, or quantize_dynamic); a float model's weights go to a file by "
            "torch.save(model.state_dict(), ...)"
        )


def _structure_of(model: nn.Module, writer: Writer, left_out: list[str]) -> dict[str, Any]:
    modules: dict[str, Any] = {}
    same: dict[str, str] = {}
    identities: list[str] = []
    training: list[str] = []
    notes: dict[str, str] = {}
    first: dict[int, str] = {}
    for site in _outside(model):
        if id(site.module) in first:
            same[site.path] = first[id(site.module)]
        elif is_quantized(site.module):
            modules[site.path] = record_of(site.module, site.path, writer, left_out)
        elif type(site.module) is nn.Identity:
            identities.append(site.path)
        if site.path not in modules:
            training += [site.path] if site.module.training else []
            if hasattr(site.module, STAYED_FLOAT):
                notes[site.path] = getattr(site.module, STAYED_FLOAT)
        first.setdefault(id(site.module), site.path)
    same = {path: other for path, other in same.items() if other in modules}
    tied = _write_float(model, writer)
    float_keys = sorted({key for key, _ in _float_tensors(model)} - set(tied))
    return {
        "modules": modules,
        "same": same,
        "identities": identities,
        "training": training,
        "notes": notes,
        "float": float_keys,
        "tied": tied,
    }


def _outside(model: nn.Module) -> Iterator[Site]:
    """Every module under every name, but not the insides of quantized ones."""
    return walk(model, every_name=True, whole=lambda site: is_quantized(site.module))


def _float_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of the modules that are not quantized."""
    for site in _outside(model):
        if is_quantized(site.module):
            continue
        module = site.module
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise CannotStore(
                f"'{site.path}' ({type(module).__name__}) keeps extra state, which need not be plain data; "
                "save the model's state_dict() instead"
            )
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{site.path}.{name}" if site.path else name, tensor


def _write_float(model: nn.Module, writer: Writer) -> dict[str, str]:
    """Write the float tensors, each once; returns which keys are the same tensor as another."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for key, tensor in _float_tensors(model):
        if id(tensor) in first:
            tied[key] = first[id(tensor)]
        else:
            first[id(tensor)] = key
            if "tensor" not in writer.value(key, tensor):
                raise CannotStore(f"'{key}' is a quantized tensor outside of quantized modules")
    return tied


def _check_engine(metadata: Mapping[str, str]) -> None:
    saved, now = metadata.get("engine", ""), torch.backends.quantized.engine
    alike = {"fbgemm": "x86"}
    if alike.get(saved, saved) != alike.get(now, now):
        notify(
            f"the file was written with the engine '{saved}', and torch.backends.quantized.engine is "
            f"'{now}': outputs may differ, for engines round and saturate differently",
            strict=False,
        )


def _replacements(structure: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, nn.Module]:
    reader = Reader(tensors)
    made = {path: module_of(record, path, reader) for path, record in structure["modules"].items()}
    made.update({path: nn.Identity() for path in structure["identities"]})
    for path, other in structure["same"].items():
        if other not in made:
            raise Damaged(f"'{path}' is to be the same module as '{other}', which the file has not")
        made[path] = made[other]
    return made


class _CannotCopy(QuantizationError, RuntimeError):
    """`copy.deepcopy` of the model failed, as it does for tensors with a gradient history."""


def _copied(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy with the new modules in it; what they replace is never copied."""
    memo: dict[int, Any] = {id(model.get_submodule(path)): module for path, module in replacements.items()}
    try:
        for path, module in replacements.items():
            before = set(vars(module))
            carry_attributes(model.get_submodule(path), module)
            for name in set(vars(module)) - before:
                vars(module)[name] = copy.deepcopy(vars(module)[name], memo)
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise _CannotCopy(f"the float model cannot be deep-copied ({error}); pass inplace=True") from error


def _placed(
    model: nn.Module,
    replacements: Mapping[str, nn.Module],
    structure: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    """Put modules, float tensors and modes into a model that has been found to fit."""
    for path, module in replacements.items():
        if path == "":
            if model is not module:
                carry_attributes(model, module)
            model = module
            continue
        parent, _, name = path.rpartition(".")
        children = model.get_submodule(parent)._modules
        old = children[name]
        if old is not None and old is not module:
            carry_attributes(old, module)
        children[name] = module
    _fill_float(model, structure, tensors)
    training = set(structure["training"])
    for site in _outside(model):
        if site.path not in structure["modules"]:
            site.module.training = site.path in training
            if site.path in structure["notes"]:
                setattr(site.module, STAYED_FLOAT, structure["notes"][site.path])
    return model


def _fill_float(model: nn.Module, structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    made: dict[int, Any] = {}
    for key, old in list(_float_tensors(model)):
        owner, _, name = key.rpartition(".")
        module = model.get_submodule(owner)
        if id(old) not in made:
            new = tensors[structure["tied"].get(key, key)]
            grad = isinstance(old, nn.Parameter) and old.requires_grad and new.is_floating_point()
            made[id(old)] = nn.Parameter(new, requires_grad=grad) if isinstance(old, nn.Parameter) else new
        held = module._parameters if name in module._parameters else module._buffers
        held[name] = made[id(old)]
