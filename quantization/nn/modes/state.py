"""Small shared parts of constructors and state dicts of layers with a packed weight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quantization.errors import Unsupported


def plain_weight(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weight of a layer that was not given one: zeros, quantized for qint8 and float32 for float16."""
    if dtype == torch.qint8:
        return torch.quantize_per_tensor(torch.zeros(tuple(shape)), 1.0, 0, torch.qint8)
    if dtype == torch.float16:
        return torch.zeros(tuple(shape))
    raise Unsupported(
        f"Unsupported dtype specified for quantized Linear! Expected qint8 or float16, but got {dtype}"
    )


def _engines() -> list[str]:
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@contextlib.contextmanager
def packing(layer: str) -> Iterator[None]:
    """Name the layer and the engine where a kernel library refuses to pack a weight."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, Unsupported):
            raise
        reason = str(error).partition("\n")[0]
        raise Unsupported(
            f"engine '{torch.backends.quantized.engine}' cannot pack the weight of {layer}: {reason}; "
            f"choose another engine of {_engines()}, a per-tensor weight observer if it is per-channel, or "
            "keep the layer float by setting its qconfig to None"
        ) from error


def take(state_dict: dict[str, Any], key: str, missing_keys: list[str]) -> Any:
    """Remove a key and return its value, or note it as missing and return None."""
    if key not in state_dict:
        missing_keys.append(key)
        return None
    return state_dict.pop(key)


def explain_other_stage(
    module: Any, marks: Sequence[str], state_dict: Mapping[str, Any], prefix: str, error_msgs: list[str]
) -> None:
    """Add the message for a checkpoint that holds this layer float, or prepared: without its keys `marks`.

    torch raises it together with the keys that are missing and those that were not expected.
    """
    if any(prefix + mark in state_dict for mark in marks):
        return
    names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
    observed = any(name.startswith(("activation_post_process.", "weight_fake_quant.")) for name in names)
    if observed or any(name.startswith(("weight", "0.weight")) for name in names):
        stage = "prepared (prepare, prepare_qat)" if observed else "float"
        error_msgs.append(
            f"'{prefix[:-1] or 'the model'}' is a {module._get_name()} here, but the checkpoint is of a "
            f"model in which it is {stage}: load the checkpoint into such a model first, and call "
            f"{'convert' if observed else 'prepare and convert, or quantize_dynamic,'} after that."
        )


def save_output_qparams(module: Any, destination: dict[str, Any], prefix: str) -> None:
    """Write the module's `scale` and `zero_point` numbers as 0-dim tensors."""
    destination[prefix + "scale"] = torch.tensor(module.scale)
    destination[prefix + "zero_point"] = torch.tensor(module.zero_point)


def load_output_qparams(
    module: Any, state_dict: dict[str, Any], prefix: str, missing_keys: list[str]
) -> None:
    """Read them back; old files hold a float64 scale, or tensors of one element."""
    scale = take(state_dict, prefix + "scale", missing_keys)
    zero_point = take(state_dict, prefix + "zero_point", missing_keys)
    if scale is not None and zero_point is not None:
        module.scale = float(scale)
        module.zero_point = int(zero_point)


def same_shape(key: str, got: Sequence[int], expected: Sequence[int], error_msgs: list[str]) -> bool:
    """Whether shapes agree; if not, add the message that `load_state_dict` raises."""
    if tuple(got) == tuple(expected):
        return True
    error_msgs.append(f"size mismatch for {key}: checkpoint {tuple(got)}, module {tuple(expected)}.")
    return False
