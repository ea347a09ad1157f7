"""The file: safetensors, with the structure as json in its header, a version, and a checksum."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mappings.resolve import load
from quantization.checkpoint.values import Damaged
from quantization.errors import QuantizationError

FORMAT, VERSION = "eagerquant", 1
LIBRARY = "0.1.0"
# An extra of the distribution, so that it may be missing.
_safetensors: Any = load("safetensors")
_safetensors_torch: Any = load("safetensors.torch")

Path_ = str | os.PathLike[str]


class _NoSafetensors(QuantizationError, ImportError):
    """The package that reads and writes the files is not installed."""


class _Foreign(QuantizationError):
    """A file that `quantization.save` did not write."""


def _check_installed() -> None:
    if _safetensors is None or _safetensors_torch is None:
        raise _NoSafetensors(
            "quantization.save and quantization.load need the package safetensors: pip install "
            "'eagerquant[save]', or pip install safetensors"
        )


def write(path: Path_, structure: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file, or nothing: a file that was there before stays if something fails."""
    _check_installed()
    text = json.dumps(structure, allow_nan=False, separators=(",", ":"))
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "library": LIBRARY,
        "torch": str(torch.__version__),
        "engine": str(torch.backends.quantized.engine),
        "structure": text,
        "checksum": str(_checksum(text, tensors)),
    }
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        _safetensors_torch.save_file(dict(tensors), str(aside), metadata)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def read(path: Path_) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Structure, tensors and the header's other entries; an error says what is wrong with any other file."""
    _check_installed()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    try:
        with _safetensors.safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            _check_origin(path, metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except QuantizationError:
        raise
    except Exception as error:  # safetensors raises a class of its own, and RuntimeErrors of torch
        raise _Foreign(
            f"{os.fspath(path)!r} is no safetensors file, or it is damaged ({error}); quantization.load "
            "reads what quantization.save wrote. For a file of torch.save use torch.load and "
            "load_state_dict, or quantization.compat.load for a whole model"
        ) from error
    text = metadata.get("structure", "")
    if str(_checksum(text, tensors)) != metadata.get("checksum"):
        raise Damaged(
            f"{os.fspath(path)!r} is damaged: its checksum does not match what it holds; copy it again"
        )
    return _structure(path, text), tensors, metadata


def _check_origin(path: Path_, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise _Foreign(
            f"{os.fspath(path)!r} holds tensors, but no structure that quantization.save wrote: quantize the "
            "model as it was quantized for that file, and load the tensors with load_state_dict"
        )
    version = metadata.get("format_version", "")
    if version != str(VERSION):
        raise _Foreign(
            f"{os.fspath(path)!r} has format version {version}, written by eagerquant "
            f"{metadata.get('library')}; this one, {LIBRARY}, reads version {VERSION}: update the library"
        )


def _structure(path: Path_, text: str) -> dict[str, Any]:
    try:
        structure = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{os.fspath(path)!r} is damaged: its structure cannot be read: {error}") from error
    if not _well_formed(structure):
        raise Damaged(
            f"{os.fspath(path)!r} is damaged: its structure is not one that quantization.save writes"
        )
    return structure


def _well_formed(structure: Any) -> bool:
    def texts(values: Any, kind: type[Any]) -> bool:
        return isinstance(values, kind) and all(isinstance(value, str) for value in values)

    if not isinstance(structure, dict) or not isinstance(structure.get("modules"), dict):
        return False
    records = structure["modules"].values()
    return (
        all(isinstance(record, dict) and isinstance(record.get("attributes"), dict) for record in records)
        and all(texts(structure.get(name), list) for name in ("identities", "training", "float"))
        and all(isinstance(structure.get(name), dict) for name in ("same", "tied", "notes"))
        and all(texts(list(structure[name].values()), list) for name in ("same", "tied", "notes"))
    )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    """Over the structure, and names and bytes of all tensors."""
    value = zlib.crc32(text.encode())
    for key in sorted(tensors):
        value = zlib.crc32(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode(), value)
        value = zlib.crc32(tensors[key].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
