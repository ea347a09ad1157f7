"""Every layer with a packed weight, static and dynamic, computes and stores what torch.ao's does."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from quantization.nn import fused, quantized
from tests.quantization.nn.weighted_cases import (
    CASES,
    Case,
    copies,
    each,
    fill,
    same,
    same_state,
    scripted,
    skip_unless_runs,
)

pytest.importorskip("torch.ao.quantization")


@each(CASES)
def test_output_and_state_equal_torch_ao(case: Case, engine: str) -> None:
    skip_unless_runs(case, engine)
    theirs, ours = fill(case.theirs()), case.ours()
    ours.load_state_dict(theirs.state_dict())
    x = case.x()
    expected = theirs(x)
    assert same(ours(x), expected)
    assert repr(ours) == repr(theirs)
    same_state(ours, theirs)


@each(CASES)
def test_torch_ao_loads_our_state(case: Case, engine: str) -> None:
    skip_unless_runs(case, engine)
    ours, theirs = fill(case.ours()), case.theirs()
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    theirs.load_state_dict(torch.load(buffer, weights_only=True))
    x = case.x()
    assert same(ours(x), theirs(x))


def _negated(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A hook that shows: the negated real values."""
    return torch.neg(output.dequantize())


@each(CASES)
def test_runs_after_every_way_of_carrying(case: Case, engine: str) -> None:
    skip_unless_runs(case, engine)
    module, x = fill(case.ours()), case.x()
    module.note = {"kept": True}
    module.register_forward_hook(_negated)
    expected = module(x)
    assert same(expected, torch.neg(type(module).forward(module, x).dequantize()))
    for way, carried in copies(module):
        assert same(carried(x), expected), way
        assert dir(carried) == dir(module), way
        assert carried.note == {"kept": True}, way
        assert carried.training == module.training, way


@pytest.mark.filterwarnings("ignore:Currently, qnnpack incorrectly ignores reduce_range")
@each(CASES)
def test_scripts_saves_and_loads(case: Case, engine: str) -> None:
    skip_unless_runs(case, engine)
    module, x = fill(case.ours()), case.x()
    for way, script in scripted(module):
        assert same(script(x), module(x)), way


@each([case for case in CASES if "no-bias" not in case.name])
def test_unbatched_input_is_a_batch_of_one(case: Case) -> None:
    skip_unless_runs(case, torch.backends.quantized.engine)
    module, x = fill(case.ours()), case.x()
    assert same(module(x[0]), module(x[:1]).squeeze(0))
    for _, script in scripted(module):
        assert same(script(x[0]), module(x[0]))


def _tails() -> list[Any]:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    return [
        pytest.param("LinearTanh", (4, 5), (3, 4), id="LinearTanh"),
        pytest.param("LinearLeakyReLU", (4, 5, 0.2), (3, 4), id="LinearLeakyReLU"),
        pytest.param("ConvAdd2d", (4, conv.out_channels, 3), (2, 4, 7, 7), id="ConvAdd2d"),
        pytest.param("ConvAddReLU2d", (4, conv.out_channels, 3), (2, 4, 7, 7), id="ConvAddReLU2d"),
    ]


@pytest.mark.parametrize(("name", "args", "shape"), _tails())
def test_onednn_fusions_equal_torch_ao(name: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch build has no onednn engine")
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, "onednn"
    try:
        case = Case(name, getattr(quantized, name), f"intrinsic.quantized:{name}", args)
        theirs, ours = fill(case.theirs()), case.ours()
        ours.load_state_dict(theirs.state_dict())
        inputs = [torch.quantize_per_tensor(torch.randn(shape), 0.05, 60, torch.quint8)]
        if "Add" in name:
            inputs.append(torch.quantize_per_tensor(torch.randn(2, 6, 5, 5), 0.05, 60, torch.quint8))
        expected = theirs(*inputs)
        assert same(ours(*inputs), expected)
        assert repr(ours) == repr(theirs)
        assert ours._FLOAT_MODULE is getattr(fused, name)
        for way, carried in [*copies(ours), *scripted(ours)]:
            assert same(carried(*inputs), expected), way
        unbatched = [x[0] for x in inputs]
        assert same(ours(*unbatched), ours(*[x[:1] for x in inputs]).squeeze(0))
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "ConvReLU2d", "ConvTranspose2d", "Linear"])
def test_class_attributes_name_the_same_classes_as_torch_ao(name: str) -> None:
    nnq = pytest.importorskip("torch.ao.nn.quantized")
    nniq = pytest.importorskip("torch.ao.nn.intrinsic.quantized")
    theirs, ours = getattr(nnq, name, None) or getattr(nniq, name), getattr(quantized, name)
    for attribute in (a for a in dir(theirs) if a.startswith(("_FLOAT", "_NNI"))):
        assert _names(getattr(ours, attribute)) == _names(getattr(theirs, attribute)), attribute


def _names(value: Any) -> Any:
    if isinstance(value, tuple):
        return [kind.__name__ for kind in value]
    return None if value is None else value.__name__
