"""Converted LSTMs over time: the numbers of the cell called step by step, by kernel and by operators."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantization
from eagerquant_native import kernel, levels
from quantization.backends import native_lstm, native_recurrent
from quantization.nn import quantizable, quantized
from quantization.nn.functional_modules import QFunctional
from quantization.nn.quantizable import over_time

LEVELS = [level for level in levels() if kernel("lstm_static", level)]
each_split = pytest.mark.parametrize("split", [False, True], ids=["joint", "split_gates"])
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "deep-both-ways": {"num_layers": 2, "bidirectional": True},
    "batch-first": {"num_layers": 2, "batch_first": True},
}


@pytest.fixture
def fbgemm() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    yield
    torch.backends.quantized.engine = before


def quant(x: Tensor, scale: float = 0.03, zero_point: int = 120) -> Tensor:
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)


def converted(hidden: int = 5, split: bool = False, engine: str = "fbgemm", **form: Any) -> Any:
    module = nn.LSTM(6, hidden, **form).eval()
    module.qconfig = quantization.get_default_qconfig(engine)
    observed = quantizable.LSTM.from_float(module, split_gates=split)
    observed(torch.randn(4, 3, 6))
    return quantized.LSTM.from_observed(observed)


def state_of(module: Any, batch: int) -> tuple[Tensor, Tensor]:
    rows = module.num_layers * (2 if module.bidirectional else 1)
    shape = (rows, batch, module.hidden_size)
    return quant(torch.randn(shape), 0.02, 100), quant(torch.randn(shape), 0.05, 30)


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]


def by_steps(module: nn.Module, *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over_time, "run", lambda *args: None)
        return module(*arguments)


def counted(name: str, module: nn.Module, *arguments: Any) -> tuple[Any, int]:
    """The result, and how often the kernel ("kernel") or the loop of operators ("operators") ran."""
    calls: list[int] = []
    owner, attribute = {"kernel": (native_lstm, "run"), "operators": (over_time, "_steps")}[name]
    original = getattr(owner, attribute)

    def run(*args: Any) -> Any:
        calls.append(1)
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, run)
        return module(*arguments), len(calls)


def assert_identical(one: Any, other: Any) -> None:
    for a, b in zip(flat(one), flat(other), strict=True):
        assert torch.equal(a.int_repr(), b.int_repr()) and a.stride() == b.stride()
        assert (a.q_scale(), a.q_zero_point()) == (b.q_scale(), b.q_zero_point())


@each_split
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_operators_give_the_numbers_of_the_cell(
    engine: str, split: bool, form: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_lstm, "has_kernel", lambda: False)
    module, x = converted(20, split, engine, **FORMS[form]), quant(torch.randn(batch, batch, 6))
    for arguments in ((x,), (x, state_of(module, batch))):
        result, calls = counted("operators", module, *arguments)
        assert calls == module.num_layers * (2 if module.bidirectional else 1)
        assert_identical(result, by_steps(module, *arguments))


@each_split
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.usefixtures("fbgemm", "three_threads")
def test_the_kernel_gives_the_numbers_of_the_cell(
    level: str, split: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_recurrent, "kernel", lambda name: kernel(name, level) or kernel(name))
    for hidden, batch in ((5, 1), (20, 3), (70, 9), (70, 33)):
        module, x = converted(hidden, split, **FORMS[form]), quant(torch.randn(4, batch, 6))
        size = 4 if module.batch_first else batch
        module(x)  # where the kernel is tried
        for arguments in ((x,), (x, state_of(module, size))):
            result, calls = counted("kernel", module, *arguments)
            assert calls == module.num_layers * (2 if module.bidirectional else 1)
            assert_identical(result, by_steps(module, *arguments))
    assert_identical(module(x[0]), by_steps(module, x[0]))  # one sequence, without a batch


@pytest.mark.usefixtures("fbgemm")
def test_weights_keep_the_numbers_of_the_engine_that_packed_them(engine: str) -> None:
    module, x = converted(20, engine=engine), quant(torch.randn(4, 3, 6))
    runs_here = engine in native_lstm.ENGINES
    if not runs_here:
        assert counted("kernel", module, x)[1] == 0
    torch.backends.quantized.engine = "fbgemm"
    assert_identical(module(x), by_steps(module, x))


def cell_of(module: Any) -> Any:
    return module.layers[0].layer_fw.cell


def _hook(cell: Any) -> None:
    cell.hgates.register_forward_hook(lambda *_: None)


def _pre_hook(cell: Any) -> None:
    cell.ogate_cy.activation_post_process.register_forward_pre_hook(lambda *_: None)


def _child(cell: Any) -> None:
    cell.fgate_cx = type("Mine", (QFunctional,), {})()


def _forward(cell: Any) -> None:
    cell.igates.forward = cell.igates.forward


def _watcher(cell: Any) -> None:
    cell.gates.activation_post_process = type("Mine", (nn.Identity,), {})()


def _activation(cell: Any) -> None:
    cell.cell_gate = nn.Sigmoid()


@pytest.mark.parametrize("change", [_hook, _pre_hook, _child, _forward, _watcher, _activation])
def test_parts_that_are_watched_or_replaced_are_called(change: Any) -> None:
    module, x = converted(), quant(torch.randn(4, 3, 6))
    change(cell_of(module))
    assert not over_time._is_as_converted(cell_of(module))
    assert_identical(module(x), by_steps(module, x))


def test_hooks_of_all_modules_are_called() -> None:
    module, calls = converted(), []
    handle = nn.modules.module.register_module_forward_hook(lambda mod, *_: calls.append(mod))
    try:
        module(quant(torch.randn(4, 3, 6)))
    finally:
        handle.remove()
    assert calls.count(cell_of(module).hgates) == 4


def test_observed_and_float_cells_are_called() -> None:
    module = nn.LSTM(6, 5).eval()
    module.qconfig = quantization.default_qconfig
    for composite in (quantizable.LSTM.from_float(module), quantizable.LSTM(6, 5)):
        assert over_time.run(cell_of(composite), torch.randn(4, 3, 6), None) is None


@pytest.mark.skipif(not LEVELS, reason="no kernel for static LSTMs runs here")
@pytest.mark.usefixtures("fbgemm")
class TestWhatTheKernelKeeps:
    @pytest.mark.parametrize(
        "part", ["igates", "hgates", "gates", "fgate_cx", "fgate_cx_igate_cgate", "ogate_cy"]
    )
    def test_it_is_made_again_for_other_numbers(self, part: str) -> None:
        module, x = converted(), quant(torch.randn(4, 3, 6))
        before = module(x)
        getattr(cell_of(module), part).scale *= 2
        after = by_steps(module, x)
        assert_identical(module(x), after)
        assert not torch.equal(before[0].dequantize(), after[0].dequantize())

    def test_it_is_made_again_for_other_weights(self) -> None:
        module, other, x = converted(), converted(), quant(torch.randn(4, 3, 6))
        module(x)
        module.load_state_dict(other.state_dict())
        assert_identical(module(x), other(x))
        weight, bias = cell_of(module).hgates._weight_bias()
        cell_of(module).hgates.set_weight_bias(weight, bias + 1)
        assert_identical(module(x), by_steps(module, x))

    def test_nothing_of_it_is_on_the_module(self) -> None:
        module, x = converted(), quant(torch.randn(4, 3, 6))
        names, keys, known = dir(cell_of(module)), list(module.state_dict()), len(over_time._cells)
        expected = module(x)
        assert len(over_time._cells) == known + 1
        assert dir(cell_of(module)) == names and list(module.state_dict()) == keys
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert cell_of(copied) not in over_time._cells
            assert_identical(copied(x), expected)
        del module, copied
        assert len(over_time._cells) <= known

    def test_states_of_ever_new_scales_do_not_pile_up(self) -> None:
        module, x = converted(), quant(torch.randn(4, 3, 6))
        for k in range(1, 30):
            state = tuple(quant(torch.randn(1, 3, 5), 0.01 * k) for _ in range(2))
            assert_identical(module(x, state), by_steps(module, x, state))
        kept = over_time._cells[cell_of(module)][1]
        assert kept is not None and len(kept.entering) < 12


@pytest.mark.usefixtures("fbgemm")
def test_wrong_input_is_refused_by_the_layer_that_takes_it() -> None:
    with pytest.raises(quantization.errors.QuantizationError, match=r"6.*\[4, 3, 7\]"):
        converted()(quant(torch.randn(4, 3, 7)))


def test_tables_are_the_operator() -> None:
    first, second = (0.02, 3), (0.05, 200)
    found = native_lstm.table(lambda x, y: torch.ops.quantized.mul(x, y, 0.01, 7), first, second)
    a, b = torch.randint(0, 256, (2, 1000), dtype=torch.uint8)
    x = torch._make_per_tensor_quantized_tensor(a, *first)
    y = torch._make_per_tensor_quantized_tensor(b, *second)
    expected = torch.ops.quantized.mul(x, y, 0.01, 7).int_repr()
    assert torch.equal(found[a.int() * 256 + b.int()], expected)
