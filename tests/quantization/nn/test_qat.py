"""QAT layers against torch.ao: outputs, gradients, state; then their own promises and errors."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from quantization import qconfig
from quantization.errors import InvalidRequest
from quantization.markers import FusedModule
from quantization.nn import fused, qat, qat_dynamic
from quantization.qconfig import QConfig
from tests.quantization.nn.qat_steps import (
    CONV_BN_NAMES,
    CONV_NAMES,
    assert_same_training,
    float_module,
    float_parts,
    ours,
    sample,
    theirs,
)
from tests.support import quiet_ao, quiet_jit

LINEAR_NAMES = ["Linear", "LinearReLU"]
ALL_NAMES = [*LINEAR_NAMES, "LinearBn1d", *CONV_NAMES, *CONV_BN_NAMES]
CONFIG = qconfig.get_default_qat_qconfig("fbgemm")
EMBEDDING_CONFIG = qconfig.default_embedding_qat_qconfig


@pytest.fixture
def ao() -> Any:
    pytest.importorskip("torch.ao.quantization")
    pytest.importorskip("torch.ao.nn.intrinsic.qat")
    return torch.ao


def configured(module: nn.Module, config: Any = CONFIG) -> nn.Module:
    for child in module.modules():
        child.qconfig = config
    return module


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [*LINEAR_NAMES, *CONV_NAMES])
def test_trains_like_the_oracle(ao: Any, name: str, bias: bool, backend: str, version: int) -> None:
    parts = float_parts(name, bias=bias)
    a, b = theirs(ao, name, parts, backend, version), ours(name, parts, backend, version)
    assert_same_training(a, b, [sample(name) for _ in range(3)])
    x = sample(name)
    assert torch.equal(a.eval()(x), b.eval()(x))
    for key, value in a.to_float().state_dict().items():
        assert torch.equal(value, b.to_float().state_dict()[key])


@pytest.mark.parametrize(
    "options",
    [
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"padding_mode": "replicate"},
        {"padding": "same"},
        {"padding": "valid", "dilation": 2},
        {"stride": 2, "groups": 2},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvReLU2d"])
def test_geometry_is_the_float_layers(ao: Any, name: str, options: dict[str, Any]) -> None:
    parts = float_parts(name, **options)
    b = ours(name, parts)
    assert_same_training(theirs(ao, name, parts), b, [sample(name) for _ in range(2)])
    layer = b.to_float()[0] if "ReLU" in name else b.to_float()
    for key in qat.Conv2d._family.fields:
        assert getattr(layer, key) == getattr(parts[0], key)


@pytest.mark.parametrize("bits", ["8", "4"])
@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_embeddings_train_like_the_oracle(ao: Any, name: str, bits: str) -> None:
    float_embedding = getattr(nn, name)(10, 4, padding_idx=2)
    config = "default_embedding_qat_qconfig" + ("_4bit" if bits == "4" else "")
    a = configured(copy.deepcopy(float_embedding), getattr(ao.quantization.qconfig, config))
    b = configured(copy.deepcopy(float_embedding), getattr(qconfig, config))
    with quiet_ao():
        a, b = getattr(ao.nn.qat, name).from_float(a), getattr(qat, name).from_float(b)
    assert_same_training(a, b, [torch.randint(0, 10, (3, 2)) for _ in range(3)])
    assert torch.equal(a.to_float().weight, b.to_float().weight)


def test_embedding_bag_takes_offsets_and_weights(ao: Any) -> None:
    options: dict[str, Any] = {"mode": "sum", "include_last_offset": True, "max_norm": 2.0, "sparse": False}
    float_bag = nn.EmbeddingBag(10, 4, **options)
    with quiet_ao():
        a = ao.nn.qat.EmbeddingBag.from_float(
            configured(copy.deepcopy(float_bag), ao.quantization.qconfig.default_embedding_qat_qconfig)
        )
    b = qat.EmbeddingBag.from_float(configured(copy.deepcopy(float_bag), EMBEDDING_CONFIG))
    indices, offsets, weights = torch.randint(0, 10, (6,)), torch.tensor([0, 2, 6]), torch.rand(6)
    assert torch.equal(a(indices, offsets, weights), b(indices, offsets, weights))
    for key, value in options.items():
        assert getattr(b, key) == value and getattr(b.to_float(), key) == value


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bias": True}], ids=str)
@pytest.mark.parametrize("name", [n for n in ALL_NAMES if n != "LinearBn1d"])
def test_a_seeded_constructor_draws_what_the_oracle_draws(
    ao: Any, name: str, options: dict[str, Any]
) -> None:
    arguments = (4, 6, 3) if "Conv" in name else (4, 6)
    namespace = ao.nn.intrinsic.qat if hasattr(ao.nn.intrinsic.qat, name) else ao.nn.qat
    with quiet_ao():
        config = ao.quantization.get_default_qat_qconfig("fbgemm")
        torch.manual_seed(3)
        a = getattr(namespace, name)(*arguments, qconfig=config, **options)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    b = getattr(qat, name)(*arguments, qconfig=CONFIG, **options)
    assert torch.equal(after, torch.get_rng_state())
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("name", ALL_NAMES)
def test_class_attributes_are_the_oracles(ao: Any, name: str) -> None:
    namespace = ao.nn.intrinsic.qat if hasattr(ao.nn.intrinsic.qat, name) else ao.nn.qat
    a, b = getattr(namespace, name), getattr(qat, name)
    prefixes = ("_FLOAT", "_FUSED", "_version")
    for key in (key for key in dir(a) if key.startswith(prefixes)):
        expected, got = getattr(a, key), getattr(b, key)
        assert getattr(expected, "__name__", expected) == getattr(got, "__name__", got), key
    assert issubclass(b, FusedModule) == (b.__name__ not in ("Linear", "Conv1d", "Conv2d", "Conv3d"))
    base = nn.Linear if "Linear" in name else getattr(nn, f"Conv{name[-2:]}")
    assert issubclass(b, base)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_from_float_shares_the_parameters_and_leaves_the_source(name: str) -> None:
    source = float_module(name, float_parts(name), fused, CONFIG)
    before = copy.deepcopy(source.state_dict())
    layer = source[0] if isinstance(source, FusedModule) else source
    module = getattr(qat, name).from_float(source)
    assert module.weight is layer.weight and module.bias is layer.bias
    assert module.qconfig is CONFIG
    module.eval()(sample(name))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in before.items())
    assert source.training and not hasattr(source, "weight_fake_quant")


@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_tied_embeddings_stay_tied(name: str) -> None:
    source = configured(getattr(nn, name)(4, 2), EMBEDDING_CONFIG)
    assert getattr(qat, name).from_float(source).weight is source.weight


@pytest.mark.parametrize("name", [*ALL_NAMES, "Embedding", "EmbeddingBag"])
def test_copy_pickle_save_and_script_keep_the_output(name: str) -> None:
    if name.startswith("Emb"):
        module = getattr(qat, name)(5, 4, qconfig=EMBEDDING_CONFIG)
        x = torch.randint(0, 5, (3, 2))
    else:
        module, x = ours(name, float_parts(name)), sample(name)
    module(x)
    module.eval()
    # The weight observer goes on observing, so each twin starts from the same state and runs once.
    expected = copy.deepcopy(module)(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded]
    assert dir(twins[0]) == dir(twins[1]) == dir(twins[2]) == dir(module)
    assert list(twins[1].state_dict()) == list(module.state_dict())
    with quiet_jit():
        scripted = torch.jit.script(module)
        archive = io.BytesIO()
        torch.jit.save(scripted, archive)
        archive.seek(0)
        twins += [scripted, torch.jit.load(archive)]
    assert all(torch.equal(twin(x), expected) for twin in twins)


@pytest.mark.parametrize("name", [*LINEAR_NAMES, "Conv2d", "ConvReLU2d", "ConvBn2d", "LinearBn1d"])
def test_a_parametrized_layer_stays_parametrized(name: str) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    parts = float_parts(name)
    parametrize.register_parametrization(parts[0], "weight", Double())
    source = float_module(name, parts, fused, CONFIG)
    module = getattr(qat, name).from_float(source)
    assert isinstance(module, getattr(qat, name))
    original = parts[0].parametrizations.weight.original
    assert module.parametrizations.weight.original is original
    assert torch.equal(module.weight, parts[0].weight) and parametrize.is_parametrized(parts[0])
    module(sample(name)).sum().backward()
    assert original.grad is not None
    assert not parametrize.is_parametrized(module.to_float())


def test_parametrized_linear_equals_the_oracle(ao: Any) -> None:
    layer = nn.Linear(4, 6)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    b = qat.Linear.from_float(configured(layer))
    with quiet_ao():
        config = ao.quantization.get_default_qat_qconfig("fbgemm")
        a = ao.nn.qat.Linear.from_float(configured(copy.deepcopy(layer), config))
    assert list(a.state_dict()) == list(b.state_dict())
    x = torch.randn(2, 4)
    assert torch.equal(a(x), b(x))
    assert torch.equal(a.to_float().weight, b.to_float().weight)


def test_the_linear_of_attention_is_accepted_as_the_mapping_promises() -> None:
    source = configured(NonDynamicallyQuantizableLinear(2, 3))
    assert qat.Linear.from_float(source).weight is source.weight


def test_to_float_shares_storage_keeps_the_mode_and_frozen_parameters() -> None:
    source = configured(nn.Conv2d(2, 2, 1))
    source.weight.requires_grad_(False)
    module = qat.Conv2d.from_float(source).eval()
    back = module.to_float()
    assert type(back) is nn.Conv2d and not back.training and not hasattr(back, "qconfig")
    assert back.weight.data_ptr() == source.weight.data_ptr() and not back.weight.requires_grad
    assert back.bias.requires_grad


@pytest.mark.parametrize("make", [nn.Linear, nn.Conv2d], ids=["linear", "conv"])
def test_device_and_dtype_reach_weight_and_observer(make: type[nn.Module]) -> None:
    cell = getattr(qat, make.__name__)
    arguments = (2, 3) if make is nn.Linear else (2, 3, 1)
    module = cell(*arguments, qconfig=CONFIG, device="meta", dtype=torch.float64)
    assert module.weight.device.type == "meta" and module.weight.dtype == torch.float64
    assert module.weight_fake_quant.activation_post_process.min_val.device.type == "meta"
    moved = cell.from_float(configured(make(*arguments, device="meta")))
    assert {t.device.type for t in (*moved.parameters(), *moved.buffers())} == {"meta"}


def test_a_plain_observer_or_identity_may_stand_for_the_fake_quantizer() -> None:
    x = torch.randn(2, 4)
    plain = nn.Linear(4, 6)
    identity = QConfig(activation=nn.Identity, weight=nn.Identity)
    assert torch.equal(qat.Linear.from_float(configured(plain, identity))(x), plain(x))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ALL_NAMES, "Embedding", "EmbeddingBag"])
def test_a_missing_qconfig_names_the_cure(name: str) -> None:
    arguments = (4, 6, 3) if "Conv" in name else (4, 6)
    with pytest.raises(InvalidRequest, match="qconfig must be provided for QAT module") as error:
        getattr(qat, name)(*arguments)
    assert name in str(error.value) and "get_default_qat_qconfig" in str(error.value)


@pytest.mark.parametrize("name", [*ALL_NAMES, "Embedding", "EmbeddingBag"])
def test_from_float_refuses_other_types_by_name(name: str) -> None:
    wanted = getattr(qat, name)._FLOAT_MODULE.__name__
    expected = rf"qat\.{name}\.from_float only works for {wanted}, got Bilinear"
    with pytest.raises(InvalidRequest, match=expected):
        getattr(qat, name).from_float(configured(nn.Bilinear(2, 2, 2)))


def test_from_float_refuses_a_subclass() -> None:
    class Scaled(nn.Linear):
        pass

    with pytest.raises(InvalidRequest, match="got Scaled"):
        qat.Linear.from_float(configured(Scaled(2, 2)))


@pytest.mark.parametrize("name", ["Linear", "ConvReLU2d", "ConvBn2d", "LinearBn1d", "Embedding"])
def test_from_float_wants_a_qconfig_on_the_module(name: str) -> None:
    parts = [nn.Embedding(2, 2)] if name == "Embedding" else float_parts(name)
    module = parts[0] if len(parts) == 1 else getattr(fused, name)(*parts)
    with pytest.raises(InvalidRequest, match="Input float module must have qconfig defined"):
        getattr(qat, name).from_float(module)
    module.qconfig = None
    with pytest.raises(InvalidRequest, match="must have a valid qconfig, got None"):
        getattr(qat, name).from_float(module)


def test_a_qconfig_without_weight_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="has weight=None"):
        qat.Linear(2, 2, qconfig=QConfig(activation=nn.Identity, weight=None))


@pytest.mark.parametrize(("name", "label"), [("Embedding", "Embedding"), ("EmbeddingBag", "Embedding Bag")])
def test_embeddings_want_float_zero_points(name: str, label: str) -> None:
    expected = f"{label} weights requires a qscheme of torch.per_channel_affine_float_qparams Got torch.per_"
    source = configured(getattr(nn, name)(4, 2))
    cell = getattr(qat, name)
    for build in (lambda: cell(4, 2, qconfig=CONFIG), lambda: cell.from_float(source)):
        with pytest.raises(InvalidRequest, match=expected):
            build()


# --- dynamic --------------------------------------------------------------------------------------


def test_dynamic_linear_is_the_static_one_with_a_memoryless_activation(ao: Any) -> None:
    layer = nn.Linear(4, 6)
    b = qat_dynamic.Linear.from_float(configured(layer, qconfig.default_dynamic_qat_qconfig))
    with quiet_ao():
        source = configured(copy.deepcopy(layer), ao.quantization.default_dynamic_qat_qconfig)
        a = ao.nn.qat.dynamic.Linear.from_float(source)
    assert isinstance(b, qat.Linear)
    assert_same_training(a, b, [torch.randn(3, 4) for _ in range(2)])


@pytest.mark.parametrize(
    "config",
    [CONFIG, qconfig.default_qconfig, QConfig(activation=nn.Identity, weight=nn.Identity)],
    ids=["moving-average", "min-max", "identity"],
)
def test_dynamic_linear_refuses_observers_with_a_memory(config: Any) -> None:
    expected = (
        r"Dynamic QAT requires a memoryless observer\.This means a MovingAverage observer with averaging "
        r"constant equal to 1"
    )
    for build in (
        lambda: qat_dynamic.Linear(2, 2, qconfig=config),
        lambda: qat_dynamic.Linear.from_float(configured(nn.Linear(2, 2), config)),
    ):
        with pytest.raises(ValueError, match=expected):
            build()
