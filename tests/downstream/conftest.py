"""The names a downstream program imports: ours after a rename, and unedited through the alias."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from quantization.compat import alias_torch_ao

NAMES = ("q", "nnq", "nnqd", "nni", "nniqat", "nnqat", "nniq")
ROOTS = {
    "eagerquant": (
        "quantization",
        "quantization.nn.quantized",
        "quantization.nn.dynamic",
        "quantization.nn.fused",
        "quantization.nn.qat",
        "quantization.nn.qat",
        "quantization.nn.quantized",
    ),
    "torch.ao": (
        "torch.ao.quantization",
        "torch.ao.nn.quantized",
        "torch.ao.nn.quantized.dynamic",
        "torch.ao.nn.intrinsic",
        "torch.ao.nn.intrinsic.qat",
        "torch.ao.nn.qat",
        "torch.ao.nn.intrinsic.quantized",
    ),
    "torch": (
        "torch.quantization",
        "torch.nn.quantized",
        "torch.nn.quantized.dynamic",
        "torch.nn.intrinsic",
        "torch.nn.intrinsic.qat",
        "torch.nn.qat",
        "torch.nn.intrinsic.quantized",
    ),
}


class Names(SimpleNamespace):
    """The modules of one import root: `q`, `nnq`, `nnqd`, `nni`, `nniqat`, `nnqat`, `nniq`."""

    q: ModuleType


@pytest.fixture(params=ROOTS)
def names(request: pytest.FixtureRequest) -> Iterator[Names]:
    """What `import torch.ao.quantization` and its like give a program, under each root."""
    with alias_torch_ao():
        modules = map(importlib.import_module, ROOTS[request.param])
        yield Names(**dict(zip(NAMES, modules, strict=True)))
