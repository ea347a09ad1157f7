"""`from_float`, `from_reference` and `get_qconv` of statically quantized layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import observers
from quantization.backends import native_linear
from quantization.errors import InvalidRequest, Unsupported
from quantization.nn import fused, qat, quantized
from quantization.qconfig import QConfig, get_default_qat_qconfig
from tests.quantization.nn.weighted_cases import PER_TENSOR, prepared, same, same_state
from tests.support import quiet_ao

PER_CHANNEL = QConfig(
    activation=observers.default_histogram_observer, weight=observers.default_per_channel_weight_observer
)
NARROW = QConfig(activation=observers.default_observer, weight=observers.weight_observer_range_neg_127_to_127)
QCONFIGS = pytest.mark.parametrize(
    "qconfig",
    [
        pytest.param(PER_TENSOR, id="per-tensor"),
        pytest.param(PER_CHANNEL, id="per-channel"),
        pytest.param(NARROW, id="narrow"),
    ],
)
CONV_KWARGS = pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({"padding": 1}, id="padding"),
        pytest.param({"groups": 2, "stride": 2, "bias": False}, id="grouped-no-bias"),
        pytest.param({"padding": 1, "padding_mode": "reflect"}, id="reflect"),
    ],
)


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    after = module.state_dict()
    return all(torch.equal(after[name], value) for name, value in before.items())


@QCONFIGS
@CONV_KWARGS
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_equals_torch_ao(rank: int, kwargs: dict[str, Any], qconfig: QConfig, engine: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    if rank == 3 and (engine == "qnnpack" or "padding_mode" in kwargs):
        pytest.skip("torch.ao cannot do this")
    conv = prepared(getattr(nn, f"Conv{rank}d")(4, 6, 3, **kwargs), qconfig)
    before = snapshot(conv)
    ours = getattr(quantized, f"Conv{rank}d").from_float(conv)
    assert unchanged(conv, before)
    same_state(ours, getattr(nnq, f"Conv{rank}d").from_float(conv))


@QCONFIGS
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("kind", [nn.Linear, NonDynamicallyQuantizableLinear])
def test_linear_equals_torch_ao(kind: type[nn.Module], bias: bool, qconfig: QConfig, engine: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    linear = prepared(kind(5, 7, bias=bias), qconfig)
    same_state(quantized.Linear.from_float(linear), nnq.Linear.from_float(linear))


@pytest.mark.filterwarnings("ignore:torch's kernel of engine")
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose_equals_torch_ao(rank: int, engine: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    if rank == 3 and engine == "qnnpack":
        pytest.skip("qnnpack cannot unpack a three-dimensional weight")
    conv = prepared(getattr(nn, f"ConvTranspose{rank}d")(4, 6, 3, stride=2, groups=2, padding=1), PER_TENSOR)
    name = f"ConvTranspose{rank}d"
    same_state(getattr(quantized, name).from_float(conv), getattr(nnq, name).from_float(conv))


@QCONFIGS
@pytest.mark.parametrize("name", ["ConvReLU1d", "ConvReLU2d", "LinearReLU"])
def test_fused_float_module_equals_torch_ao(name: str, qconfig: QConfig, engine: str) -> None:
    nni = pytest.importorskip("torch.ao.nn.intrinsic")
    nniq = pytest.importorskip("torch.ao.nn.intrinsic.quantized")
    inner = nn.Linear(4, 6) if name == "LinearReLU" else getattr(nn, f"Conv{name[-2:]}")(4, 6, 3)
    mine = prepared(getattr(fused, name)(inner, nn.ReLU()), qconfig)
    with quiet_ao():
        other = prepared(getattr(nni, name)(inner, nn.ReLU()), qconfig)
    other.activation_post_process = mine.activation_post_process
    same_state(getattr(quantized, name).from_float(mine), getattr(nniq, name).from_float(other))


def test_qconfig_of_the_fused_module_serves_its_parts() -> None:
    module = prepared(fused.ConvReLU2d(nn.Conv2d(3, 4, 1), nn.ReLU()), PER_TENSOR)
    del module[0].qconfig
    assert isinstance(quantized.ConvReLU2d.from_float(module), quantized.ConvReLU2d)


QAT_KINDS = ["Conv", "ConvReLU", "ConvBn", "ConvBnReLU"]


def qat_pair(kind: str, rank: int, version: int, engine: str) -> tuple[Any, Any, str]:
    """A trained QAT module of ours, torch.ao's with the same state, and the name of the quantized class."""
    qconfig = get_default_qat_qconfig(engine, version)
    name, suffix = f"{kind}{rank}d", f"{rank}d"
    conv = getattr(nn, f"Conv{suffix}")(4, 6, 3, padding=1, bias=rank != 2)
    parts: list[nn.Module] = [conv]
    if "Bn" in kind:
        parts.append(getattr(nn, f"BatchNorm{suffix}")(6))
        nn.init.uniform_(parts[-1].weight)
        nn.init.uniform_(parts[-1].bias)
    if "ReLU" in kind:
        parts.append(nn.ReLU())
    models = []
    for space, nni_space, cells in _spaces(kind):
        float_module = conv if kind == "Conv" else getattr(nni_space, name)(*copy.deepcopy(parts))
        float_module.qconfig = conv.qconfig = qconfig
        models.append(getattr(cells, name).from_float(copy.deepcopy(float_module).train()))
        models[-1].activation_post_process = qconfig.activation()
        del space
    ours, theirs = models
    for _ in range(3):
        ours.activation_post_process(ours(torch.randn(2, 4, *[6] * rank)))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, f"ConvReLU{suffix}" if "ReLU" in kind else f"Conv{suffix}"


def _spaces(kind: str) -> list[tuple[str, Any, Any]]:
    nni = pytest.importorskip("torch.ao.nn.intrinsic")
    cells = pytest.importorskip("torch.ao.nn.qat" if kind == "Conv" else "torch.ao.nn.intrinsic.qat")
    return [("ours", fused, qat), ("torch.ao", nni, cells)]


@pytest.mark.parametrize("version", [0, 1], ids=["plain", "fused-observer"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", QAT_KINDS)
def test_qat_conv_equals_torch_ao(kind: str, rank: int, version: int, engine: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    nniq = pytest.importorskip("torch.ao.nn.intrinsic.quantized")
    if rank == 3 and engine == "qnnpack":
        pytest.skip("qnnpack cannot unpack a three-dimensional weight")
    ours, theirs, name = qat_pair(kind, rank, version, engine)
    before = snapshot(ours)
    converted = getattr(quantized, name).from_float(ours)
    assert unchanged(ours, before)
    same_state(converted, getattr(nniq if "ReLU" in name else nnq, name).from_float(theirs))


@pytest.mark.parametrize("precomputed", [False, True], ids=["observed-again", "precomputed"])
@pytest.mark.parametrize("kind", ["Linear", "LinearReLU", "LinearBn1d"])
def test_qat_linear_equals_torch_ao(kind: str, precomputed: bool, engine: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    nniq = pytest.importorskip("torch.ao.nn.intrinsic.quantized")
    linear = nn.Linear(4, 6)
    parts = {"Linear": [], "LinearReLU": [nn.ReLU()], "LinearBn1d": [nn.BatchNorm1d(6)]}[kind]
    source = getattr(fused, kind)(linear, *parts) if parts else linear
    source.qconfig = linear.qconfig = get_default_qat_qconfig(engine)
    module = getattr(qat, kind).from_float(source.train())
    module.activation_post_process = source.qconfig.activation()
    for _ in range(3):
        module.activation_post_process(module(torch.randn(5, 4)))
    name = "LinearReLU" if kind == "LinearReLU" else "Linear"
    oracle_source = _as_torch_ao(module, kind)
    ours = getattr(quantized, name).from_float(module, use_precomputed_fake_quant=precomputed)
    theirs = getattr(nniq if name == "LinearReLU" else nnq, name)
    same_state(ours, theirs.from_float(oracle_source, use_precomputed_fake_quant=precomputed))


def _as_torch_ao(module: Any, kind: str) -> Any:
    nnqat = pytest.importorskip("torch.ao.nn.qat")
    nniqat = pytest.importorskip("torch.ao.nn.intrinsic.qat")
    cls = nnqat.Linear if kind == "Linear" else getattr(nniqat, kind)
    other = cls(4, 6, qconfig=module.qconfig)
    other.activation_post_process = module.qconfig.activation()
    other.load_state_dict(module.state_dict())
    return other


def test_precomputed_without_a_fake_quantizer_still_observes() -> None:
    linear = prepared(nn.Linear(3, 3), PER_TENSOR)
    expected = quantized.Linear.from_float(linear)
    same_state(quantized.Linear.from_float(linear, use_precomputed_fake_quant=True), expected)


def test_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, packs = prepared(nn.Linear(3, 3), PER_TENSOR), []
    for_engine, for_kernel = quantized.LinearPackedParams.set_weight_bias, native_linear.pack

    def counted(self: Any, weight: Tensor, bias: Tensor | None) -> None:
        packs.append(tuple(weight.shape))
        for_engine(self, weight, bias)

    def counted_too(weight: Tensor, bias: Tensor | None) -> Tensor | None:
        packed = for_kernel(weight, bias)
        packs.extend([] if packed is None else [tuple(weight.shape)])
        return packed

    monkeypatch.setattr(quantized.LinearPackedParams, "set_weight_bias", counted)
    monkeypatch.setattr(native_linear, "pack", counted_too)
    quantized.Linear.from_float(linear)
    assert packs == [(3, 3)]


def test_subclass_with_its_own_constructor_is_built_through_it() -> None:
    class Tagged(quantized.Conv2d):
        _FLOAT_MODULE = nn.Conv2d

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.tag = "made here"

    conv = prepared(nn.Conv2d(2, 3, 3, padding="same"), PER_TENSOR)
    ours, plain = Tagged.from_float(conv), quantized.Conv2d.from_float(conv)
    assert ours.tag == "made here"
    x = torch.quantize_per_tensor(torch.randn(1, 2, 5, 5), 0.05, 60, torch.quint8)
    assert same(ours(x), plain(x))


def test_get_qconv_takes_its_observers() -> None:
    conv = prepared(nn.Conv2d(2, 3, 3), PER_TENSOR)
    made = quantized.Conv2d.get_qconv(conv, conv.activation_post_process, observers.default_weight_observer())
    same_state(made, quantized.Conv2d.from_float(conv))
    assert quantized.Conv2d.get_qconv(conv, None).scale == 1.0


class _Reference(nn.Linear):
    def get_quantized_weight(self) -> Tensor:
        return torch.quantize_per_tensor(self.weight.detach(), 0.01, 0, torch.qint8)


def test_from_reference_packs_the_quantized_weight() -> None:
    ref = _Reference(3, 4)
    module = quantized.Linear.from_reference(ref, 0.5, 7)
    assert (module.scale, module.zero_point) == (0.5, 7)
    assert torch.equal(module.weight().int_repr(), ref.get_quantized_weight().int_repr())
    assert torch.equal(module.bias(), ref.bias)
    relu = quantized.LinearReLU.from_reference(nn.Sequential(ref, nn.ReLU()), 0.5, 7)
    assert torch.equal(relu.weight().int_repr(), module.weight().int_repr())


@pytest.mark.parametrize(
    ("cls", "source", "message"),
    [
        pytest.param(quantized.Conv2d, nn.Conv1d(1, 1, 1), "Conv2d.*got: .*Conv1d", id="other-rank"),
        pytest.param(
            quantized.Linear, nn.Conv1d(1, 1, 1), "Linear, NonDyn.*got: .*Conv1d", id="other-family"
        ),
        pytest.param(quantized.ConvReLU2d, nn.Conv2d(1, 1, 1), "works for ConvReLU2d.*got", id="not-fused"),
    ],
)
def test_wrong_source_is_named(cls: Any, source: nn.Module, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        cls.from_float(prepared(source, PER_TENSOR))


def test_subclass_of_a_float_type_is_refused() -> None:
    class Special(nn.Linear):
        pass

    with pytest.raises(InvalidRequest, match="Special"):
        quantized.Linear.from_float(prepared(Special(2, 2), PER_TENSOR))


def test_missing_qconfig_is_named() -> None:
    with pytest.raises(InvalidRequest, match="Input float module must have qconfig defined: Linear"):
        quantized.Linear.from_float(nn.Linear(2, 2))


def test_weight_observer_of_another_dtype_is_refused() -> None:
    qconfig = QConfig(activation=observers.default_observer, weight=observers.MinMaxObserver)
    with pytest.raises(
        InvalidRequest, match=r"Conv2d must have dtype torch.qint8, but MinMaxObserver has torch.quint8"
    ):
        quantized.Conv2d.from_float(prepared(nn.Conv2d(1, 1, 1), qconfig))


def test_from_reference_refuses_a_float_module() -> None:
    with pytest.raises(InvalidRequest, match=r"get_quantized_weight.*got Linear"):
        quantized.Linear.from_reference(nn.Linear(2, 2), 1.0, 0)


def test_per_channel_transposed_convolution_names_the_cure() -> None:
    if torch.backends.quantized.engine == "qnnpack":
        pytest.skip("qnnpack packs it")
    conv = prepared(nn.ConvTranspose2d(2, 4, 3), PER_CHANNEL)
    with pytest.raises(Unsupported, match=r"QuantizedConvTranspose2d.*per-tensor weight observer"):
        quantized.ConvTranspose2d.from_float(conv)
