"""QAT layers with batch norm: both numerics paths against torch.ao, freezing, folding, old checkpoints."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from quantization import qconfig
from quantization.errors import InvalidRequest
from quantization.nn import fused, qat
from tests.observers.ways import going, ways
from tests.quantization.nn.qat_steps import (
    CONV_BN_NAMES,
    NORMS,
    assert_same_training,
    float_module,
    float_parts,
    ours,
    rank_of,
    sample,
    theirs,
)
from tests.support import quiet_ao, quiet_jit

NAMES = [*CONV_BN_NAMES, "LinearBn1d"]
CONFIG = qconfig.get_default_qat_qconfig("fbgemm")
# LinearBn1d has only the fast path.
PATHS = [*((name, path) for name in CONV_BN_NAMES for path in ("fast", "slow")), ("LinearBn1d", "fast")]
SLOW = "_enable_slow_path_for_better_numerical_stability"


@pytest.fixture
def ao() -> Any:
    pytest.importorskip("torch.ao.nn.intrinsic.qat")
    return torch.ao


def build(name: str, **options: Any) -> Any:
    arguments = (4, 6, 3) if rank_of(name) else (4, 6)
    return getattr(qat, name)(*arguments, qconfig=CONFIG, **options)


def schedule(path: str, freeze: str) -> Any:
    """What to do with a module before each of five steps: choose the path, freeze, evaluate."""

    def before_step(module: Any, step: int) -> None:
        if step == 0 and path == "slow":
            setattr(module, SLOW, True)
        if (freeze, step) in (("from the start", 0), ("midway", 2)):
            module.freeze_bn_stats()
        if (freeze, step) == ("midway", 3):
            module.update_bn_stats()
        if step == 4:
            module.eval()

    return before_step


@pytest.mark.parametrize("freeze", ["never", "midway", "from the start"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "path"), PATHS)
def test_trains_like_the_oracle(ao: Any, name: str, bias: bool, path: str, freeze: str) -> None:
    parts = float_parts(name, bias=bias)
    a, b = theirs(ao, name, parts), ours(name, parts)
    assert_same_training(a, b, [sample(name) for _ in range(5)], schedule(path, freeze))
    for key, value in a.to_float().state_dict().items():
        assert torch.equal(value, b.to_float().state_dict()[key]), key


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("path", ["fast", "slow"])
def test_padding_and_qconfig_change_nothing(
    ao: Any, path: str, padding_mode: str, backend: str, version: int
) -> None:
    parts = float_parts("ConvBnReLU2d", padding_mode=padding_mode, stride=2, groups=2)
    a = theirs(ao, "ConvBnReLU2d", parts, backend, version)
    b = ours("ConvBnReLU2d", parts, backend, version)
    assert_same_training(a, b, [sample("ConvBnReLU2d") for _ in range(5)], schedule(path, "midway"))


def test_cumulative_momentum_and_eps_are_kept(ao: Any) -> None:
    parts = float_parts("ConvBn1d")
    parts[1] = nn.BatchNorm1d(6, eps=0.1, momentum=None)
    a, b = theirs(ao, "ConvBn1d", parts), ours("ConvBn1d", parts)
    assert (b.bn.eps, b.bn.momentum) == (0.1, None)
    assert_same_training(a, b, [sample("ConvBn1d") for _ in range(3)])


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_shares_parameters_and_statistics_with_the_source(name: str) -> None:
    source = float_module(name, float_parts(name), fused, CONFIG)
    module = getattr(qat, name).from_float(source)
    assert module.bn is not source[1]
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(module.bn, key) is getattr(source[1], key)


# --- freezing -------------------------------------------------------------------------------------


def modes(module: Any) -> tuple[bool, ...]:
    return module.training, module.bn.training, module.weight_fake_quant.training, module.freeze_bn


@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize("name", ["ConvBn2d", "ConvBnReLU1d", "LinearBn1d"])
def test_modes_follow_the_oracle(ao: Any, name: str, freeze_bn: bool) -> None:
    arguments = (4, 6, 3) if rank_of(name) else (4, 6)
    with quiet_ao():
        config = ao.quantization.get_default_qat_qconfig("fbgemm")
        a = getattr(ao.nn.intrinsic.qat, name)(*arguments, freeze_bn=freeze_bn, qconfig=config)
    b = build(name, freeze_bn=freeze_bn)
    assert modes(a) == modes(b)
    for call in "eval train freeze_bn_stats eval train update_bn_stats eval update_bn_stats".split():
        assert getattr(b, call)() is b
        getattr(a, call)()
        assert modes(a) == modes(b), call


@pytest.mark.parametrize("name", NAMES)
def test_frozen_statistics_stand_still(name: str) -> None:
    module = build(name)
    module.apply(qat.freeze_bn_stats)
    module.train()
    before = module.bn.running_mean.clone()
    module(sample(name) + 3)
    assert torch.equal(module.bn.running_mean, before) and module.bn.num_batches_tracked == 0
    module.apply(qat.update_bn_stats)
    module(sample(name) + 3)
    assert not torch.equal(module.bn.running_mean, before)


def test_the_functions_for_apply_go_by_exact_type() -> None:
    class Other(qat.ConvBn2d):
        pass

    model = nn.Sequential(build("ConvBn2d"), Other(1, 1, 1, qconfig=CONFIG), nn.BatchNorm2d(1), nn.ReLU())
    assert model.apply(qat.freeze_bn_stats) is model
    assert [model[0].freeze_bn, model[1].freeze_bn, model[2].training] == [True, False, True]


# --- reset ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["reset_running_stats", "reset_bn_parameters", "reset_parameters"])
@pytest.mark.parametrize("name", ["ConvBn2d", "LinearBn1d"])
def test_resets_draw_what_the_oracle_draws(ao: Any, name: str, call: str) -> None:
    parts = float_parts(name)
    results = []
    for module in (theirs(ao, name, parts), ours(name, parts)):
        with torch.no_grad():
            for value in (*module.parameters(), module.bn.running_mean, module.bn.running_var):
                value.fill_(7)
        module.bn.num_batches_tracked.fill_(3)
        torch.manual_seed(5)
        assert getattr(module, call)() is None
        results.append(module.state_dict())
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key


# --- folding and the two paths --------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_to_float_is_the_layer_and_its_norm_in_one(name: str, bias: bool) -> None:
    parts = float_parts(name, bias=bias)
    module, x = ours(name, parts), sample(name)
    before = copy.deepcopy(module.state_dict())
    folded = module.eval().to_float()
    expected = nn.Sequential(*copy.deepcopy(parts)).eval()(x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    assert "Bn" not in type(folded).__name__
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
@pytest.mark.parametrize("path", ["fast", "slow"])
@pytest.mark.parametrize("name", CONV_BN_NAMES)
def test_without_rounding_both_paths_are_the_float_modules(name: str, path: str, mode: str) -> None:
    parts = float_parts(name)
    plain = nn.Sequential(*copy.deepcopy(parts))
    identity = qconfig.QConfig(activation=nn.Identity, weight=nn.Identity)
    module = getattr(qat, name).from_float(float_module(name, parts, fused, identity))
    setattr(module, SLOW, path == "slow")
    if mode == "eval":
        module.eval(), plain.eval()
    if mode == "frozen":
        module.freeze_bn_stats(), plain[1].eval()
    x = sample(name, batch=8)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(module.bn.running_mean, plain[1].running_mean)
    torch.testing.assert_close(module.bn.running_var, plain[1].running_var)


def test_only_the_slow_path_survives_a_zero_scale() -> None:
    fast = ours("ConvBn2d", float_parts("ConvBn2d"))
    with torch.no_grad():
        fast.bn.weight[0] = 0.0
    slow = copy.deepcopy(fast)
    setattr(slow, SLOW, True)
    x = sample("ConvBn2d")
    assert not fast(x).isfinite().all()
    y = slow(x)
    assert y.isfinite().all()
    torch.testing.assert_close(y[:, 0], slow.bn.bias[0].expand_as(y[:, 0]))


def test_a_bias_that_cancels_still_gets_a_gradient() -> None:
    module = ours("ConvBn2d", float_parts("ConvBn2d"))
    setattr(module, SLOW, True)
    module(sample("ConvBn2d")).sum().backward()
    assert torch.equal(module.bias.grad, torch.zeros(6))


@pytest.mark.parametrize(("name", "path"), PATHS)
def test_scripts_in_evaluation_and_training_mode(name: str, path: str) -> None:
    module, x = ours(name, float_parts(name), backend="qnnpack"), sample(name)
    if path == "slow":
        setattr(module, SLOW, True)
    module(x)
    module.eval()
    with quiet_jit():
        scripted = torch.jit.script(copy.deepcopy(module))
    assert torch.equal(scripted(x), module(x))
    if path == "fast":
        module.train()
        with quiet_jit():
            scripted = torch.jit.script(copy.deepcopy(module))
        assert torch.equal(scripted(x), module(x))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("name", "path"), PATHS)
def test_trains_under_autocast(name: str, path: str, version: int) -> None:
    module = ours(name, float_parts(name), version=version)
    if path == "slow":
        setattr(module, SLOW, True)
    with torch.autocast("cpu", torch.bfloat16):
        module(sample(name)).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("where", ["hook", "pre-hook", "global hook"])
def test_hooks_of_the_weights_fake_quantizer_run(where: str) -> None:
    module = ours("ConvBnReLU2d", float_parts("ConvBnReLU2d"))
    plain, seen = copy.deepcopy(module), []

    def note(called: Any, *_: Any) -> None:
        seen.append(called)

    rounding = module.weight_fake_quant
    if where == "global hook":
        handle = nn.modules.module.register_module_forward_hook(note)
    else:
        register = rounding.register_forward_hook if where == "hook" else rounding.register_forward_pre_hook
        handle = register(note)
    x = sample("ConvBnReLU2d")
    for _ in range(2):
        y = module(x)
    assert seen.count(rounding) == 2
    handle.remove()
    plain(x)
    assert torch.equal(y, plain(x))


@ways
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_trains_like_the_oracle_in_every_way(ao: Any, way: str, layout: torch.memory_format) -> None:
    parts = [nn.Conv2d(4, 40, 3, padding=1, bias=False), nn.BatchNorm2d(40), nn.ReLU()]
    a, b = theirs(ao, "ConvBnReLU2d", parts), ours("ConvBnReLU2d", parts)
    inputs = [torch.randn(6, 4, 20, 20).to(memory_format=layout) for _ in range(4)]
    with going(way):
        assert_same_training(a, b, inputs)


def test_synchronized_norms_take_the_place_of_ours() -> None:
    module = ours("ConvBnReLU2d", float_parts("ConvBnReLU2d")).eval()
    x = sample("ConvBnReLU2d")
    expected = copy.deepcopy(module)(x)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert type(synchronized) is qat.ConvBnReLU2d and type(synchronized.bn) is nn.SyncBatchNorm
    assert torch.equal(synchronized(x), expected)


# --- old checkpoints ------------------------------------------------------------------------------


def version_1(state: Any) -> OrderedDict[str, Any]:
    """The keys that version 1 wrote: the norm's tensors lie in the layer itself."""
    renamed = {"bn.weight": "gamma", "bn.bias": "beta"}
    return OrderedDict((renamed.get(key, key.removeprefix("bn.")), value) for key, value in state.items())


@pytest.mark.parametrize(
    "metadata", [{"": {"version": 1}}, {"": {}}, None], ids=["version 1", "none", "plain"]
)
@pytest.mark.parametrize("name", CONV_BN_NAMES)
def test_loads_checkpoints_of_version_1(name: str, metadata: Any) -> None:
    state = ours(name, float_parts(name), "qnnpack").state_dict()
    old = version_1(state)
    if metadata is not None:
        old._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue]
    fresh = ours(name, float_parts(name), "qnnpack")
    assert not fresh.load_state_dict(old).missing_keys
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in state.items())


def test_plain_dictionaries_with_new_keys_load_too() -> None:
    state = ours("ConvBn2d", float_parts("ConvBn2d"), "qnnpack").state_dict()
    fresh = ours("ConvBn2d", float_parts("ConvBn2d"), "qnnpack")
    fresh.load_state_dict(dict(state))
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in state.items())


def test_a_missing_key_is_reported_under_its_new_name() -> None:
    old = version_1(ours("ConvBn2d", float_parts("ConvBn2d"), "qnnpack").state_dict())
    del old["gamma"]
    fresh = ours("ConvBn2d", float_parts("ConvBn2d"), "qnnpack")
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bn\.weight"'):
        fresh.load_state_dict(old)


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_go_both_ways(ao: Any, name: str) -> None:
    a, b = theirs(ao, name, float_parts(name), "qnnpack"), ours(name, float_parts(name), "qnnpack")
    b.load_state_dict(a.state_dict())
    x = sample(name)
    assert torch.equal(a(x), b(x))
    a.load_state_dict(b.state_dict())


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "norm", [{"num_features": 5}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("name", ["ConvBn2d", "ConvBnReLU1d", "LinearBn1d"])
def test_a_norm_that_cannot_fold_is_described(name: str, norm: dict[str, Any]) -> None:
    parts = float_parts(name)
    parts[1] = NORMS[rank_of(name) or 1](**{"num_features": 6, **norm})
    source = float_module(name, parts, fused, CONFIG)
    expected = f"{next(iter(norm))}={next(iter(norm.values()))}"
    message = rf"{name}\.from_float .* needs num_features=6, .* got .*{expected}"
    with pytest.raises(InvalidRequest, match=message):
        getattr(qat, name).from_float(source)
