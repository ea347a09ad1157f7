"""A dynamic linear weight keeps one pack, whichever is faster, and gives the engine's object to who asks."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from observers import MinMaxObserver
from quantization import QuantStub, convert, get_default_qconfig, prepare, quantize_dynamic
from quantization.backends import engine_choice, native_linear
from quantization.errors import QuantizationError
from quantization.nn import dynamic, fused, quantized
from quantization.nn.modes import automatic_pack
from quantization.qconfig import QConfig, default_dynamic_qconfig, default_dynamic_quant_observer
from tests.support import ENGINES, quiet_jit

needs_kernel = pytest.mark.skipif(not native_linear.is_available(), reason="this machine has no kernel")
X = torch.linspace(-2, 3, 6 * 40).reshape(6, 40)


@pytest.fixture(autouse=True)
def _x86() -> Iterator[None]:
    if "x86" not in ENGINES:
        pytest.skip("only the engine x86 chooses")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    yield
    torch.backends.quantized.engine = before


def layer(**kwargs: Any) -> dynamic.Linear:
    linear = nn.Linear(40, 30, **kwargs)
    linear.qconfig = default_dynamic_qconfig
    return dynamic.Linear.from_float(linear)


def held(module: quantized.Linear) -> set[str]:
    return {"_native", "_packed_params"} & set(vars(module._packed_params))


@needs_kernel
def test_conversion_makes_one_pack_and_no_engines_object(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    pack = native_linear.pack
    monkeypatch.setattr(native_linear, "pack", lambda w, b: made.append(tuple(w.shape)) or pack(w, b))
    module = layer()
    assert held(module) == {"_native"} and made == [(30, 40)]
    module(X)
    assert held(module) == {"_native"} and made == [(30, 40)]


@needs_kernel
def test_the_engines_object_is_made_when_asked_for_and_kept() -> None:
    module = layer()
    expected = module(X)
    packed = module._packed_params._packed_params
    assert isinstance(packed, torch.ScriptObject)
    assert module._packed_params._packed_params is packed and held(module) == {"_native", "_packed_params"}
    assert torch.equal(torch.ops.quantized.linear_dynamic(X, packed, True), expected)
    assert torch.equal(module(X), expected)


@needs_kernel
def test_a_layer_that_holds_the_engines_object_turns_to_the_kernel_when_run() -> None:
    module = layer()
    loaded = pickle.loads(pickle.dumps(module))
    assert held(loaded) == {"_packed_params"}
    assert torch.equal(loaded(X), module(X)) and held(loaded) == {"_native"}


@needs_kernel
@pytest.mark.parametrize("name", [e for e in ENGINES if e != "x86"])
def test_another_engine_is_used_as_it_is(name: str) -> None:
    torch.backends.quantized.engine = name
    module = layer()
    module(X)
    assert held(module) == {"_packed_params"}


@needs_kernel
def test_reading_the_weight_leaves_the_pack_alone() -> None:
    module = layer()
    weight, bias = module.weight(), module.bias()
    assert (module.weight.dtype, tuple(module.weight.shape)) == (torch.qint8, (30, 40))
    state = module.state_dict()
    assert held(module) == {"_native"}
    assert torch.equal(state["_packed_params._packed_params"][0].int_repr(), weight.int_repr())
    assert torch.equal(state["_packed_params._packed_params"][1], bias)


@needs_kernel
def test_another_weight_replaces_the_pack() -> None:
    module, other = layer(), layer()
    module.set_weight_bias(other.weight(), other.bias())
    assert torch.equal(module(X), other(X))
    module = layer()
    module.load_state_dict(other.state_dict())
    assert torch.equal(module(X), other(X))
    module = layer()
    module._packed_params._packed_params = other._packed_params._packed_params
    assert torch.equal(module(X), other(X))


@needs_kernel
def test_copies_are_independent() -> None:
    module = layer()
    expected = module(X)
    for twin in (copy.deepcopy(module), copy.copy(module._packed_params), copy.deepcopy(module)):
        twin.set_weight_bias(layer().weight(), None)
        assert torch.equal(module(X), expected)
    deep = copy.deepcopy(module)
    assert held(deep) == {"_native"} and torch.equal(deep(X), expected)


@needs_kernel
@pytest.mark.parametrize("how", [torch.jit.script, lambda m: torch.jit.trace(m, X)], ids=["script", "trace"])
def test_torchscript_gets_the_engines_object(how: Any) -> None:
    model = nn.Sequential(layer(), nn.ReLU())
    expected = model(X)
    with quiet_jit():
        scripted = how(model)
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
    assert torch.equal(scripted(X), expected) and torch.equal(loaded(X), expected)
    archived = dict(loaded.named_modules())["0._packed_params"]._c
    assert [name for name in automatic_pack.AUTOMATIC_STATE if archived.hasattr(name)] == []
    assert archived.hasattr("_packed_params")


@needs_kernel
def test_the_compiler_sees_one_operator() -> None:
    model = nn.Sequential(layer(), nn.ReLU(), dynamic.LinearReLU.from_float(_fused(30, 5)))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(X), model(X)) and torch.equal(compiled(X[:2]), model(X[:2]))
        with pytest.raises(Exception, match="NaN or infinity"):
            compiled(X * float("nan"))


def _fused(inputs: int, outputs: int) -> nn.Module:
    module = fused.LinearReLU(nn.Linear(inputs, outputs), nn.ReLU())
    module.qconfig = module[0].qconfig = default_dynamic_qconfig
    return module


@needs_kernel
def test_the_output_claims_no_gradient() -> None:
    """Torch's operator has none either, but marks its output as if."""
    x = X.clone().requires_grad_()
    module = layer()
    assert not module(x).requires_grad
    assert torch.ops.quantized.linear_dynamic(x, module._packed_params._packed_params, True).requires_grad
    head = nn.Linear(30, 2)
    head(module(x)).sum().backward()
    assert head.weight.grad is not None and x.grad is None


WRONG: dict[str, tuple[Tensor, str]] = {
    "too narrow": (X[:, :39], "must have size 40"),
    "a scalar": (torch.tensor(1.0), "must have size 40"),
    "quantized": (torch.quantize_per_tensor(X, 0.1, 0, torch.quint8), "must be float"),
    "NaN": (X * float("nan"), "min should be less than or equal to max"),
}


@needs_kernel
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_refused_as_without_the_kernel(kind: str) -> None:
    x, message = WRONG[kind]
    with pytest.raises(Exception, match=message):
        layer()(x)


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40), (0, 40), (2, 0, 40)], ids=str)
def test_shapes_and_dtypes_are_those_of_the_operator(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module = layer()
    x = torch.randn(shape).to(dtype)
    y = module(x)
    torch.backends.quantized.engine = "fbgemm"
    expected = pickle.loads(pickle.dumps(module))(x)
    assert y.dtype == dtype and torch.equal(y, expected)


@needs_kernel
def test_strided_input_is_read_in_order() -> None:
    module, wide = layer(), torch.randn(6, 80)
    assert torch.equal(module(wide[:, ::2]), module(wide[:, ::2].contiguous()))
    assert torch.equal(module(wide.t()[:40].t()), module(wide[:, :40].contiguous()))


@needs_kernel
def test_an_asymmetric_weight_stays_with_torch() -> None:
    linear = nn.Linear(40, 30)
    affine = MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    linear.qconfig = QConfig(activation=default_dynamic_quant_observer, weight=affine)
    nn.init.uniform_(linear.weight, 0, 1)
    module = dynamic.Linear.from_float(linear)
    assert module.weight().q_zero_point() != 0 and module(X).shape == (6, 30)
    assert held(module) == {"_packed_params"}


# --- static layers ---

CODES = torch.quantize_per_tensor(X, 0.03, 70, torch.quint8)


def static_layer(kind: Any = nn.Linear) -> quantized.Linear:
    """Calibrated on X and converted under x86."""
    part = kind(40, 30) if kind is nn.Linear else fused.LinearReLU(nn.Linear(40, 30), nn.ReLU())
    model = nn.Sequential(QuantStub(), part).eval()
    model.qconfig = get_default_qconfig("x86")
    prepared = prepare(model)
    prepared(X)
    return convert(prepared)[1]


def by_fbgemm(module: nn.Module, x: Tensor) -> Tensor:
    """The same on torch's operator."""
    with engine_choice.engine("fbgemm"):
        return pickle.loads(pickle.dumps(module))(x)


def assert_same_codes(y: Tensor, expected: Tensor) -> None:
    assert y.dtype == expected.dtype == torch.quint8 and y.shape == expected.shape
    assert (y.q_scale(), y.q_zero_point()) == (expected.q_scale(), expected.q_zero_point())
    assert torch.equal(y.int_repr(), expected.int_repr())


@needs_kernel
@pytest.mark.parametrize("kind", [nn.Linear, fused.LinearReLU])
@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40), (0, 40), (2, 0, 40)], ids=str)
def test_static_shapes_and_numbers_are_those_of_the_operator(kind: Any, shape: tuple[int, ...]) -> None:
    module = static_layer(kind)
    x = torch.quantize_per_tensor(torch.randn(shape), 0.03, 70, torch.quint8)
    expected = by_fbgemm(module, x)
    assert held(module) == {"_native"}
    assert_same_codes(module(x), expected)
    assert held(module) == ({"_native"} if x.numel() else {"_native", "_packed_params"})


@needs_kernel
def test_strided_codes_are_read_in_order() -> None:
    module = static_layer()
    wide = torch.quantize_per_tensor(torch.randn(6, 80), 0.03, 70, torch.quint8)
    assert_same_codes(module(wide[:, ::2]), module(wide[:, ::2].contiguous()))


@needs_kernel
def test_output_qparams_may_be_tensors() -> None:
    module = static_layer()
    expected = module(CODES)
    module.scale, module.zero_point = torch.tensor(module.scale), torch.tensor(module.zero_point)
    assert_same_codes(module(CODES), expected)


STATIC_WRONG: dict[str, tuple[Tensor, str]] = {
    "float": (X, "must be quantized"),
    "signed": (torch.quantize_per_tensor(X, 0.03, 0, torch.qint8), "must be torch.quint8"),
    "too narrow": (CODES[:, :39], "must have size 40"),
}


@needs_kernel
@pytest.mark.parametrize("kind", STATIC_WRONG)
def test_wrong_codes_are_refused_as_without_the_kernel(kind: str) -> None:
    x, message = STATIC_WRONG[kind]
    with pytest.raises(QuantizationError, match=message):
        static_layer()(x)


@needs_kernel
def test_a_scripted_static_layer_has_the_same_codes() -> None:
    module = static_layer()
    expected = module(CODES)
    with quiet_jit():
        scripted = torch.jit.script(module)
    assert_same_codes(scripted(CODES), expected)


@needs_kernel
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_loaded_state_is_packed_for_the_kernel_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, x = (layer, X) if kind == "dynamic" else (static_layer, CODES)
    source, target = make(), make()
    state = source.state_dict()
    monkeypatch.setattr(native_linear, "unpack", lambda _: pytest.fail("nothing needs to be unpacked"))
    target.load_state_dict(state)
    assert held(target) == {"_native"}
    assert torch.equal(target(x).dequantize(), source(x).dequantize())


def test_a_loaded_weight_must_have_the_shape_of_the_one_that_is_there_now() -> None:
    """Also where that was set as an object, which the layer cannot have noted the shape of."""
    module, small = quantized.Linear(40, 30), quantized.Linear(2, 3)
    with pytest.raises(RuntimeError, match="size"):
        module.load_state_dict(small.state_dict())
    module._packed_params._packed_params = small._packed_params._packed_params
    module.load_state_dict(small.state_dict())
    assert module.weight().shape == (3, 2)


def test_without_the_kernel_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    expected = quantize_dynamic(model)(X)
    monkeypatch.setattr(native_linear, "_RUN", None)
    plain = quantize_dynamic(model)
    assert held(plain[0]) == {"_packed_params"}
    assert torch.equal(plain(X), expected)


@pytest.mark.skipif("onednn" not in ENGINES, reason="this torch has no oneDNN")
def test_without_the_kernel_the_engine_follows_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_linear, "_RUN", None)
    monkeypatch.setattr(engine_choice, "_fewest_rows", lambda: 5)
    module = layer()
    expected = module(X)
    packed = module._packed_params._packed_params
    for _ in range(automatic_pack._PATIENCE - 2):
        module(X)
    module(X[:1])  # starts the count anew
    for _ in range(automatic_pack._PATIENCE - 1):
        module(X)
        assert module._packed_params._packed_params is packed
    module(X)
    assert module._packed_params._packed_params is not packed
    assert torch.backends.quantized.engine == "x86"
    # oneDNN adds in another order than FBGEMM: a few units in the last place.
    torch.testing.assert_close(module(X), expected, rtol=1e-5, atol=1e-5)


def test_few_rows_are_for_fbgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "_fewest_rows", lambda: 32)
    assert [engine_choice.faster_engine(rows) for rows in (1, 31, 32)] == ["fbgemm", "fbgemm", "onednn"]
