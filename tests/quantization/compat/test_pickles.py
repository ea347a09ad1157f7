"""`compat.load`: whole pickled models, and the names it takes and refuses."""

from __future__ import annotations

import io
import os
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn

import quantization
from mappings.resolve import load as module_named
from quantization.compat import load
from quantization.compat.pickles import Names, counterpart
from tests.support import quiet_ao


def pickled(model: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


AO = {
    "torch.ao.nn.quantized": {
        "Linear": (3, 4),
        "Conv1d": (2, 3, 3),
        "Conv2d": (2, 3, 3),
        "Conv3d": (2, 3, 3),
        "ConvTranspose2d": (2, 3, 3),
        "Embedding": (5, 4),
        "EmbeddingBag": (5, 4),
        "PReLU": (0.5, 3, 2),
        "ELU": (0.5, 3),
        "BatchNorm2d": (4,),
        "QFunctional": (),
        "FloatFunctional": (),
        "Quantize": (0.5, 3, torch.quint8),
        "DeQuantize": (),
        "Sigmoid": (0.5, 3),
    },
    "torch.ao.nn.intrinsic.quantized": {"LinearReLU": (3, 4), "ConvReLU2d": (2, 3, 3), "BNReLU2d": (4,)},
    "torch.ao.nn.quantized.dynamic": {
        "Linear": (3, 4),
        "LSTM": (3, 4, 2),
        "GRU": (3, 4),
        "LSTMCell": (3, 4),
        "GRUCell": (3, 4),
        "RNNCell": (3, 4),
    },
    "torch.ao.nn.quantized.reference": {"Linear": (3, 4), "Conv2d": (2, 3, 3), "LSTMCell": (3, 4)},
    "torch.ao.nn.quantizable": {"LSTM": (3, 4), "MultiheadAttention": (4, 2)},
    "torch.ao.quantization": {
        "QuantStub": (),
        "MinMaxObserver": (),
        "HistogramObserver": (),
        "FakeQuantize": (),
        "FusedMovingAvgObsFakeQuantize": (),
    },
}


@pytest.mark.parametrize("home, name", [(home, name) for home in AO for name in AO[home]])
def test_a_module_of_torch_ao_becomes_ours_with_the_same_state(home: str, name: str) -> None:
    pytest.importorskip("torch.ao.quantization")
    with quiet_ao():
        theirs = getattr(module_named(home), name)(*AO[home][name])
        ours = load(pickled(nn.Sequential(theirs)))[0]
    assert type(ours).__module__.startswith(("quantization.", "observers."))
    assert type(ours).__name__ == name
    assert set(theirs.state_dict()) <= set(ours.state_dict())
    assert repr(ours)  # every attribute that is shown is there
    assert isinstance(pickle.loads(pickle.dumps(ours)), type(ours))


def test_a_class_of_the_program_must_be_listed() -> None:
    file = pickled(quantization.quantize_dynamic(Net()))
    with pytest.raises(quantization.QuantizationError, match=r"Net, which is neither.*classes=\[Model\]"):
        load(file)
    file.seek(0)
    model = load(file, classes=[Net])
    assert type(model) is Net and type(model.fc).__module__ == "quantization.nn.dynamic"


def test_a_module_may_be_listed_for_all_its_classes() -> None:
    module = sys.modules[Net.__module__]
    names = Names([module])
    assert names.find(module.__name__, "Net") is Net
    with pytest.raises(quantization.QuantizationError):
        names.find(module.__name__, "pickled")  # a function
    with pytest.raises(quantization.QuantizationError):
        names.find(module.__name__ + "x", "Net")


def test_a_class_that_moved_is_found_by_its_name() -> None:
    assert Names([Net]).find("__main__", "Net") is Net


@pytest.mark.parametrize("wrong", ["Net", 3, None])
def test_only_classes_and_modules_can_be_listed(wrong: Any) -> None:
    with pytest.raises(TypeError, match="classes takes classes and modules"):
        Names([wrong])


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("write", [lambda o: pickled(o), lambda o: io.BytesIO(pickle.dumps(o))])
@pytest.mark.parametrize(
    "function",
    [os.system, eval, exec, getattr, print, __import__, quantization.quantize, torch.load, module_named],
)
def test_no_function_of_a_file_is_called(function: Any, write: Any) -> None:
    with pytest.raises(quantization.QuantizationError, match="which is neither a layer of torch"):
        load(write(Calls(function, "raise SystemExit")))


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch.nn.modules.module", "warnings"),
        ("torch.nn.functional", "importlib"),
        ("torch.nn.functional", "handle_torch_function"),
        ("torch.hub", "load"),
        ("torch", "load"),
        ("torch.ao.quantization.quantize", "quantize"),
        ("torch.ao.quantization", "convert"),
        ("quantization.compat.alias", "alias_torch_ao"),
        ("quantization.workflows.ptq", "torch"),
        ("no.such.module", "Name"),
    ],
)
def test_names_that_are_no_layers_are_refused(module: str, name: str) -> None:
    with pytest.raises(quantization.QuantizationError):
        Names([]).find(module, name)


@pytest.mark.parametrize(
    "module",
    ["torch.ao.nn.quantized.modules.conv", "torch.nn.quantized.modules.conv", "torch.nn.quantized.modules"],
)
def test_old_and_new_paths_lead_to_our_class(module: str) -> None:
    assert counterpart(module, "Conv2d") is quantization.nn.quantized.Conv2d
    assert counterpart(module, "no_such_name") is None


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02."])
def test_what_is_no_pickle_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises((quantization.QuantizationError, EOFError)):
        load(io.BytesIO(content))


def test_functions_of_torch_as_attributes_are_kept() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=torch.nn.functional.gelu).eval()
    model = quantization.quantize_dynamic(nn.Sequential(layer))
    x = torch.randn(3, 2, 4)
    assert torch.equal(load(pickled(model))(x), model(x))
