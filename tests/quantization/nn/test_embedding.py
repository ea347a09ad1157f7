"""Quantized embeddings: torch.ao's bits where it answers rightly, the float results where it does not."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantization import quantize_dynamic
from quantization.errors import InvalidRequest, Unsupported
from quantization.nn import qat, quantized as nnq
from quantization.nn.modes.packed_rows import codes_of, from_codes
from quantization.qconfig import (
    QConfig,
    default_dynamic_qconfig,
    default_embedding_qat_qconfig,
    default_embedding_qat_qconfig_4bit,
    default_per_channel_qconfig,
    default_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
)
from tests.quantization.nn.cells import LIVES, assert_identical, layout, saved
from tests.support import quiet_ao, quiet_jit

ROWS = 10
INDICES = torch.tensor([1, 2, 2, 9, 0, 5])
OFFSETS = torch.tensor([0, 2, 2, 5])
QCONFIGS = {8: float_qparams_weight_only_qconfig, 4: float_qparams_weight_only_qconfig_4bit}
DTYPES = {8: torch.quint8, 4: torch.quint4x2}
each_width = pytest.mark.parametrize("bits", [8, 4], ids=["8bit", "4bit"])
each_kind = pytest.mark.parametrize("kind", ["Embedding", "EmbeddingBag"])


def floats(kind: str, bits: int = 8, dim: int = 6, **arguments: Any) -> nn.Module:
    """A float embedding with the qconfig of that width; bags sum unless they are told otherwise."""
    if kind == "EmbeddingBag":
        arguments = {"mode": "sum", **arguments}
    mod = getattr(nn, kind)(ROWS, dim, **arguments)
    mod.qconfig = QCONFIGS[bits]
    return mod


def ours(kind: str, bits: int = 8, dim: int = 6, **arguments: Any) -> Any:
    return getattr(nnq, kind).from_float(floats(kind, bits, dim, **arguments))


def theirs(mod: nn.Module) -> Any:
    """torch.ao's module from the same float one."""
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    with quiet_ao():
        return getattr(nnq, type(mod).__name__).from_float(copy.deepcopy(mod))


def rounded(module: Any) -> Tensor:
    """The table with its rounding, as float."""
    return module.weight().dequantize()


def scripts_back(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    with quiet_jit():
        torch.jit.save(torch.jit.script(module), buffer)
        buffer.seek(0)
        return torch.jit.load(buffer)


@each_width
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(), (6,), (2, 3), (1, 2, 3), (0,)],
    ids=["scalar", "vector", "matrix", "3d", "empty"],
)
def test_a_lookup_gives_rounded_rows(bits: int, index_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    module = ours("Embedding", bits)
    indices = torch.randint(0, ROWS, shape, dtype=index_dtype)
    rows = module(indices)
    assert rows.dtype == torch.float32
    # The kernels of 4 bits keep scales in half precision.
    close = {"rtol": 0.0, "atol": 1e-5 if bits == 8 else 2e-2}
    torch.testing.assert_close(rows, rounded(module)[indices.long()], **close)


@each_width
def test_a_lookup_has_the_bits_of_torch_ao(engine: str, bits: int) -> None:
    nnq_ao = pytest.importorskip("torch.ao.nn.quantized")
    module = ours("Embedding", bits)
    with quiet_ao():
        twin = nnq_ao.Embedding(ROWS, 6, _weight=module.weight(), dtype=DTYPES[bits])
    for indices in (INDICES, INDICES.view(2, 3), INDICES.int()):
        assert_identical(module(indices), twin(indices))


BAG_CALLS = {
    "offsets": (INDICES, OFFSETS),
    "int32": (INDICES.int(), OFFSETS.int()),
    "matrix": (INDICES.view(2, 3),),
    "weights": (INDICES, OFFSETS, torch.linspace(-1, 2, 6)),
    "matrix-weights": (INDICES.view(2, 3), None, torch.linspace(-1, 2, 6).view(2, 3)),
}


@each_width
@pytest.mark.parametrize("call", BAG_CALLS)
def test_sums_have_the_bits_of_torch_ao(engine: str, bits: int, call: str) -> None:
    mod = floats("EmbeddingBag", bits)
    module, twin = nnq.EmbeddingBag.from_float(mod), theirs(mod)
    assert_identical(module.weight(), twin.weight())
    assert_identical(module(*BAG_CALLS[call]), twin(*BAG_CALLS[call]))


@each_width
def test_the_last_offset_may_be_the_end(bits: int) -> None:
    mod = floats("EmbeddingBag", bits, include_last_offset=True)
    module, ends = nnq.EmbeddingBag.from_float(mod), torch.tensor([0, 2, 6])
    assert module(INDICES, ends).shape == (2, 6)
    assert_identical(module(INDICES, ends), theirs(mod)(INDICES, ends))


@each_width
def test_pruned_tables_have_the_bits_of_torch_ao(bits: int) -> None:
    mod = floats("EmbeddingBag", bits)
    module, twin = nnq.EmbeddingBag.from_float(mod), theirs(mod)
    module.pruned_weights = twin.pruned_weights = True
    mapping = torch.tensor([0, -1, 1, 2, -1, 3, 4, 5, 6, 7], dtype=torch.int32)
    got = module(INDICES, OFFSETS, None, mapping)
    assert_identical(got, twin(INDICES, OFFSETS, None, mapping))
    assert not torch.equal(got, module(INDICES, OFFSETS, None, torch.arange(ROWS, dtype=torch.int32)))


@each_width
@pytest.mark.parametrize("dim", [6, 5], ids=["even", "odd"])
@pytest.mark.parametrize("padding_idx", [None, 2], ids=["plain", "padding"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("call", ["offsets", "matrix"])
def test_bags_reduce_as_the_float_module(
    bits: int, dim: int, padding_idx: int | None, mode: str, call: str
) -> None:
    mod = floats("EmbeddingBag", bits, dim, mode=mode, padding_idx=padding_idx)
    module = nnq.EmbeddingBag.from_float(mod)
    with torch.no_grad():
        mod.weight.copy_(rounded(module))
        expected = mod(*BAG_CALLS[call])
    torch.testing.assert_close(module(*BAG_CALLS[call]), expected, rtol=0, atol=1e-5 if bits == 8 else 2e-2)


def test_a_mean_is_not_the_sum_that_torch_ao_gives() -> None:
    mod = floats("EmbeddingBag", mode="mean")
    mean, total = nnq.EmbeddingBag.from_float(mod)(INDICES.view(2, 3)), theirs(mod)(INDICES.view(2, 3))
    torch.testing.assert_close(mean * 3, total)
    assert not torch.allclose(mean, total)


def test_weights_of_samples_go_with_sums_only() -> None:
    with pytest.raises(NotImplementedError, match="per_sample_weights"):
        ours("EmbeddingBag", mode="mean")(*BAG_CALLS["weights"])
    half = BAG_CALLS["weights"][2].half()
    module = ours("EmbeddingBag")
    torch.testing.assert_close(module(INDICES, OFFSETS, half), module(INDICES, OFFSETS, half.float()))


def test_max_norm_holds_for_every_row() -> None:
    mod = floats("Embedding", max_norm=0.5)
    before = mod.weight.detach().clone()
    module = nnq.Embedding.from_float(mod)
    assert torch.equal(mod.weight, before)
    torch.testing.assert_close(module(INDICES), mod(INDICES).detach(), rtol=0, atol=0.01)
    assert module(INDICES).norm(dim=1).max() < 0.51


@each_kind
@each_width
def test_the_weight_observer_decides_the_width(kind: str, bits: int) -> None:
    module = ours(kind, bits)
    assert module.dtype == module._packed_params.dtype == module.weight().dtype == DTYPES[bits]
    assert f"dtype={DTYPES[bits]}" in repr(module)
    assert module.weight.dtype == DTYPES[bits] and module.weight.shape == (ROWS, 6)


@each_kind
@each_width
def test_trained_embeddings_convert(kind: str, bits: int) -> None:
    qconfig = default_embedding_qat_qconfig if bits == 8 else default_embedding_qat_qconfig_4bit
    arguments = {"mode": "sum"} if kind == "EmbeddingBag" else {}
    mod = getattr(qat, kind)(ROWS, 6, qconfig=qconfig, **arguments)
    mod(INDICES.view(2, 3))
    state = copy.deepcopy(mod.state_dict())
    module = getattr(nnq, kind).from_float(mod)
    assert module.dtype == DTYPES[bits]
    expected = mod(INDICES.view(2, 3)).detach()
    torch.testing.assert_close(module(INDICES.view(2, 3)), expected, rtol=0, atol=2e-2)
    assert all(torch.equal(value, mod.state_dict()[key]) for key, value in state.items())


@each_kind
@each_width
def test_reference_modules_convert(kind: str, bits: int) -> None:
    nnqr = pytest.importorskip("torch.ao.nn.quantized.reference")
    mod = floats(kind, bits)
    observer = mod.qconfig.weight()
    observer(mod.weight)
    scale, zero_point = observer.calculate_qparams()
    qparams = {
        "qscheme": observer.qscheme,
        "dtype": observer.dtype,
        "scale": scale,
        "zero_point": zero_point,
        "axis": 0,
    }
    with quiet_ao():
        reference = getattr(nnqr, kind).from_float(mod, qparams)
    module = getattr(nnq, kind).from_reference(reference)
    assert_identical(module.weight(), getattr(nnq, kind).from_float(mod).weight())
    with pytest.raises(InvalidRequest, match="reference module"):
        getattr(nnq, kind).from_reference(mod)


@each_kind
@pytest.mark.parametrize("qconfig", [None, QConfig(nn.Identity, None)], ids=["None", "no-weight"])
def test_a_qconfig_without_weight_means_8_bits(kind: str, qconfig: Any) -> None:
    mod = floats(kind)
    mod.qconfig = qconfig
    twin = theirs(mod)  # kept, because the scales of its weight die with it
    assert_identical(getattr(nnq, kind).from_float(mod).weight(), twin.weight())


@each_kind
@pytest.mark.parametrize(
    "qconfig",
    [default_qconfig, default_per_channel_qconfig, default_dynamic_qconfig],
    ids=["per-tensor", "per-channel", "dynamic"],
)
def test_other_qconfigs_are_refused_with_the_cure(kind: str, qconfig: Any) -> None:
    mod = floats(kind)
    mod.qconfig = qconfig
    with pytest.raises(
        AssertionError, match=f"{kind} quantization is only supported with float_qparams_weight_only_qconfig"
    ):
        getattr(nnq, kind).from_float(mod)


def test_wrong_sources_are_refused() -> None:
    class Special(nn.Embedding):
        pass

    for cls, mod in (
        (nnq.Embedding, nn.Linear(2, 2)),
        (nnq.Embedding, floats("EmbeddingBag")),
        (nnq.EmbeddingBag, floats("Embedding")),
        (nnq.Embedding, Special(2, 2)),
    ):
        with pytest.raises(AssertionError, match=rf"nnq\.{cls.__name__}\.from_float only works for"):
            cls.from_float(mod)
    with pytest.raises(AssertionError, match="Embedding input float module must have qconfig defined"):
        nnq.Embedding.from_float(nn.Embedding(2, 2))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="Supports quint8 and quint4x2"):
        nnq.EmbeddingPackedParams(2, 2, torch.qint8)
    with pytest.raises(Unsupported, match=r"torch\.float16"):
        nnq.Embedding(2, 2, dtype=torch.float16)
    with pytest.raises(InvalidRequest, match="mode must be"):
        nnq.EmbeddingBag(2, 2, mode="median")
    table = from_codes(torch.ones(4, 2), torch.ones(4), torch.zeros(4), torch.quint8)
    short = from_codes(torch.ones(2, 2), torch.ones(2), torch.zeros(2), torch.quint8)
    with pytest.raises(AssertionError, match=r"expected \[4, 3\], got \[4, 2\]"):
        nnq.Embedding(4, 3, _weight=table)
    module = nnq.Embedding(4, 2, _weight=table)
    for wrong, message in (
        (torch.ones(4, 2), "quint8 or quint4x2, got torch.float32"),
        (torch.quantize_per_tensor(torch.ones(4, 2), 1.0, 0, torch.quint8), "float32 zero points"),
        (short, r"shape \(4, 2\), got \(2, 2\)"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            module.set_weight(wrong)
    assert_identical(module.weight(), table)


@pytest.mark.parametrize("index", [ROWS, -1])
def test_indices_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(RuntimeError, match="out of bounds"):
        ours("Embedding")(torch.tensor([index]))


def test_the_table_given_decides_the_width() -> None:
    table = from_codes(torch.ones(4, 2), torch.ones(4), torch.zeros(4), torch.quint4x2)
    module = nnq.Embedding(4, 2, _weight=table)
    assert module.dtype == torch.quint4x2
    module.set_weight(from_codes(torch.ones(4, 2), torch.ones(4), torch.zeros(4), torch.quint8))
    assert module.dtype == torch.quint8
    assert torch.equal(module(torch.tensor([3])), torch.ones(1, 2))


@each_kind
@each_width
def test_checkpoints_go_both_ways(kind: str, bits: int) -> None:
    nnq_ao = pytest.importorskip("torch.ao.nn.quantized")
    module = ours(kind, bits)
    with quiet_ao():
        twin = getattr(nnq_ao, kind)(ROWS, 6, _weight=module.weight(), dtype=DTYPES[bits])
    state, other = module.state_dict(), twin.state_dict()
    assert layout(state) == layout(other)
    assert dict(state._metadata) == dict(other._metadata)
    call = (INDICES.view(2, 3),)
    twin_again = getattr(nnq_ao, kind)(
        ROWS, 6, _weight=getattr(nnq, kind)(ROWS, 6, dtype=DTYPES[bits]).weight(), dtype=DTYPES[bits]
    )
    twin_again.load_state_dict(torch.load(saved(state), weights_only=True))
    again = getattr(nnq, kind)(ROWS, 6)  # of 8 bits: the checkpoint decides
    again.load_state_dict(torch.load(saved(other), weights_only=True))
    assert again.dtype == DTYPES[bits]
    assert_identical(again.weight(), module.weight())
    assert torch.equal(again(*call), module(*call)) and torch.equal(twin_again(*call), module(*call))


def test_wrong_checkpoints_are_refused() -> None:
    module = ours("Embedding")
    before = module.weight()
    for state, message in (
        ({}, "Missing key"),
        ({"weight": torch.rand(ROWS, 6)}, "Unexpected key"),
        (ours("Embedding", dim=4).state_dict(), "size mismatch"),
        ({**module.state_dict(), "extra": torch.ones(1)}, "Unexpected key"),
    ):
        with pytest.raises(RuntimeError, match=message):
            module.load_state_dict(state)
        assert_identical(module.weight(), before)


@each_kind
@each_width
@pytest.mark.parametrize("dim", [6, 5], ids=["even", "odd"])
@pytest.mark.parametrize("life", LIVES)
def test_modules_live(kind: str, bits: int, dim: int, life: str) -> None:
    module = ours(kind, bits, dim)
    module.eval()
    module.note = "mine"
    copied = LIVES[life](module)
    call = (INDICES.view(2, 3),)
    assert torch.equal(copied(*call), module(*call))
    assert not copied.training
    if life != "script":
        assert dir(copied) == dir(module)
        assert copied.note == "mine"
        assert_identical(copied.weight(), module.weight())


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2], ids=["plain", "padding"])
def test_scripted_bags_reduce_too(mode: str, padding_idx: int | None) -> None:
    module = ours("EmbeddingBag", mode=mode, padding_idx=padding_idx)
    copied = scripts_back(module)
    for call in ("offsets", "matrix"):
        assert torch.equal(copied(*BAG_CALLS[call]), module(*BAG_CALLS[call]))


def test_archives_keep_every_code() -> None:
    """Real values would not: with zero points this large, float32 cannot tell neighbouring codes apart."""
    codes = torch.randint(0, 16, (3, 6), dtype=torch.uint8)
    scales, zero_points = torch.tensor([1e-5, 3.0, 1e-20]), torch.tensor([-1e8, 0.5, 1e12])
    table = from_codes(codes, scales, zero_points, torch.quint4x2)
    assert torch.equal(codes_of(table), codes)
    module = nnq.Embedding(3, 6, _weight=table)
    weight = scripts_back(module)._packed_params._weight()
    assert torch.equal(codes_of(weight), codes)
    assert torch.equal(weight.q_per_channel_scales(), scales)
    assert torch.equal(weight.q_per_channel_zero_points(), zero_points)


def test_modules_pickled_without_our_attributes_still_run() -> None:
    module = ours("EmbeddingBag")
    state = {key: value for key, value in module.__dict__.items() if key != "padding_idx"}
    loaded = nnq.EmbeddingBag.__new__(nnq.EmbeddingBag)
    loaded.__setstate__({**state, "dtype": torch.quint8})
    assert torch.equal(loaded(INDICES, OFFSETS), module(INDICES, OFFSETS))
    assert loaded.padding_idx is None


@each_kind
@each_width
def test_quantize_dynamic_reaches_embeddings(kind: str, bits: int) -> None:
    mod = floats(kind, bits)
    expected = getattr(nnq, kind).from_float(mod).weight()
    del mod.qconfig
    converted = quantize_dynamic(nn.Sequential(mod), {getattr(nn, kind)}, dtype=DTYPES[bits])
    assert type(converted[0]) is getattr(nnq, kind)
    assert converted[0].dtype == DTYPES[bits]
    assert_identical(converted[0].weight(), expected)


@each_width
def test_the_weight_outlives_its_module(bits: int) -> None:
    """Scales that torch unpacks point into the packed weight; those of a freed one are garbage."""
    module = ours("Embedding", bits)
    kept = copy.deepcopy(module).state_dict()["_packed_params._packed_weight"]
    assert_identical(kept, module.weight())
