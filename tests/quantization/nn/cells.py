"""What the tests of quantized modules share: calibration, exact comparison, and a module's whole life."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import quiet_jit


def quantized(*shape: int, dtype: torch.dtype = torch.quint8) -> Tensor:
    """A random quantized tensor."""
    zero_point = 120 if dtype is torch.quint8 else -5
    return torch.quantize_per_tensor(torch.randn(*shape) * 2, 0.05, zero_point, dtype)


def observed(mod: nn.Module, qconfig: Any, *inputs: Tensor) -> nn.Module:
    """Give a float module a qconfig and an activation observer that has seen its outputs."""
    mod.qconfig = qconfig
    observer = qconfig.activation()
    with torch.no_grad():
        observer(mod(*inputs))
    mod.activation_post_process = observer
    return mod


def assert_identical(ours: Tensor, theirs: Tensor) -> None:
    """The same codes, parameters, type and shape; for float tensors, the same bits."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if ours.is_quantized:
        assert ours.qscheme() == theirs.qscheme()
        if ours.qscheme() == torch.per_tensor_affine:
            assert (ours.q_scale(), ours.q_zero_point()) == (theirs.q_scale(), theirs.q_zero_point())
        else:
            assert torch.equal(ours.q_per_channel_scales(), theirs.q_per_channel_scales())
            assert torch.equal(ours.q_per_channel_zero_points(), theirs.q_per_channel_zero_points())
        ours, theirs = ours.int_repr(), theirs.int_repr()
    assert torch.equal(ours, theirs)


def layout(state: dict[str, Any]) -> list[tuple[str, Any]]:
    """Keys in order, with the type and shape of each tensor, or the object itself."""
    return [(k, (v.dtype, tuple(v.shape)) if isinstance(v, Tensor) else v) for k, v in state.items()]


def saved(thing: Any) -> io.BytesIO:
    """What `torch.save` writes, ready to be read."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return buffer


def scripted(module: nn.Module) -> Any:
    """The module scripted, saved and loaded again."""
    buffer = io.BytesIO()
    with quiet_jit():
        torch.jit.save(torch.jit.script(module), buffer)
        buffer.seek(0)
        return torch.jit.load(buffer)


LIVES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: torch.load(saved(module), weights_only=False),
    "script": scripted,
}
