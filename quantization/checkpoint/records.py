"""One quantized module as a record of plain data, and a module from a record."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantization.checkpoint.kinds import class_of, name_of
from quantization.checkpoint.packed import Packing, packing_named, packing_of
from quantization.checkpoint.values import CannotStore, Damaged, Reader, Writer
from quantization.engine.observe import is_observer

# What every module has: registries and hooks. Hooks are code and stay with the float model.
_EVERY = frozenset(vars(nn.Module()))
# Derived from the parameters, and made again.
_DERIVED = frozenset({"_flat_weights", "_flat_weight_refs", "qconfig"})


def record_of(module: nn.Module, path: str, writer: Writer, left_out: list[str]) -> dict[str, Any]:
    """The record of a module and of all below it; attributes that are no plain data go to `left_out`."""
    name = name_of(module)
    if name is None or is_observer(module):
        raise CannotStore(
            f"'{path}' is a {type(module).__module__}.{type(module).__qualname__}, which is no class of this "
            "library: its code is not in the file. Save its state_dict() instead"
        )
    packing = packing_of(module)
    record = {
        "class": name,
        "training": module.training,
        "attributes": _attributes(module, path, packing, writer, left_out),
        "parameters": {
            key: None if tensor is None else [writer.value(_join(path, key), tensor), tensor.requires_grad]
            for key, tensor in module._parameters.items()
        },
        "buffers": {key: writer.value(_join(path, key), b) for key, b in module._buffers.items()},
        "not_saved": sorted(module._non_persistent_buffers_set),
        "children": {
            key: None if child is None else record_of(child, _join(path, key), writer, left_out)
            for key, child in module._modules.items()
        },
    }
    if packing is not None:
        read = packing.read(module)
        record["packing"] = packing.name
        record["packed"] = {key: writer.value(_join(path, key), value) for key, value in read.items()}
    return record


def _attributes(
    module: nn.Module, path: str, packing: Packing | None, writer: Writer, left_out: list[str]
) -> dict[str, Any]:
    skipped = _EVERY | _DERIVED | set(packing.attributes if packing else ())
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in skipped:
            continue
        before = dict(writer.tensors)
        try:
            found[name] = writer.value(_join(path, f"attributes.{name}"), value)
        except CannotStore:
            writer.tensors = before
            left_out.append(_join(path, name))
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def module_of(record: Any, path: str, reader: Reader) -> nn.Module:
    """The module of a record. No constructor runs, and only classes of our tables are named."""
    kind = class_of(record.get("class")) if isinstance(record, dict) else None
    if kind is None:
        raise Damaged(f"'{path}' is to be {record!r:.80}, which is no class of this library")
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    try:
        _fill(module, record, path, reader)
    except Damaged:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise Damaged(
            f"the parts of '{path}' do not fit together: {type(error).__name__}: {reason}"
        ) from error
    return module


def _fill(module: Any, record: dict[str, Any], path: str, reader: Reader) -> None:
    for name, form in record["attributes"].items():
        if name in _EVERY or name in _DERIVED or not name.isidentifier() or name.startswith("__"):
            raise Damaged(f"'{path}' is to have an attribute {name!r}, which no module keeps")
        vars(module)[name] = reader.value(form)
    module.training = bool(record["training"])
    for name, form in record["parameters"].items():
        held = None if form is None else nn.Parameter(reader.value(form[0]), requires_grad=bool(form[1]))
        module.register_parameter(name, held)
    for name, form in record["buffers"].items():
        module.register_buffer(name, reader.value(form), persistent=name not in record["not_saved"])
    for name, child in record["children"].items():
        module.add_module(name, None if child is None else module_of(child, _join(path, name), reader))
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    if "packing" in record:
        packing = packing_named(record["packing"])
        if packing is None:
            raise Damaged(f"'{path}' is to be packed by {record['packing']!r}, which this version cannot")
        packing.pack(module, {key: reader.value(form) for key, form in record["packed"].items()})
