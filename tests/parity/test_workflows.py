"""Whole workflows, ours against torch.ao: equal trees, equal checkpoints, equal bits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.parity.libraries import Library, assert_same, on_both
from tests.parity.models import MODELS, Net1d, Net3d, ResidualNet, build

MODEL = pytest.mark.parametrize("model_class", MODELS, ids=lambda c: c.__name__)
FUSION = pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])


def tree(model: nn.Module) -> list[tuple[str, str, int]]:
    """Names, class names and hook counts; classes differ only in the package they come from."""
    return [
        (name, type(m).__name__, len(m._forward_hooks) + len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]


def evidence(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    state = model.state_dict()
    versions = {k: v.get("version") for k, v in state._metadata.items()}
    return {"tree": tree(model), "state": dict(state), "versions": versions, "output": model(x)}


def compare(results: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, expected = results
    assert ours["tree"] == expected["tree"]
    more = set(ours["state"]) - set(expected["state"])
    assert all(key.startswith("elu.") for key in more), more  # torch.ao loses what ELU's output is scaled by
    assert_same({k: v for k, v in ours["state"].items() if k not in more}, expected["state"], "state")
    assert {k: ours["versions"][k] for k in expected["versions"]} == expected["versions"]
    assert_same(ours["output"], expected["output"], "output")


def qconfig(library: Library, kind: str, engine: str) -> Any:
    if kind == "engine":
        return library.q.get_default_qconfig(engine)
    return getattr(library.q, kind)


def skip_what_torch_lacks(engine: str, model_class: Any, fuse: bool, per_channel: bool = False) -> None:
    if engine == "qnnpack" and (model_class is Net3d or per_channel):
        pytest.skip("torch's qnnpack has no such kernel")
    if model_class is Net1d and not fuse:
        pytest.skip("torch has no quantized BatchNorm1d")


@MODEL
@FUSION
@pytest.mark.parametrize("kind", ["engine", "default_qconfig", "default_per_channel_qconfig"])
def test_static(engine: str, model_class: Any, fuse: bool, kind: str):
    skip_what_torch_lacks(engine, model_class, fuse, kind == "default_per_channel_qconfig")

    def program(library: Library) -> dict[str, Any]:
        model = build(model_class, library).eval()
        if fuse:
            model = library.q.fuse_modules(model, model_class.fusions)
        model.qconfig = qconfig(library, kind, engine)
        prepared = library.q.prepare(model)
        for _ in range(2):
            prepared(torch.randn(model_class.shape))
        before = evidence(prepared, torch.zeros(model_class.shape))
        x = torch.randn(model_class.shape)
        return {"prepared": before, "converted": evidence(library.q.convert(prepared), x)}

    ours, expected = on_both(program)
    compare((ours["prepared"], expected["prepared"]))
    compare((ours["converted"], expected["converted"]))


@MODEL
@FUSION
@pytest.mark.parametrize("version", [0, 1], ids=["plain", "fused_fake_quantize"])
def test_qat(engine: str, model_class: Any, fuse: bool, version: int):
    skip_what_torch_lacks(engine, model_class, fuse)

    def program(library: Library) -> dict[str, Any]:
        model = build(model_class, library).train()
        if fuse:
            model = library.q.fuse_modules_qat(model, model_class.fusions)
        model.qconfig = library.q.get_default_qat_qconfig(engine, version)
        # Given no table, ours trains a lone Conv1d too.
        prepared = library.q.prepare_qat(model, mapping=library.q.get_default_qat_module_mappings())
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
        for step in range(4):
            if step == 2:
                prepared.apply(library.freeze_bn_stats)
            if step == 3:
                prepared.apply(library.q.disable_observer)
            optimizer.zero_grad()
            loss = prepared(torch.randn(model_class.shape)).square().mean()
            loss.backward()
            optimizer.step()
        gradients = {name: p.grad for name, p in prepared.named_parameters()}
        prepared.eval()
        trained = evidence(prepared, torch.zeros(model_class.shape)) | {"loss": loss.detach()}
        converted = library.q.convert(copy.deepcopy(prepared))
        x = torch.randn(model_class.shape)
        return {"gradients": gradients, "trained": trained, "converted": evidence(converted, x)}

    ours, expected = on_both(program)
    assert_same(ours["gradients"], expected["gradients"], "gradients")
    assert_same(ours["trained"]["loss"], expected["trained"]["loss"], "loss")
    compare((ours["trained"], expected["trained"]))
    compare((ours["converted"], expected["converted"]))


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
@pytest.mark.parametrize("spec", [None, {nn.Linear}, {"head.0"}, "per_channel"], ids=str)
def test_dynamic(engine: str, dtype: torch.dtype, spec: Any):
    if engine in ("qnnpack", "onednn") and dtype is torch.float16 and spec != "per_channel":
        pytest.skip(f"torch's {engine} has no float16 linear kernel on this CPU")

    def program(library: Library) -> dict[str, Any]:
        model = build(ResidualNet, library).eval()
        keys = {nn.Linear: library.q.per_channel_dynamic_qconfig} if spec == "per_channel" else spec
        quantized = library.q.quantize_dynamic(model, keys, dtype=dtype)
        return evidence(quantized, torch.randn(ResidualNet.shape))

    compare(on_both(program))


def test_hooks_and_modes_after_convert():
    def program(library: Library) -> Any:
        calls: list[str] = []
        model = build(ResidualNet, library).eval()
        model.stem[0].register_forward_pre_hook(lambda m, a: calls.append("pre"))
        model.stem[0].register_forward_hook(lambda m, a, o: calls.append("post"))
        model.qconfig = library.q.default_qconfig
        prepared = library.q.prepare(model)
        prepared(torch.randn(ResidualNet.shape))
        converted = library.q.convert(prepared)
        converted(torch.randn(ResidualNet.shape))
        return calls, tree(converted)

    ours, expected = on_both(program)
    assert ours == expected
    assert ours[0] == ["pre", "post"] * 2
