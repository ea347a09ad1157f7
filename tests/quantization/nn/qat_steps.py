"""Train a QAT layer of ours and the one of torch.ao side by side, from the same float module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quantization import qconfig
from quantization.nn import fused, qat
from tests.support import quiet_ao

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONV_NAMES = [f"{kind}{rank}d" for kind in ("Conv", "ConvReLU") for rank in (1, 2, 3)]
CONV_BN_NAMES = [f"{kind}{rank}d" for kind in ("ConvBn", "ConvBnReLU") for rank in (1, 2, 3)]


def rank_of(name: str) -> int:
    return int(name[-2]) if name.startswith("Conv") else 0


def float_parts(name: str, **options: Any) -> list[nn.Module]:
    """The float modules a QAT class is made of, with batch norm statistics that are not the initial ones."""
    rank = rank_of(name)
    bias = options.pop("bias", True)
    parts: list[nn.Module] = [
        CONVS[rank](4, 6, **{"kernel_size": 3, "padding": 1, "bias": bias, **options})
        if rank
        else nn.Linear(4, 6, bias=bias)
    ]
    if "Bn" in name:
        norm = NORMS[rank or 1](6)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        parts.append(norm)
    if "ReLU" in name:
        parts.append(nn.ReLU())
    return parts


def float_module(name: str, parts: list[nn.Module], namespace: Any, config: Any) -> nn.Module:
    module = parts[0] if len(parts) == 1 else getattr(namespace, name)(*parts)
    for child in module.modules():
        child.qconfig = config  # pyright: ignore[reportArgumentType]
    return module


def sample(name: str, batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, *([5] * rank_of(name)))


def ours(name: str, parts: list[nn.Module], backend: str = "fbgemm", version: int = 1) -> Any:
    config = qconfig.get_default_qat_qconfig(backend, version)
    return getattr(qat, name).from_float(float_module(name, copy.deepcopy(parts), fused, config))


def theirs(ao: Any, name: str, parts: list[nn.Module], backend: str = "fbgemm", version: int = 1) -> Any:
    """The layer of torch.ao; `ao` is the module `torch.ao`."""
    with quiet_ao():
        config = ao.quantization.get_default_qat_qconfig(backend, version)
        namespace = ao.nn.intrinsic.qat if hasattr(ao.nn.intrinsic.qat, name) else ao.nn.qat
        module = float_module(name, copy.deepcopy(parts), ao.nn.intrinsic, config)
        return getattr(namespace, name).from_float(module)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def train_step(module: Any, x: Tensor, grad: Tensor | None, optimizer: Any) -> tuple[Tensor, Tensor | None]:
    optimizer.zero_grad()
    x = x.clone()
    if x.is_floating_point():
        x.requires_grad_()
    y = module(x)
    y.backward(torch.ones_like(y) if grad is None else grad[: y.numel()].reshape(y.shape))
    optimizer.step()
    return y.detach(), x.grad


def assert_same_training(
    a: Any, b: Any, inputs: list[Tensor], before_step: Callable[[Any, int], None] = lambda module, step: None
) -> None:
    """Outputs, gradients, parameters and buffers stay bit-identical over SGD steps with momentum."""
    assert list(a.state_dict()) == list(b.state_dict())
    versions = [{k: v["version"] for k, v in m.state_dict()._metadata.items()} for m in (a, b)]
    assert versions[0] == versions[1]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (a, b)]
    for step, x in enumerate(inputs):
        grad = torch.randn(100_000)
        for module in (a, b):
            before_step(module, step)
        (ya, gxa), (yb, gxb) = (
            train_step(m, x, grad, optimizer) for m, optimizer in zip((a, b), optimizers, strict=True)
        )
        assert torch.equal(ya, yb), f"output of step {step}"
        assert same(gxa, gxb), f"gradient of the input in step {step}"
        for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            assert same(p.grad, q.grad), f"gradient of {name} in step {step}"
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), f"{name} after step {step}"
