"""Recurrent reference layers: torch.ao's outputs bit for bit, and the float layer's whole range of inputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from observers import MinMaxObserver
from quantization.errors import InvalidRequest, Unsupported
from quantization.nn import reference
from quantization.qconfig import QConfig
from tests.quantization.nn.cells import LIVES, assert_identical, layout, saved

pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),  # torch.ao's constructors
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
PER_TENSOR = {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 0.01, "zero_point": 3}
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "RNNCell": lambda: nn.RNNCell(4, 3),
    "RNNCell-relu": lambda: nn.RNNCell(4, 3, nonlinearity="relu"),
    "LSTMCell": lambda: nn.LSTMCell(4, 3),
    "LSTMCell-no-bias": lambda: nn.LSTMCell(4, 3, bias=False),
    "GRUCell": lambda: nn.GRUCell(4, 3),
    "LSTM": lambda: nn.LSTM(4, 3),
    "LSTM-deep": lambda: nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True, dropout=0.5).eval(),
    "GRU": lambda: nn.GRU(4, 3),
    "GRU-deep": lambda: nn.GRU(4, 3, 2, bidirectional=True, bias=False),
}
CELLS = [name for name in MAKERS if "Cell" in name]
LAYERS = [name for name in MAKERS if "Cell" not in name]
each = pytest.mark.parametrize("name", MAKERS)
each_kind = pytest.mark.parametrize("kind", ["per-tensor", "per-channel"])


def qparams(mod: nn.Module, kind: str) -> dict[str, Any]:
    """One dictionary per weight, with torch.ao's obligatory flag beside them."""
    found: dict[str, Any] = {"is_decomposed": False}
    for name, weight in mod.named_parameters():
        if name.startswith("weight"):
            found[name] = PER_TENSOR
        if name.startswith("weight") and kind == "per-channel":
            rows = weight.shape[0]
            found[name] = {
                "qscheme": torch.per_channel_affine,
                "dtype": torch.qint8,
                "scale": torch.linspace(0.004, 0.02, rows),
                "zero_point": torch.arange(rows, dtype=torch.int32),
                "axis": 0,
            }
    return found


def flat(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [t for part in result for t in flat(part)]


def assert_same(ours: Any, theirs: Any) -> None:
    pairs = list(zip(flat(ours), flat(theirs), strict=True))
    assert pairs
    for mine, other in pairs:
        assert_identical(mine, other)


def sample(name: str) -> torch.Tensor:
    return torch.randn(2, 4) if name in CELLS else torch.randn(5, 2, 4)


def ours(name: str, mod: nn.Module, kind: str = "per-tensor") -> Any:
    return getattr(reference, name.partition("-")[0]).from_float(mod, qparams(mod, kind))


def oracle(name: str, mod: nn.Module, kind: str) -> Any:
    pytest.importorskip("torch.ao")
    nnqr = importlib.import_module("torch.ao.nn.quantized.reference")
    return getattr(nnqr, name.partition("-")[0]).from_float(mod, qparams(mod, kind))


@each
@each_kind
def test_equals_torch_ao(name: str, kind: str) -> None:
    mod, x = MAKERS[name](), sample(name)
    mine, theirs = ours(name, mod, kind), oracle(name, mod, kind).train(mod.training)
    assert_same(mine(x), theirs(x))
    assert layout(mine.state_dict()) == layout(theirs.state_dict())
    assert mine.state_dict()._metadata == theirs.state_dict()._metadata
    assert repr(mine) == repr(theirs)


@each
def test_checkpoints_load_both_ways(name: str) -> None:
    mod, x = MAKERS[name](), sample(name)
    mine, theirs = ours(name, mod, "per-channel"), oracle(name, mod, "per-channel").train(mod.training)
    other = MAKERS[name]()
    fresh = ours(name, other, "per-channel")
    fresh.load_state_dict(torch.load(saved(theirs.state_dict()), weights_only=True))
    assert_same(fresh(x), mine(x))
    twin = oracle(name, MAKERS[name](), "per-channel").train(mod.training)
    twin.load_state_dict(torch.load(saved(mine.state_dict()), weights_only=True))
    assert_same(twin(x), mine(x))


@pytest.mark.parametrize("name", CELLS)
@each_kind
def test_cells_give_their_weights(name: str, kind: str) -> None:
    mod = MAKERS[name]()
    mine, theirs = ours(name, mod, kind), oracle(name, mod, kind)
    for part in ("ih", "hh"):
        for get in (f"get_weight_{part}", f"get_quantized_weight_{part}"):
            assert_identical(getattr(mine, get)(), getattr(theirs, get)())


@pytest.mark.parametrize("name", LAYERS)
@each_kind
def test_layers_give_their_weights(name: str, kind: str) -> None:
    mod = MAKERS[name]()
    mine, theirs = ours(name, mod, kind), oracle(name, mod, kind)
    assert_same(mine.get_flat_weights(), theirs.get_flat_weights())
    found, expected = mine.get_quantized_weight_bias_dict(), theirs.get_quantized_weight_bias_dict()
    assert list(found) == list(expected)
    assert_same(list(found.values()), list(expected.values()))


@each
@pytest.mark.parametrize("life", [life for life in LIVES if life != "script"])
def test_survives(name: str, life: str) -> None:
    module, x = ours(name, MAKERS[name]()), sample(name)
    assert_same(LIVES[life](module)(x), module(x))


@each
def test_computes_with_the_weights_it_has_now(name: str) -> None:
    """Loading and moving replace tensors that torch's layer also keeps in a list."""
    mod, x = MAKERS[name](), sample(name)
    module = ours(name, mod)
    before = flat(module(x))[0]
    with torch.no_grad():
        module.get_parameter(module._weight_names()[0]).zero_()
    assert not torch.equal(flat(module(x))[0], before)
    assert flat(module.double()(x.double()))[0].dtype is torch.float64


@each
def test_forward_leaves_the_float_weights(name: str) -> None:
    mod, x = MAKERS[name](), sample(name)
    module = ours(name, mod)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module(x)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(p is dict(mod.named_parameters())[n] for n, p in module.named_parameters())


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_layers_take_what_the_float_layer_takes(name: str) -> None:
    mod = MAKERS[name]()
    module = ours(name, mod)
    twin = MAKERS[name]()
    for key, value in zip(module._flat_weights_names, module.get_flat_weights(), strict=True):
        setattr(twin, key, nn.Parameter(value))
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    assert_same(module(packed)[0].data, twin(packed)[0].data)
    single = torch.randn(5, 4)
    assert_same(module(single), twin(single))


def test_a_projection_works() -> None:
    mod = nn.LSTM(4, 5, proj_size=2)
    assert ours("LSTM", mod)(torch.randn(3, 1, 4))[0].shape == (3, 1, 2)


def test_an_eval_layer_does_not_drop_out() -> None:
    module, x = ours("LSTM-deep", MAKERS["LSTM-deep"]()), sample("LSTM")
    assert_same(module(x), module(x))


@each
def test_without_parameters_the_qconfig_measures(name: str) -> None:
    mod = MAKERS[name]()
    mod.qconfig = QConfig(activation=MinMaxObserver, weight=MinMaxObserver)
    module = getattr(reference, name.partition("-")[0]).from_float(mod)
    for weight in module._weight_names():
        step = getattr(module, f"{weight}_scale").item()
        assert (module._rounded(weight) - getattr(mod, weight)).abs().max() <= step * 0.51


@each
def test_without_parameters_and_qconfig_it_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="has no qconfig with a weight observer"):
        getattr(reference, name.partition("-")[0]).from_float(MAKERS[name]())


def test_wrong_requests_are_refused() -> None:
    mod = nn.LSTMCell(4, 3)
    with pytest.raises(InvalidRequest, match="weight_hh is not given"):
        reference.LSTMCell.from_float(mod, {"weight_ih": PER_TENSOR})
    with pytest.raises(InvalidRequest, match="made from LSTMCell, not from Linear"):
        reference.LSTMCell.from_float(nn.Linear(2, 2), {})
    with pytest.raises(Unsupported, match="no decomposed form"):
        reference.LSTMCell.from_float(mod, {**qparams(mod, "per-tensor"), "is_decomposed": True})
