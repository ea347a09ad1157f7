"""Reference layers: torch.ao's outputs bit for bit, its checkpoints, and quantized layers made of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from quantization.errors import InvalidRequest, QuantizationError, Unsupported
from quantization.nn import quantized as static, reference
from quantization.nn.modes.reference import through_plain_codes
from tests.quantization.nn.cells import LIVES, assert_identical, layout, quantized, saved


@dataclass(frozen=True)
class Case:
    """A reference class, the float layer it is made from, an input, and the axis of output channels."""

    name: str
    make: Callable[[], nn.Module]
    input: Callable[[], torch.Tensor]
    axis: int = 0
    id: str = ""


def maps(rank: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(2, 4, *[6] * rank)


def indices() -> torch.Tensor:
    return torch.tensor([[1, 2, 0], [5, 5, 3]])


CASES = [
    Case("Linear", lambda: nn.Linear(5, 6), lambda: torch.randn(3, 5)),
    Case("Linear", lambda: nn.Linear(5, 6, bias=False), lambda: torch.randn(3, 5), id="Linear-no-bias"),
    Case("Conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), maps(1)),
    Case("Conv2d", lambda: nn.Conv2d(4, 6, 3, padding=1, dilation=2), maps(2)),
    Case("Conv2d", lambda: nn.Conv2d(4, 6, 3, padding="same", bias=False), maps(2), id="Conv2d-same"),
    Case("Conv3d", lambda: nn.Conv3d(4, 6, (1, 2, 3), padding=(0, 1, 1)), maps(3)),
    Case("ConvTranspose1d", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), maps(1), axis=1),
    Case("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), maps(2), axis=1),
    Case("ConvTranspose3d", lambda: nn.ConvTranspose3d(4, 6, 2, bias=False), maps(3), axis=1),
    Case("Embedding", lambda: nn.Embedding(6, 4, padding_idx=1), indices),
    Case("EmbeddingBag", lambda: nn.EmbeddingBag(6, 4, mode="max"), indices),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id or c.name)
PER_TENSOR = {
    "qscheme": torch.per_tensor_affine,
    "dtype": torch.qint8,
    "scale": torch.tensor([0.01]),
    "zero_point": torch.tensor([3]),
}


def per_channel(weight: torch.Tensor, axis: int) -> dict[str, Any]:
    channels = weight.shape[axis]
    return {
        "qscheme": torch.per_channel_affine,
        "dtype": torch.qint8,
        "scale": torch.linspace(0.004, 0.02, channels),
        "zero_point": torch.arange(channels) - 2,
        "axis": axis,
    }


def float_qparams(weight: torch.Tensor, axis: int) -> dict[str, Any]:
    return {
        **per_channel(weight, axis),
        "qscheme": torch.per_channel_affine_float_qparams,
        "dtype": torch.quint8,
        "zero_point": torch.linspace(90.5, 130, weight.shape[axis]),
    }


QPARAMS: dict[str, Callable[[torch.Tensor, int], dict[str, Any] | None]] = {
    "per-tensor": lambda weight, axis: PER_TENSOR,
    "numbers": lambda weight, axis: {**PER_TENSOR, "scale": 0.02, "zero_point": -1},
    "per-channel": per_channel,
    "float-qparams": float_qparams,
    "float16": lambda weight, axis: {"qscheme": None, "dtype": torch.float16},
    "none": lambda weight, axis: None,
}
each_kind = pytest.mark.parametrize("kind", QPARAMS)


def ours(case: Case, kind: str, mod: nn.Module | None = None) -> Any:
    mod = case.make() if mod is None else mod
    return getattr(reference, case.name).from_float(mod, QPARAMS[kind](mod.weight, case.axis))


def oracle(case: Case, kind: str, mod: nn.Module) -> Any:
    pytest.importorskip("torch.ao")
    nnqr = importlib.import_module("torch.ao.nn.quantized.reference")
    return getattr(nnqr, case.name).from_float(mod, QPARAMS[kind](mod.weight, case.axis))


@each_case
@each_kind
def test_equals_torch_ao(case: Case, kind: str) -> None:
    mod, x = case.make(), case.input()
    mine, theirs = ours(case, kind, mod), oracle(case, kind, mod)
    assert_identical(mine(x), theirs(x))
    assert_identical(mine.get_weight(), theirs.get_weight())
    assert_identical(mine.get_quantized_weight(), theirs.get_quantized_weight())
    assert layout(mine.state_dict()) == layout(theirs.state_dict())
    assert mine.state_dict()._metadata == theirs.state_dict()._metadata
    if case.name != "EmbeddingBag":  # torch.ao calls it QuantizedEmbedding
        assert repr(mine) == repr(theirs)


@each_case
@each_kind
def test_checkpoints_load_both_ways(case: Case, kind: str) -> None:
    mod, x = case.make(), case.input()
    mine, theirs = ours(case, kind, mod), oracle(case, kind, mod)
    fresh = ours(case, "none")
    fresh.load_state_dict(torch.load(saved(theirs.state_dict()), weights_only=True))
    assert_identical(fresh(x), theirs(x))
    assert_identical(fresh.get_weight(), mine.get_weight())
    if case.axis == 0:  # torch.ao forgets the axis that it loads
        other = oracle(case, "none", case.make())
        other.load_state_dict(torch.load(saved(mine.state_dict()), weights_only=True))
        assert_identical(other(x), mine(x))


@each_case
@pytest.mark.parametrize("kind", ["per-tensor", "per-channel", "float16"])
@pytest.mark.parametrize("life", LIVES)
def test_survives(case: Case, kind: str, life: str) -> None:
    module, x = ours(case, kind), case.input()
    again = LIVES[life](module)
    assert_identical(again(x), module(x))


PACKED = [c for c in CASES if c.name.startswith(("Linear", "Conv")) and not c.id.startswith("Conv2d-")]


@pytest.mark.parametrize("case", PACKED, ids=lambda c: c.id or c.name)
@pytest.mark.parametrize("kind", ["per-tensor", "per-channel"])
def test_a_quantized_layer_packs_the_weight(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "per-channel" and case.axis == 1:
        pytest.skip("no engine packs a transposed convolution per channel")
    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    mod = case.make()
    qparams = dict(QPARAMS[kind](mod.weight, 0) or {})
    qparams["zero_point"] = torch.zeros_like(qparams["zero_point"])  # which is all the engines take
    module = getattr(reference, case.name).from_float(mod, qparams)
    packed = getattr(static, case.name).from_reference(module, 0.1, 100)
    assert_identical(packed.weight().int_repr(), module.get_quantized_weight().int_repr())
    x = quantized(*case.input().shape)
    expected = module(x.dequantize()).clamp(-10, 15.5)
    assert (packed(x).dequantize() - expected).abs().max() <= 0.051


@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_a_quantized_embedding_packs_the_table(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    module = ours(case, "float-qparams")
    packed = getattr(static, name).from_reference(module)
    assert_identical(packed.weight().int_repr(), module.get_quantized_weight().int_repr())


@each_case
def test_from_float_shares_the_tensors_and_keeps_the_mode(case: Case) -> None:
    mod = case.make().eval()
    module = ours(case, "per-tensor", mod)
    assert module.weight.data_ptr() == mod.weight.data_ptr()
    assert not module.training
    assert all(
        not tensor.is_meta for tensor in module.state_dict().values() if isinstance(tensor, torch.Tensor)
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_every_padding_mode_is_the_float_layer_s(mode: str) -> None:
    """torch.ao's reference convolution pads with zeros whatever the mode."""
    mod = nn.Conv2d(4, 6, 3, padding=1, padding_mode=mode)
    module = reference.Conv2d.from_float(mod, PER_TENSOR)
    mod.weight = nn.Parameter(module.get_weight())
    x = torch.randn(2, 4, 6, 6)
    assert_identical(module(x), mod(x))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution_with_an_output_size(rank: int) -> None:
    mod = getattr(nn, f"ConvTranspose{rank}d")(4, 6, 3, stride=2, padding=1)
    module = getattr(reference, f"ConvTranspose{rank}d").from_float(mod, PER_TENSOR)
    mod.weight = nn.Parameter(module.get_weight())
    x = maps(rank)()
    for size in (11, 12):
        assert_identical(module(x, [size] * rank), mod(x, [size] * rank))
    with pytest.raises(ValueError, match="requested an output size"):
        module(x, [20] * rank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types(dtype: torch.dtype) -> None:
    mod = nn.Linear(5, 6).to(dtype)
    module = reference.Linear.from_float(mod, PER_TENSOR)
    assert module(torch.randn(3, 5, dtype=dtype)).dtype is dtype
    assert_identical(module.get_weight(), module.get_quantized_weight().dequantize().to(dtype))


@pytest.mark.parametrize("kind", ["per-tensor", "per-channel", "float-qparams"])
def test_plain_arithmetic_agrees_where_torch_has_no_quantized_tensors(kind: str) -> None:
    module = ours(CASES[8], kind)  # channels along axis 1
    plain = through_plain_codes(
        module.weight,
        module.weight_scale,
        module.weight_zero_point,
        module.weight_axis_int,
        module._weight_codes,
    )
    assert torch.allclose(plain, module.get_weight(), atol=1e-6)


@each_case
def test_runs_on_a_device_without_quantized_tensors(case: Case) -> None:
    module, x = ours(case, "per-channel"), case.input()
    assert module.to("meta")(x.to("meta")).shape == ours(case, "per-channel")(x).shape


def test_moves_with_its_parameters() -> None:
    module = ours(CASES[0], "per-channel").to(torch.float64)
    assert module(torch.randn(2, 5).double()).dtype is torch.float64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qscheme": torch.per_tensor_symmetric}, r"qscheme: torch\.per_tensor_symmetric is not supported"),
        ({"qscheme": 3}, "qscheme: 3 is not supported in reference quantized QuantizedLinear"),
        ({"qscheme": torch.per_channel_affine}, "lack 'axis'"),
        ({"dtype": torch.int8}, r"Unsupported dtype and qscheme: torch\.int8, torch\.per_tensor_affine"),
        ({"qscheme": None}, r"a torch\.qint8 weight of .* needs a qscheme"),
    ],
    ids=["symmetric", "number", "no-axis", "int8", "none"],
)
def test_wrong_parameters_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        reference.Linear.from_float(nn.Linear(2, 3), {**PER_TENSOR, **change})


@pytest.mark.parametrize("key", ["qscheme", "dtype", "scale", "zero_point"])
def test_missing_parameters_are_named(key: str) -> None:
    qparams = {k: v for k, v in PER_TENSOR.items() if k != key}
    with pytest.raises(InvalidRequest, match=f"lack '{key}'"):
        reference.Linear(2, 3, weight_qparams=qparams)


def test_a_parametrized_layer_gives_its_present_weight() -> None:
    mod = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
    module = reference.Linear.from_float(mod, PER_TENSOR)
    assert torch.equal(module.weight, mod.weight)
    assert sum(1 for _ in module.parameters()) == 2


def test_another_kind_of_layer_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"reference Linear is made from Linear or .*, not from Conv2d"):
        reference.Linear.from_float(nn.Conv2d(1, 1, 1), PER_TENSOR)


def test_a_float_checkpoint_misses_the_parameters_by_name() -> None:
    module = ours(CASES[0], "per-tensor")
    state = nn.Linear(5, 6).state_dict()
    missing = module.load_state_dict(state, strict=False).missing_keys
    assert {"weight_qscheme", "weight_dtype", "weight_scale", "weight_zero_point"} <= set(missing)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(state)


def test_a_float32_weight_has_no_codes() -> None:
    module = reference.Linear(2, 3, weight_qparams={"qscheme": None, "dtype": torch.float32})
    assert module.get_weight() is module.weight
    with pytest.raises(QuantizationError, match="stays float32"):
        module.get_quantized_weight()


class TestDecomposed:
    """Weights through the operators of `quantized_decomposed`, once something has registered them."""

    def test_without_the_operators_it_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.ops, "quantized_decomposed", object())
        with pytest.raises(Unsupported, match="nothing in this process has registered"):
            reference.Linear(2, 3, weight_qparams={**PER_TENSOR, "is_decomposed": True})

    @pytest.mark.parametrize("kind", ["per-tensor", "per-channel"])
    def test_equals_torch_ao(self, kind: str) -> None:
        pytest.importorskip("torch.ao.quantization.fx._decomposed")
        nnqr = importlib.import_module("torch.ao.nn.quantized.reference")
        mod, x = nn.Linear(5, 6), torch.randn(3, 5)
        qparams = {**(QPARAMS[kind](mod.weight, 0) or {}), "is_decomposed": True}
        for bounds in ({}, {"quant_min": -8, "quant_max": 7}):
            mine = reference.Linear.from_float(mod, {**qparams, **bounds})
            theirs = nnqr.Linear.from_float(mod, {**qparams, **bounds})
            assert_identical(mine.get_quantized_weight(), theirs.get_quantized_weight())
            assert_identical(mine(x), theirs(x))
