"""Dynamic recurrent layers and cells: torch.ao's bits where it answers, float values where it fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from quantization import quantize_dynamic
from quantization.backends import native_recurrent
from quantization.errors import InvalidRequest, QuantizationWarning, Unsupported
from quantization.nn import dynamic as nnqd, recurrent
from quantization.qconfig import (
    QConfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    per_channel_dynamic_qconfig,
)
from quantization.qparams import get_qparam_dict
from quantization.workflows.tables import get_default_dynamic_quant_module_mappings
from tests.quantization.nn.cells import LIVES, assert_identical, saved
from tests.support import quiet_ao, quiet_jit

QCONFIGS = {
    "int8": default_dynamic_qconfig,
    "per-channel": per_channel_dynamic_qconfig,
    "float16": float16_dynamic_qconfig,
}
LAYERS = ["LSTM", "GRU"]
CELLS = ["LSTMCell", "GRUCell", "RNNCell"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "deep-bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch-first": {"num_layers": 2, "batch_first": True},
}
# Of layers a compiled kernel may run instead, whose last bits are its own: test_recurrent_native.py.
by_torchs_operators = pytest.mark.usefixtures("torchs_operators")
each_width = pytest.mark.parametrize("width", QCONFIGS)
each_layer = pytest.mark.parametrize("kind", LAYERS)
each_cell = pytest.mark.parametrize("kind", CELLS)
each_kind = pytest.mark.parametrize("kind", [*LAYERS, "RNN", *CELLS])


@pytest.fixture
def torchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_recurrent, "can_run", lambda tensors: False)


def floats(kind: str, width: str = "int8", **arguments: Any) -> Any:
    """A float layer or cell with the qconfig of that width."""
    mod = getattr(nn, kind)(4, 5, **arguments)
    mod.qconfig = QCONFIGS[width]
    return mod


def ours(kind: str, width: str = "int8", **arguments: Any) -> Any:
    return getattr(nnqd, kind).from_float(floats(kind, width, **arguments))


def theirs(mod: nn.Module) -> Any:
    """torch.ao's module from the same float one."""
    oracle = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    with quiet_ao():
        return getattr(oracle, type(mod).__name__).from_float(mod)


def skip_if_float16_is_not_for(engine: str, width: str) -> None:
    if width == "float16" and engine in ("qnnpack", "onednn"):
        pytest.skip(f"{engine} has no float16 kernels")


def flat(result: Any) -> list[Tensor]:
    """Every tensor in an output, in order."""
    if isinstance(result, Tensor):
        return [result]
    if hasattr(result, "batch_sizes"):  # TorchScript gives a named tuple of its own
        return [result.data, result.batch_sizes]
    return [tensor for part in result for tensor in flat(part)]


def assert_same(one: Any, other: Any) -> None:
    pairs = list(zip(flat(one), flat(other), strict=True))
    assert pairs
    for a, b in pairs:
        assert_identical(a, b)


def assert_close(one: Any, other: Any, atol: float = 0.05) -> None:
    for a, b in zip(flat(one), flat(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def state_of(kind: str, *shape: int) -> Any:
    """A random hidden state, and a cell state beside it for the LSTM."""
    return (torch.randn(*shape), torch.randn(*shape)) if kind.startswith("LSTM") else torch.randn(*shape)


def ragged(enforce_sorted: bool = False) -> PackedSequence:
    lengths = [5, 4, 1] if enforce_sorted else [2, 5, 1]
    return pack_sequence([torch.randn(n, 4) for n in lengths], enforce_sorted=enforce_sorted)


@by_torchs_operators
@each_width
@each_layer
@pytest.mark.parametrize("form", FORMS)
def test_layers_have_the_bits_of_torch_ao(engine: str, kind: str, width: str, form: str) -> None:
    skip_if_float16_is_not_for(engine, width)
    mod = floats(kind, width, **FORMS[form])
    module, twin = getattr(nnqd, kind).from_float(mod), theirs(mod)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    x = torch.randn(3, 3, 4)
    assert_same(module(x), twin(x))
    hx = state_of(kind, rows, 3, 5)
    assert_same(module(x, hx), twin(x, hx))
    if form != "batch-first":
        for packed in (ragged(), ragged(True)):
            assert_same(module(packed, hx), twin(packed, hx))
            assert_same(module(packed), twin(packed))
    assert repr(module) == repr(twin)


@each_width
@pytest.mark.parametrize(
    "kind, arguments",
    [("LSTMCell", {}), ("GRUCell", {}), ("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"})],
    ids=["LSTMCell", "GRUCell", "RNNCell", "RNNCell-relu"],
)
def test_cells_have_the_bits_of_torch_ao(
    engine: str, kind: str, arguments: dict[str, str], width: str
) -> None:
    skip_if_float16_is_not_for(engine, width)
    mod = floats(kind, width, **arguments)
    module, twin = getattr(nnqd, kind).from_float(mod), theirs(mod)
    x, hx = torch.randn(3, 4), state_of(kind, 3, 5)
    assert_same(module(x), twin(x))
    assert_same(module(x, hx), twin(x, hx))
    assert repr(module) == repr(twin)


@each_layer
def test_dropout_between_layers_is_that_of_torch_ao(kind: str) -> None:
    mod = floats(kind, num_layers=3, dropout=0.5)
    module, twin = getattr(nnqd, kind).from_float(mod), theirs(mod)
    assert not module.training and module.dropout == 0.5
    x = torch.randn(3, 2, 4)
    still = flat(module(x))[0]
    results = []
    for layer in (module.train(), twin.train()):
        torch.manual_seed(1)
        results.append(layer(x))
    assert_same(*results)
    assert not torch.equal(flat(results[0])[0], still)


@each_width
@each_kind
def test_weights_are_the_float_ones_rounded(kind: str, width: str) -> None:
    mod = floats(kind, width)
    before = copy.deepcopy(mod.state_dict())
    module = getattr(nnqd, kind).from_float(mod)
    for name, tensor in {**module.get_weight(), **module.get_bias()}.items():
        value = tensor.dequantize() if tensor.is_quantized else tensor
        torch.testing.assert_close(value, getattr(mod, name).detach(), rtol=0, atol=5e-3)
    assert all(torch.equal(value, mod.state_dict()[name]) for name, value in before.items())
    if kind != "RNN":
        twin = theirs(mod)
        for got, expected in ((module.get_weight(), twin.get_weight()), (module.get_bias(), twin.get_bias())):
            assert got.keys() == expected.keys()
            for name in got:
                assert_identical(got[name], expected[name])


@each_width
@each_kind
def test_weights_can_be_set(kind: str, width: str) -> None:
    module, other = ours(kind, width), ours(kind, width)
    x = torch.randn(3, 2, 4) if kind in (*LAYERS, "RNN") else torch.randn(2, 4)
    other.set_weight_bias({**module.get_weight(), **module.get_bias()})
    assert_same(other(x), module(x))
    for wrong in ({}, {name: tensor for name, tensor in module.get_weight().items() if "ih" in name}):
        with pytest.raises(InvalidRequest, match="lack"):
            other.set_weight_bias(wrong)
    assert_same(other(x), module(x))


@each_width
@each_kind
def test_a_missing_bias_is_zero(kind: str, width: str) -> None:
    mod = floats(kind, width, bias=False)
    module = getattr(nnqd, kind).from_float(mod)
    x = torch.randn(3, 2, 4) if kind in (*LAYERS, "RNN") else torch.randn(2, 4)
    assert_close(module(x), mod(x))
    assert "bias=False" in repr(module)
    assert all(not bias.any() for bias in module.get_bias().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_kind
def test_other_float_dtypes_go_in_and_come_out(kind: str, dtype: torch.dtype) -> None:
    module = ours(kind)
    layer = kind in (*LAYERS, "RNN")
    x = (torch.randn(3, 2, 4) if layer else torch.randn(2, 4)).to(dtype)
    hx = state_of(kind, *((1, 2, 5) if layer else (2, 5)))
    low = tuple(part.to(dtype) for part in hx) if isinstance(hx, tuple) else hx.to(dtype)
    back = tuple(part.float() for part in low) if isinstance(low, tuple) else low.float()
    got, expected = flat(module(x, low)), flat(module(x.float(), back))
    assert [y.dtype for y in got] == [dtype] * len(got)
    for y, z in zip(got, expected, strict=True):
        assert torch.equal(y, z.to(dtype))
    if layer:
        packed = ragged()
        assert flat(module(packed.to(dtype)))[0].dtype == dtype


@each_kind
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-first", "batch-first"])
def test_input_without_a_batch_is_a_batch_of_one(kind: str, batch_first: bool) -> None:
    layer = kind in (*LAYERS, "RNN")
    mod = floats(kind, **({"batch_first": batch_first} if layer else {}))
    module = getattr(nnqd, kind).from_float(mod)
    x = torch.randn(3, 4) if layer else torch.randn(4)
    hx = state_of(kind, *((1, 5) if layer else (5,)))
    for arguments in ((x,), (x, hx)):
        got, expected = flat(module(*arguments)), flat(mod(*arguments))
        assert [y.shape for y in got] == [y.shape for y in expected]
        assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # the float one's
@each_width
@pytest.mark.parametrize("form", FORMS)
def test_projections_follow_the_float_layer(engine: str, width: str, form: str) -> None:
    skip_if_float16_is_not_for(engine, width)
    mod = floats("LSTM", width, proj_size=3, **FORMS[form]).eval()
    module = nnqd.LSTM.from_float(mod)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    x, hx = torch.randn(4, 4, 4), (torch.randn(rows, 4, 3), torch.randn(rows, 4, 5))
    assert_close(module(x), mod(x))
    assert_close(module(x, hx), mod(x, hx))
    if form != "batch-first":
        packed = ragged()
        hx = hx[0][:, :3], hx[1][:, :3]
        assert_close(module(packed, hx), mod(packed, hx))
    assert "proj_size=3" in repr(module)
    assert {name for name in module.get_weight() if "hr" in name} == {
        name for name in mod.state_dict() if "weight_hr" in name
    }


@each_width
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("form", FORMS)
def test_plain_rnns_follow_the_float_layer(engine: str, width: str, nonlinearity: str, form: str) -> None:
    skip_if_float16_is_not_for(engine, width)
    mod = floats("RNN", width, nonlinearity=nonlinearity, **FORMS[form]).eval()
    module = nnqd.RNN.from_float(mod)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    x, hx = torch.randn(4, 3, 4), torch.randn(rows, 3 if form != "batch-first" else 4, 5)
    assert_close(module(x), mod(x))
    assert_close(module(x, hx), mod(x, hx))
    if form != "batch-first":
        packed = ragged()
        assert_close(module(packed, hx), mod(packed, hx))


def test_steps_agree_with_the_kernel_of_the_whole_layer() -> None:
    """The kernel's own weights, run step by step as projections are."""
    mod = floats("LSTM", "float16", num_layers=2, bidirectional=True)
    module = nnqd.LSTM.from_float(mod)
    stepped = nn.ModuleList()
    for layer, _, suffix in module._places():
        cell = nnqd.LSTMCell(4 if layer == 0 else 10, 5, dtype=torch.float16)
        named = {**module.get_weight(), **module.get_bias()}
        cell.set_weight_bias(
            {name.removesuffix(suffix): named[name] for name in named if name.endswith(suffix)}
        )
        stepped.append(cell)
    packed = ragged()
    expected = module(packed)
    module._all_weight_values, module.stepwise = stepped, True
    assert_close(module(packed), expected, atol=1e-4)


@each_kind
def test_dropout_and_training_survive(kind: str) -> None:
    if kind in CELLS:
        assert ours(kind).training and not getattr(nnqd, kind).from_float(floats(kind).eval()).training
    else:
        with pytest.warns(QuantizationWarning, match="between layers"):
            getattr(nnqd, kind)(4, 5, dropout=0.5)
        module = ours(kind, num_layers=2, dropout=0.5)
        assert module.dropout == 0.5 and "dropout=0.5" in repr(module)


@by_torchs_operators
@each_width
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_checkpoints_go_both_ways(kind: str, width: str) -> None:
    mod, other = floats(kind, width), floats(kind, width)
    module, twin = getattr(nnqd, kind).from_float(mod), theirs(other)
    state, their_state = module.state_dict(), twin.state_dict()
    assert list(state) == list(their_state)
    assert dict(state._metadata) == dict(their_state._metadata)
    x = torch.randn(3, 2, 4) if kind in LAYERS else torch.randn(2, 4)
    before, expected = module(x), twin(x)
    fresh, their_fresh = getattr(nnqd, kind)(4, 5), theirs(other)  # ours of int8: the checkpoint decides
    fresh.load_state_dict(torch.load(saved(their_state), weights_only=False))
    their_fresh.load_state_dict(torch.load(saved(state), weights_only=False))
    assert_same(fresh(x), expected)
    assert_same(their_fresh(x), before)
    assert getattr(fresh, "dtype", None) == getattr(twin, "dtype", None)
    assert getattr(fresh, "weight_dtype", None) == getattr(module, "weight_dtype", None)


@pytest.mark.parametrize("arguments", [{"proj_size": 3, "num_layers": 2}], ids=["proj"])
def test_projected_checkpoints_come_back(arguments: dict[str, Any]) -> None:
    module = ours("LSTM", **arguments)
    fresh = nnqd.LSTM(4, 5, **arguments)
    fresh.load_state_dict(torch.load(saved(module.state_dict()), weights_only=False))
    x = torch.randn(3, 2, 4)
    assert_same(fresh(x), module(x))


def test_the_version_of_a_checkpoint_is_kept() -> None:
    module = ours("LSTM")
    state = module.state_dict()
    assert module.version == 2
    del state._metadata
    fresh = nnqd.LSTM(4, 5)
    fresh.load_state_dict(state)
    assert fresh.version is None
    flags = []
    for layer in (fresh, module):
        layer.set_weight_bias({**module.get_weight(), **module.get_bias()})
        flags.append(layer._all_weight_values[0].param.__getstate__()[0][3])
    assert flags == [[0], [1]]


@pytest.mark.parametrize(
    "kind, other",
    [("LSTM", {}), ("LSTM", {"num_layers": 2}), ("GRU", {}), ("GRUCell", {}), ("RNN", {})],
    ids=["hidden", "layers", "gates", "cell", "rnn"],
)
def test_checkpoints_of_other_layers_are_refused(kind: str, other: dict[str, Any]) -> None:
    module = getattr(nnqd, kind)(4, 5, **other)
    source = nnqd.LSTMCell(4, 5) if kind == "GRUCell" else nnqd.LSTM(4, 5 if kind == "GRU" or other else 6)
    x = torch.randn(3, 2, 4) if not kind.endswith("Cell") else torch.randn(2, 4)
    before = module(x)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        module.load_state_dict(source.state_dict())
    if not other:
        assert_same(module(x), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})


@each_width
@each_kind
@pytest.mark.parametrize("life", LIVES)
def test_modules_live(kind: str, width: str, life: str, request: pytest.FixtureRequest) -> None:
    if life == "script":  # which has torch's operators
        request.getfixturevalue("torchs_operators")
    layer = kind in (*LAYERS, "RNN")
    module = ours(kind, width, **({"num_layers": 2, "bidirectional": True} if layer else {})).eval()
    module.note = "mine"
    x = torch.randn(3, 2, 4) if layer else torch.randn(2, 4)
    # A layer alone has no `forward` once it is an archive, as in torch.ao; inside another module it has.
    copied = LIVES[life](nn.Sequential(module).eval() if life == "script" and layer else module)
    assert_same(copied(x), module(x))
    assert not copied.training
    if life != "script":
        assert dir(copied) == dir(module)
        assert copied.note == "mine"


class _Tensors(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, _ = self.layer(x)
        return output, output


class _Packed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: PackedSequence) -> PackedSequence:
        output, _ = self.layer(x)
        return output


SCRIPTED = {
    "LSTM": ("LSTM", {"num_layers": 2, "bidirectional": True}),
    "GRU": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "RNN": ("RNN", {"num_layers": 2, "bidirectional": True}),
    "projected": ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
}


@by_torchs_operators
@pytest.mark.parametrize("case", SCRIPTED)
def test_scripts_take_tensors_and_packed_sequences(case: str) -> None:
    kind, arguments = SCRIPTED[case]
    module = ours(kind, **arguments)
    x, packed = torch.randn(3, 2, 4), ragged()
    with quiet_jit():
        alone = torch.jit.script(module)
        assert_same(alone(x), module(x))
        assert_same(alone(packed), module(packed))
    assert_same(LIVES["script"](_Tensors(module))(x)[0], module(x)[0])
    assert_same(LIVES["script"](_Tensors(module))(x[:, 0])[0], module(x[:, 0])[0])
    with quiet_jit():
        assert_same(torch.jit.script(_Packed(module))(packed), module(packed)[0])


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # torch.ao's
@each_width
@pytest.mark.parametrize("kind", ["LSTM", *CELLS])
@pytest.mark.parametrize("library", ["quantization.nn.reference", "torch.ao.nn.quantized.reference"])
def test_reference_modules_convert(library: str, kind: str, width: str) -> None:
    nnqr = pytest.importorskip(library)
    mod = floats(kind, width)
    qparams: dict[str, Any] = {"is_decomposed": False}
    for name, weight in mod.named_parameters():
        if name.startswith("weight"):
            observer = mod.qconfig.weight()
            observer(weight)
            qparams[name] = get_qparam_dict(observer)
    with quiet_ao():
        reference = getattr(nnqr, kind).from_float(mod, qparams)
    module = getattr(nnqd, kind).from_reference(reference)
    x = torch.randn(3, 2, 4) if kind == "LSTM" else torch.randn(2, 4)
    assert_same(module(x), getattr(nnqd, kind).from_float(mod)(x))
    with pytest.raises(InvalidRequest, match="reference"):
        getattr(nnqd, kind).from_reference(mod)


BAD_CALLS = {
    "LSTM-rank": ("LSTM", (torch.ones(4),), "input must have 3 dimensions"),
    "LSTM-width": (
        "LSTM",
        (torch.ones(3, 2, 5),),
        "input.size.-1. must be equal to input_size. Expected 4, got 5",
    ),
    "LSTM-hidden": (
        "LSTM",
        (torch.ones(3, 2, 4), (torch.ones(1, 3, 5), torch.ones(1, 2, 5))),
        r"Expected hidden\[0\] size \(1, 2, 5\), got \[1, 3, 5\]",
    ),
    "LSTM-cell": (
        "LSTM",
        (torch.ones(3, 2, 4), (torch.ones(1, 2, 5), torch.ones(1, 2, 6))),
        r"Expected hidden\[1\] size \(1, 2, 5\), got \[1, 2, 6\]",
    ),
    "GRU-hidden": (
        "GRU",
        (torch.ones(3, 2, 4), torch.ones(1, 3, 5)),
        r"Expected hidden size \(1, 2, 5\), got \[1, 3, 5\]",
    ),
    "RNN-hidden": ("RNN", (torch.ones(3, 2, 4), torch.ones(1, 2, 6)), "Expected hidden size"),
    "cell-rank": ("GRUCell", (torch.ones(1, 2, 4),), "input must have 2 dimensions"),
    "cell-width": ("LSTMCell", (torch.ones(2, 5),), "input has inconsistent input_size: got 5, expected 4"),
    "cell-batch": (
        "RNNCell",
        (torch.ones(2, 4), torch.ones(3, 5)),
        "Input batch size 2 doesn't match hidden batch size 3",
    ),
    "cell-hidden": (
        "LSTMCell",
        (torch.ones(2, 4), (torch.ones(2, 5), torch.ones(2, 6))),
        r"hidden\[1\] has inconsistent hidden_size: got 6, expected 5",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_wrong_calls_are_refused(case: str) -> None:
    kind, arguments, message = BAD_CALLS[case]
    with pytest.raises(RuntimeError, match=message):
        ours(kind)(*arguments)


@each_kind
def test_wrong_sources_are_refused(kind: str) -> None:
    cls = getattr(nnqd, kind)
    with pytest.raises(AssertionError, match="Input float module must have qconfig defined"):
        cls.from_float(getattr(nn, kind)(4, 5))
    special = type("Special", (getattr(nn, kind),), {})(4, 5)
    for wrong in (nn.Linear(4, 5), special):
        with pytest.raises(
            AssertionError, match=r"nn\.quantized\.dynamic\.RNN\w*Base\.from_float only works for"
        ):
            cls.from_float(wrong)
    mod = floats(kind)
    mod.qconfig = float_qparams_weight_only_qconfig
    with pytest.raises(RuntimeError, match=r"Unsupported dtype for dynamic RNN quantization: torch\.quint8"):
        cls.from_float(mod)


@each_kind
@pytest.mark.parametrize("qconfig", [None, QConfig(nn.Identity, None)], ids=["None", "no-weight"])
def test_a_qconfig_without_weight_means_int8(kind: str, qconfig: Any) -> None:
    mod = floats(kind)
    expected = getattr(nnqd, kind).from_float(mod).get_weight()
    mod.qconfig = qconfig
    got = getattr(nnqd, kind).from_float(mod).get_weight()
    for name in expected:
        assert_identical(got[name], expected[name])


def test_the_bases_choose_the_class() -> None:
    assert type(recurrent.RNNBase.from_float(floats("GRU"))) is nnqd.GRU
    assert type(recurrent.RNNCellBase.from_float(floats("GRUCell"))) is nnqd.GRUCell
    with pytest.raises(AssertionError, match="only works for"):
        nnqd.LSTM.from_float(floats("GRU"))


BAD_ARGUMENTS = {
    "dtype": (lambda: nnqd.LSTM(4, 5, dtype=torch.float32), Unsupported, "torch.qint8 or torch.float16"),
    "cell-dtype": (
        lambda: nnqd.LSTMCell(4, 5, dtype=torch.float32),
        Unsupported,
        "torch.qint8 or torch.float16",
    ),
    "dropout": (lambda: nnqd.GRU(4, 5, 2, dropout=1.5), ValueError, r"number in range \[0, 1\]"),
    "dropout-bool": (lambda: nnqd.GRU(4, 5, 2, dropout=True), ValueError, r"number in range \[0, 1\]"),
    "mode": (lambda: recurrent.RNNBase("CNN", 4, 5), ValueError, "Unrecognized RNN mode: CNN"),
    "proj": (lambda: nnqd.LSTM(4, 5, proj_size=5), InvalidRequest, "less than hidden_size 5"),
    "proj-gru": (lambda: nnqd.GRU(4, 5, proj_size=2), InvalidRequest, "in mode GRU"),
    "rnn": (lambda: nnqd.RNN(4, 5, nonlinearity="elu"), InvalidRequest, "Unknown nonlinearity: elu"),
    "rnn-cell": (lambda: nnqd.RNNCell(4, 5, nonlinearity="elu"), InvalidRequest, "Unknown nonlinearity: elu"),
    "pack": (
        lambda: recurrent.pack_weight_bias(torch.ones(2, 2), None, torch.qint8),
        InvalidRequest,
        "must be a tensor of qint8, got torch.float32",
    ),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_wrong_arguments_are_refused(case: str) -> None:
    make, error, message = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        make()


def test_float16_is_refused_by_name_where_the_engine_lacks_it(engine: str) -> None:
    if engine not in ("qnnpack", "onednn"):
        assert ours("LSTM", "float16").dtype == torch.float16
        return
    for kind in ("LSTM", "GRUCell"):
        with pytest.raises(Unsupported, match=f"'{engine}', which has no kernels for float16"):
            ours(kind, "float16")


@pytest.mark.parametrize("width", ["int8", "float16"])
def test_quantize_dynamic_reaches_every_kind(width: str) -> None:
    model = nn.ModuleDict({kind: getattr(nn, kind)(4, 5) for kind in [*LAYERS, *CELLS]})
    converted = quantize_dynamic(model, dtype=torch.qint8 if width == "int8" else torch.float16)
    for kind, module in converted.items():
        assert type(module) is getattr(nnqd, kind)
    mapping = {**get_default_dynamic_quant_module_mappings(), nn.RNN: nnqd.RNN}
    plain = quantize_dynamic(nn.Sequential(nn.RNN(4, 5)), {nn.RNN}, mapping=mapping)
    assert type(plain[0]) is nnqd.RNN


def test_layers_pickled_by_torch_ao_get_what_they_lack() -> None:
    module = ours("LSTM")
    state = {k: v for k, v in module.__dict__.items() if k not in ("proj_size", "stepwise")}
    loaded = nnqd.LSTM.__new__(nnqd.LSTM)
    loaded.__setstate__(state)
    x = torch.randn(3, 2, 4)
    assert_same(loaded(x), module(x))


def test_permutations_reorder_one_dimension() -> None:
    x, order = torch.arange(6).view(1, 3, 2), torch.tensor([2, 0, 1])
    assert recurrent.apply_permutation(x, order).tolist() == [[[4, 5], [0, 1], [2, 3]]]
    assert recurrent.apply_permutation(x, torch.tensor([1, 0]), 2).tolist() == [[[1, 0], [3, 2], [5, 4]]]
