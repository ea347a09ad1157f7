"""State dicts cross over: what torch.ao wrote loads here and the reverse, for each class and version."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from mappings.resolve import load
from tests.support import quiet_ao

pytest.importorskip("torch.ao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore:.*numerical accuracy")

HOMES = {
    "nnq": ("torch.ao.nn.quantized", "quantization.nn.quantized"),
    "nniq": ("torch.ao.nn.intrinsic.quantized", "quantization.nn.quantized"),
    "nnqd": ("torch.ao.nn.quantized.dynamic", "quantization.nn.dynamic"),
    "nniqd": ("torch.ao.nn.intrinsic.quantized.dynamic", "quantization.nn.dynamic"),
    "nnqr": ("torch.ao.nn.quantized.reference", "quantization.nn.reference"),
    "nnqat": ("torch.ao.nn.qat", "quantization.nn.qat"),
    "nniqat": ("torch.ao.nn.intrinsic.qat", "quantization.nn.qat"),
    "nnqatd": ("torch.ao.nn.qat.dynamic", "quantization.nn.qat_dynamic"),
    "nni": ("torch.ao.nn.intrinsic", "quantization.nn.fused"),
    "nnquantizable": ("torch.ao.nn.quantizable", "quantization.nn.quantizable"),
    "tq": ("torch.ao.quantization", "quantization"),
}
QAT = {
    "nnqat": "default_qat_qconfig",
    "nniqat": "default_qat_qconfig",
    "nnqatd": "default_dynamic_qat_qconfig",
}
_NORM = (4, nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4)), 0.5, 3)
CASES: dict[str, tuple[Any, ...]] = {
    "nnq.Linear": (3, 4),
    "nniq.LinearReLU": (3, 4),
    "nniq.LinearTanh": (3, 4),
    "nniq.LinearLeakyReLU": (3, 4, 0.1),
    **{f"nnq.Conv{n}d": (4, 8, 3) for n in (1, 2, 3)},
    **{f"nnq.ConvTranspose{n}d": (4, 8, 3) for n in (1, 2)},
    **{f"nniq.ConvReLU{n}d": (4, 8, 3) for n in (1, 2, 3)},
    "nniq.ConvAdd2d": (4, 8, 3),
    "nniq.ConvAddReLU2d": (4, 8, 3),
    "nnq.Embedding": (5, 4),
    "nnq.EmbeddingBag": (5, 4),
    "nnq.BatchNorm2d": (4,),
    "nnq.BatchNorm3d": (4,),
    "nniq.BNReLU2d": (4,),
    "nniq.BNReLU3d": (4,),
    "nnq.LayerNorm": ((4,), *_NORM[1:]),
    "nnq.GroupNorm": (2, *_NORM),
    **{f"nnq.InstanceNorm{n}d": _NORM for n in (1, 2, 3)},
    "nnq.Hardswish": (0.5, 3),
    "nnq.LeakyReLU": (0.5, 3),
    "nnq.ReLU6": (),
    "nnq.Dropout": (),
    "nnq.Quantize": (0.5, 3, torch.quint8),
    "nnq.DeQuantize": (),
    "nnq.QFunctional": (),
    "nnq.FloatFunctional": (),
    "nnqd.Linear": (3, 4),
    "nniqd.LinearReLU": (3, 4),
    **{f"nnqd.Conv{n}d": (4, 8, 3) for n in (1, 2, 3)},
    **{f"nnqd.ConvTranspose{n}d": (4, 8, 3) for n in (1, 2)},
    "nnqd.LSTM": (3, 4, 2),
    "nnqd.GRU": (3, 4, 2),
    "nnqd.LSTMCell": (3, 4),
    "nnqd.GRUCell": (3, 4),
    "nnqd.RNNCell": (3, 4),
    "nnqr.Linear": (3, 4),
    **{f"nnqr.Conv{n}d": (4, 8, 3) for n in (1, 2, 3)},
    **{f"nnqr.ConvTranspose{n}d": (4, 8, 3) for n in (1, 2, 3)},
    "nnqr.Embedding": (5, 4),
    "nnqr.EmbeddingBag": (5, 4),
    "nnqat.Linear": (3, 4),
    **{f"nnqat.Conv{n}d": (4, 8, 3) for n in (1, 2, 3)},
    "nnqatd.Linear": (3, 4),
    "nniqat.LinearReLU": (3, 4),
    "nniqat.LinearBn1d": (3, 4),
    **{f"nniqat.ConvBn{n}d": (4, 8, 3) for n in (1, 2, 3)},
    **{f"nniqat.ConvBnReLU{n}d": (4, 8, 3) for n in (1, 2, 3)},
    **{f"nniqat.ConvReLU{n}d": (4, 8, 3) for n in (1, 2, 3)},
    "nnquantizable.LSTM": (3, 4, 2),
    "nnquantizable.LSTMCell": (3, 4),
    "nnquantizable.MultiheadAttention": (4, 2),
    "tq.MinMaxObserver": (),
    "tq.MovingAverageMinMaxObserver": (),
    "tq.PerChannelMinMaxObserver": (),
    "tq.MovingAveragePerChannelMinMaxObserver": (),
    "tq.HistogramObserver": (),
    "tq.FixedQParamsObserver": (0.5, 3),
    "tq.PlaceholderObserver": (),
    "tq.NoopObserver": (),
    "tq.RecordingObserver": (),
    "tq.FakeQuantize": (),
    "tq.FusedMovingAvgObsFakeQuantize": (),
}
# torch.ao saves nothing of these, or objects that only it can read.
OURS_ONLY = {
    "nnq.ELU": (0.5, 3),
    "nnq.Sigmoid": (0.5, 3),
    "nnq.Softmax": (1, 0.5, 3),
    "nnq.PReLU": (0.5, 3),
}


def made(case: str, side: int, arguments: tuple[Any, ...]) -> Any:
    """A new module of the case, of torch.ao (side 0) or ours (side 1)."""
    home, _, name = case.partition(".")
    options = {}
    if home in QAT:
        options["qconfig"] = getattr(load(HOMES["tq"][side]), QAT[home])
    with quiet_ao():
        return getattr(load(HOMES[home][side]), name)(*arguments, **options)


def filled(module: Any) -> Any:
    """The module with values that differ from those of a new one."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and not tensor.is_quantized:
            tensor.data = torch.rand_like(tensor) + 0.1
    for part in module.modules():
        if hasattr(part, "set_weight_bias") and callable(getattr(part, "_weight_bias", None)):
            _fill_packed(part)
    return module


def _fill_packed(part: Any) -> None:
    held = part._weight_bias()
    if not isinstance(held, tuple):  # recurrent: a dictionary by name
        new = {side: {k: _random_like(v) for k, v in named.items()} for side, named in held.items()}
        nested = hasattr(part, "_packed_weight_ih") and type(part).__module__.startswith("torch.")
        part.set_weight_bias(new if nested else {**new["weight"], **new["bias"]})
        return
    weight, bias = held
    part.set_weight_bias(_random_like(weight), None if bias is None else torch.rand_like(bias))
    if hasattr(part, "scale"):
        part.scale, part.zero_point = 0.25, 7


def _random_like(value: torch.Tensor) -> torch.Tensor:
    if not value.is_quantized:
        return torch.rand_like(value)
    return torch.quantize_per_tensor(torch.randn(value.shape), 0.05, 0, torch.qint8)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def plain(value: Any) -> Any:
    """A value of a state dict in a form that `==` compares."""
    if isinstance(value, torch.Tensor):
        if value.is_quantized:
            per_channel = value.qscheme() != torch.per_tensor_affine
            scale = value.q_per_channel_scales().tolist() if per_channel else value.q_scale()
            return value.dtype, value.int_repr().tolist(), scale
        return value.dtype, value.tolist()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value if not isinstance(value, torch.ScriptObject) else plain(value.__getstate__())


def contents(module: Any) -> dict[str, Any]:
    return {key: plain(value) for key, value in module.state_dict().items()}


def versions(module: Any) -> dict[str, Any]:
    return {path: entry.get("version") for path, entry in module.state_dict()._metadata.items()}


@pytest.mark.parametrize("writer", [0, 1], ids=["from torch.ao", "to torch.ao"])
@pytest.mark.parametrize("case", CASES)
def test_state_dict_crosses_over(case: str, writer: int) -> None:
    source = filled(made(case, writer, CASES[case]))
    target = made(case, 1 - writer, CASES[case])
    target.load_state_dict(through_a_file(source.state_dict()))
    assert contents(target) == contents(source)
    assert list(target.state_dict()) == list(source.state_dict())
    assert versions(target) == versions(source)


@pytest.mark.parametrize("case", OURS_ONLY)
def test_state_that_torch_ao_forgets_is_no_error(case: str) -> None:
    """Its files lack the numbers: they load, and ours stay as they were made."""
    target = made(case, 1, OURS_ONLY[case])
    before = contents(target)
    target.load_state_dict(through_a_file(made(case, 0, OURS_ONLY[case]).state_dict()))
    assert contents(target) == before


# --- the versions that torch.ao once wrote, made from today's files ---

State = OrderedDict[str, Any]


def _versioned(state: State, path: str, version: int | None) -> None:
    entry = state._metadata.setdefault(path, {})  # type: ignore[attr-defined]
    entry.pop("version", None)
    if version is not None:
        entry["version"] = version


def _linear_2(state: State) -> None:
    weight, bias = state.pop("_packed_params._packed_params")
    state["_packed_params.weight"], state["_packed_params.bias"] = weight, bias
    _versioned(state, "_packed_params", 2)


def _linear_1(state: State) -> None:
    weight, bias = state.pop("_packed_params._packed_params")
    del state["_packed_params.dtype"]
    state["weight"], state["bias"] = weight, bias
    for path in ("", "_packed_params"):
        _versioned(state, path, 1)


def _conv_float64(state: State) -> None:
    state["scale"] = state["scale"].double()


def _root(version: int | None) -> Any:
    return lambda state: _versioned(state, "", version)


def _without_eps(state: State) -> None:
    del state["eps"]
    _versioned(state, "", 1)


def _histogram_2(state: State) -> None:
    state["min_val"], state["max_val"] = torch.tensor([]), torch.tensor([])
    _versioned(state, "", 2)


def _conv_bn_1(state: State) -> None:
    old = {"bn.weight": "gamma", "bn.bias": "beta"}
    for key in [key for key in state if key.startswith("bn.")]:
        state[old.get(key, key.removeprefix("bn."))] = state.pop(key)
    _versioned(state, "", 1)


OLD = {
    "linear version 2": ("nnq.Linear", _linear_2),
    "linear version 1": ("nnq.Linear", _linear_1),
    "fused linear version 2": ("nniq.LinearReLU", _linear_2),
    "dynamic linear version 1": ("nnqd.Linear", _linear_1),
    "dynamic linear version 3": ("nnqd.Linear", _root(3)),
    "dynamic fused linear version 3": ("nniqd.LinearReLU", _root(3)),
    "convolution with a float64 scale": ("nnq.Conv2d", _conv_float64),
    "lstm version 1": ("nnqd.LSTM", _root(1)),
    "gru without a version": ("nnqd.GRU", _root(None)),
    "observer version 1": ("tq.MinMaxObserver", _without_eps),
    "histogram version 2, never run": ("tq.HistogramObserver", _histogram_2),
    "convolution with batch norm version 1": ("nniqat.ConvBn2d", _conv_bn_1),
    "convolution with batch norm and relu version 1": ("nniqat.ConvBnReLU1d", _conv_bn_1),
}


@pytest.mark.parametrize("age", OLD)
def test_old_versions_load_as_in_torch_ao(age: str) -> None:
    case, downgrade = OLD[age]
    state = filled(made(case, 0, CASES[case])).state_dict()
    downgrade(state)
    theirs, ours = made(case, 0, CASES[case]), made(case, 1, CASES[case])
    theirs.load_state_dict(through_a_file(state))
    ours.load_state_dict(through_a_file(state))
    assert contents(ours) == contents(theirs)
    assert getattr(ours, "version", None) == getattr(theirs, "version", None)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["PerChannelMinMaxObserver", "MovingAveragePerChannelMinMaxObserver"])
def test_statistics_of_old_per_channel_observers_are_read(kind: str, version: int) -> None:
    """torch.ao makes room for them and leaves the memory as it finds it."""
    observer = made(f"tq.{kind}", 0, ())
    observer(torch.randn(3, 4))
    state = observer.state_dict()
    for name in ("min_val", "max_val"):
        state[name + "s"] = state.pop(name)
    _versioned(state, "", version)
    ours = made(f"tq.{kind}", 1, ())
    ours.load_state_dict(through_a_file(state))
    assert torch.equal(ours.min_val, observer.min_val) and torch.equal(ours.max_val, observer.max_val)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("nnq.", "nniq.", "nnqr."))])
def test_files_load_with_weights_only(case: str) -> None:
    file = io.BytesIO()
    torch.save(filled(made(case, 1, CASES[case])).state_dict(), file)
    file.seek(0)
    target = made(case, 1, CASES[case])
    target.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("case", ["nnq.Linear", "nnqd.Linear", "nnq.Conv2d", "nnq.Embedding"])
def test_a_plain_dictionary_without_versions_loads(case: str) -> None:
    source = filled(made(case, 1, CASES[case]))
    target = made(case, 1, CASES[case])
    target.load_state_dict(dict(source.state_dict()))
    assert contents(target) == contents(source)
