"""Conversion quantizes and packs each weight once, lets go of it then, and copies none that is replaced.

Measured by what is alive and by what is called, not by the clock or the process's memory.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantization as q
from quantization.backends import native_linear
from quantization.errors import QuantizationError, QuantizationWarning
from quantization.nn import dynamic as nnqd
from quantization.nn.modes.weighted import WeightedQuantizedModule
from quantization.qparams import WeightQuantizer

WIDTH, COUNT = 32, 4


def tensors_in(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors in attributes and lists of them."""
    found: list[Tensor] = []
    for module in model.modules():
        held = [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
        held += [item for value in held if isinstance(value, list) for item in value]
        found += [value for value in held if isinstance(value, Tensor)]
    return found


def stack() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(COUNT)])


def prepared(stack: nn.Module) -> nn.Module:
    model = nn.Sequential(q.QuantStub(), stack, q.DeQuantStub()).eval()
    model.qconfig = q.get_default_qconfig()
    model = q.prepare(model, inplace=True)
    model(torch.randn(8, WIDTH))
    return model


def calibrate(model: nn.Module) -> None:
    model(torch.randn(8, WIDTH))


def to_static(model: nn.Module) -> nn.Module:
    model.qconfig = q.get_default_qconfig()
    return nn.Sequential(q.QuantStub(), model)


def trainable(model: nn.Module) -> nn.Module:
    model.qconfig = q.get_default_qat_qconfig()
    return nn.Sequential(q.QuantStub(), model).train()


# Each from a stack of float layers to the model to be converted, and the conversion.
Workflow = tuple[Callable[[nn.Module], nn.Module], Callable[[nn.Module, bool], nn.Module]]
WORKFLOWS: dict[str, Workflow] = {
    "quantize_dynamic": (lambda m: m, lambda m, inplace: q.quantize_dynamic(m, {nn.Linear}, inplace=inplace)),
    "per channel": (
        lambda m: m,
        lambda m, inplace: q.quantize_dynamic(m, {nn.Linear: q.per_channel_dynamic_qconfig}, inplace=inplace),
    ),
    "convert": (prepared, lambda m, inplace: q.convert(m, inplace=inplace)),
    "quantize": (to_static, lambda m, inplace: q.quantize(m, calibrate, [], inplace=inplace)),
}
TRAINED: Workflow = (
    trainable,
    lambda m, inplace: q.quantize_qat(m, calibrate, [], inplace=inplace),
)
every_workflow = pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=list(WORKFLOWS))


@pytest.fixture
def at_each_weight(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Tensor], None]]:
    """Functions to call with each whole weight when its turn has come."""
    watchers: list[Callable[[Tensor], None]] = []
    quantized = WeightQuantizer.__call__

    def watched(self: WeightQuantizer, weight: Tensor) -> Tensor:
        if weight.size(-1) > 1:  # not the sliver that is tried
            for watcher in watchers:
                watcher(weight)
        return quantized(self, weight)

    monkeypatch.setattr(WeightQuantizer, "__call__", watched)
    return watchers


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    """What is let go of has to go at once, not when the garbage collector comes round."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("workflow", [*WORKFLOWS.values(), TRAINED], ids=[*WORKFLOWS, "quantize_qat"])
def test_in_place_float_weights_go_layer_by_layer(
    workflow: Workflow, at_each_weight: list[Callable[[Tensor], None]]
) -> None:
    make, run = workflow
    model = make(stack())
    weights = [weakref.ref(m.weight) for m in model.modules() if isinstance(m, nn.Linear)]
    alive: list[int] = []
    at_each_weight.append(lambda _: alive.append(sum(ref() is not None for ref in weights)))
    converted = run(model, True)
    assert alive == [COUNT - done for done in range(COUNT)]
    assert not any(ref() for ref in weights)
    assert sum(isinstance(m, WeightedQuantizedModule) for m in converted.modules()) == COUNT


@every_workflow
def test_each_weight_is_quantized_once(
    workflow: Workflow, at_each_weight: list[Callable[[Tensor], None]]
) -> None:
    make, run = workflow
    model, seen = make(stack()), list[Tensor]()
    at_each_weight.append(seen.append)
    run(model, False)
    assert len(seen) == COUNT


def shapes_packed(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of all weights that are packed while `run` runs, slivers left out."""
    shapes: list[tuple[int, ...]] = []
    pack = native_linear.pack

    def packing(weight: Tensor, bias: Tensor | None) -> Tensor | None:
        made = pack(weight, bias)
        if made is not None:
            shapes.append(tuple(weight.shape))
        return made

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(getattr(func, "__name__", func)) + str(func)
            if "prepack" in name:
                shapes.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(native_linear, "pack", packing)
    with Watch():
        run()
    return [shape for shape in shapes if len(shape) != 2 or shape[1] > 1]


PACKED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear": (lambda: nn.Linear(8, 4), 1),
    "lstm": (lambda: nn.LSTM(8, 4, num_layers=2, bidirectional=True), 8),
    "projected lstm": (lambda: nn.LSTM(8, 4, proj_size=2), 3),
    "gru": (lambda: nn.GRU(8, 4), 2),
    "rnn": (lambda: nn.RNN(8, 4), 2),
    "lstm cell": (lambda: nn.LSTMCell(8, 4), 2),
    "gru cell": (lambda: nn.GRUCell(8, 4), 2),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", PACKED)
def test_each_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch, kind: str, inplace: bool) -> None:
    make, count = PACKED[kind]
    model = nn.Sequential(make())
    run = q.quantize_dynamic
    packed = shapes_packed(monkeypatch, lambda: run(model, {type(model[0])}, inplace=inplace))
    assert len(packed) == count, packed


def test_convolutions_and_embeddings_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(q.QuantStub(), nn.Conv2d(3, 4, 3), nn.Conv1d(3, 4, 3)).eval()
    model.qconfig = q.get_default_qconfig()
    model = q.prepare(model)
    with pytest.warns(QuantizationWarning, match="saw no data"):
        assert len(shapes_packed(monkeypatch, lambda: q.convert(model))) == 2
    table = nn.Sequential(nn.EmbeddingBag(10, 4))
    spec = {nn.EmbeddingBag: q.float_qparams_weight_only_qconfig}
    assert len(shapes_packed(monkeypatch, lambda: q.quantize_dynamic(table, spec))) == 1


@pytest.fixture
def copied_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    deepcopy = nn.Parameter.__deepcopy__

    def watched(self: nn.Parameter, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            shapes.append(tuple(self.shape))
        return deepcopy(self, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", watched)
    return shapes


@pytest.mark.parametrize("name", ["quantize_dynamic", "per channel", "convert"])
def test_the_copy_has_no_weight_that_is_replaced(name: str, copied_shapes: list[tuple[int, ...]]) -> None:
    make, run = WORKFLOWS[name]
    model = make(nn.Sequential(stack(), nn.LayerNorm(WIDTH)))
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.qconfig = None
    run(model, False)
    assert copied_shapes == [(WIDTH,), (WIDTH,)]  # of the LayerNorm


def test_recurrent_layers_and_embeddings_are_not_copied_either(
    copied_shapes: list[tuple[int, ...]],
) -> None:
    model = nn.ModuleList([nn.LSTM(4, 4, 2), nn.GRUCell(4, 4), nn.Embedding(10, 4)])
    spec: dict[Any, Any] = dict.fromkeys([nn.LSTM, nn.GRUCell], q.default_dynamic_qconfig)
    q.quantize_dynamic(model, {**spec, nn.Embedding: q.float_qparams_weight_only_qconfig})
    assert copied_shapes == []


class Tied(nn.Module):
    """An output layer that shares its weight with the embedding, and a list that refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 8)
        self.left_alone = nn.LSTM(8, 8)
        self.decoder = nn.Linear(8, 10)
        self.decoder.weight = self.embedding.weight
        self.decoder.note = ["kept", self.decoder.bias]
        self.weights = [self.decoder.weight]
        self.first = self.decoder

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(tokens))
        x, _ = self.left_alone(x)
        return self.decoder(x)


def test_a_copy_shares_no_tensor_with_the_original() -> None:
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = q.quantize_dynamic(model, {"decoder", "lstm"})
    assert {name: type(m) for name, m in copy.named_children()} == {
        "embedding": nn.Embedding, "lstm": nnqd.LSTM, "left_alone": nn.LSTM, "decoder": nnqd.Linear,
    }  # fmt: skip
    assert copy.first is copy.decoder
    assert copy.weights[0] is copy.embedding.weight  # as deepcopy has it
    assert copy.decoder.note[0] == "kept"
    addresses = {t.untyped_storage().data_ptr() for t in tensors_in(model)}
    assert not addresses & {t.untyped_storage().data_ptr() for t in tensors_in(copy)}
    x = torch.randint(10, (3, 2))
    expected = copy(x)
    with torch.no_grad():
        for tensor in tensors_in(model):
            tensor.fill_(0.1)
    assert torch.equal(copy(x), expected)
    for name, tensor in copy.embedding.state_dict().items():
        assert torch.equal(tensor, before[f"embedding.{name}"])
    copy.left_alone.double()  # its list of weights is its own parameters
    assert all(
        w is p for w, p in zip(copy.left_alone._flat_weights, copy.left_alone.parameters(), strict=True)
    )


def test_a_layer_inside_and_outside_of_what_is_replaced_is_copied() -> None:
    inner = nn.Linear(4, 4)
    fused = nn.Sequential(q.fuse_modules(nn.Sequential(inner, nn.ReLU()).eval(), ["0", "1"])[0])
    model = nn.ModuleDict({"fused": fused, "alone": fused[0][0]})
    model["alone"].qconfig = None
    model["fused"][0].qconfig = q.default_dynamic_qconfig
    copy = q.quantize_dynamic(model, {q.nn.fused.LinearReLU: q.default_dynamic_qconfig})
    assert type(copy["alone"]) is nn.Linear
    assert copy["alone"].weight.data_ptr() != model["alone"].weight.data_ptr()
    assert torch.equal(copy["alone"].weight, model["alone"].weight)


class OwnCopy(nn.Linear):
    """A layer with its own idea of a copy; not in any table, so it stays."""

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCopy:
        new = OwnCopy(self.in_features, self.out_features)
        new.made_by_hand = True
        memo[id(self)] = new
        return new


def test_a_custom_deepcopy_is_called() -> None:
    copy = q.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), OwnCopy(4, 4)), {nn.Linear})
    assert copy[1].made_by_hand


# Failures


def modules_and_tensors(model: nn.Module) -> list[Any]:
    return [*model.named_modules(), *[(n, id(p), p.clone()) for n, p in model.named_parameters()]]


def assert_as_before(model: nn.Module, before: list[Any]) -> None:
    after = modules_and_tensors(model)
    assert len(after) == len(before)
    for (name, old, *values), (same_name, new, *now) in zip(before, after, strict=True):
        assert (name, old) == (same_name, new)
        assert all(torch.equal(a, b) for a, b in zip(values, now, strict=True))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("position", range(COUNT))
@every_workflow
def test_a_layer_that_cannot_be_converted_costs_no_other(
    workflow: Workflow, position: int, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, run = workflow
    model = make(stack())
    weight = [m for m in model.modules() if isinstance(m, nn.Linear)][position].weight
    with torch.no_grad():
        weight[0, 0] = float("1e38")
    before, training = modules_and_tensors(model), [m.training for m in model.modules()]
    of = WeightQuantizer.of.__func__

    def refusing(cls: Any, tensor: Tensor, observer: nn.Module) -> Any:
        if bool(tensor.max() > 1e37):
            raise QuantizationError("refused")
        return of(cls, tensor, observer)

    monkeypatch.setattr(WeightQuantizer, "of", classmethod(refusing))
    with pytest.raises(QuantizationError, match="refused"):
        run(model, inplace)
    assert_as_before(model, before)
    assert [m.training for m in model.modules()] == training


@pytest.mark.parametrize("inplace", [False, True])
def test_an_engine_that_refuses_the_last_layer_costs_no_other(
    inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding, calls = nnqd.Linear._params.holding_native.__func__, list[int]()

    def refusing(cls: Any, weight: Tensor, bias: Tensor | None) -> Any:
        calls.append(weight.size(0))
        if weight.size(0) == 3:
            raise RuntimeError("not by this engine")
        return holding(cls, weight, bias)

    monkeypatch.setattr(nnqd.Linear._params, "holding_native", classmethod(refusing))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    before = modules_and_tensors(model)
    with pytest.raises(QuantizationError, match="not by this engine"):
        q.quantize_dynamic(model, inplace=inplace)
    assert calls == [4, 4, 3]  # slivers: nothing was converted
    assert_as_before(model, before)


class Foreign(nn.Module):
    """A class of the user's: it may fail, and keep what it likes."""

    made = 0

    @classmethod
    def from_float(cls, mod: nn.Module) -> Foreign:
        Foreign.made += 1
        if Foreign.made == 2:
            raise ValueError("the second one")
        new = cls()
        new.weight = mod.weight
        return new


@pytest.mark.parametrize("inplace", [False, True])
def test_a_class_of_the_users_is_called_once_and_before_anything_is_let_go(inplace: bool) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.Conv1d(4, 4, 1))

    mapping = {nn.Linear: nnqd.Linear, nn.Conv1d: Foreign}
    spec = dict.fromkeys(mapping, q.default_dynamic_qconfig)
    Foreign.made, failing = 0, model()
    before = modules_and_tensors(failing)
    with pytest.raises(ValueError, match="the second one"):
        q.quantize_dynamic(failing, spec, mapping=mapping, inplace=inplace)
    assert_as_before(failing, before)
    Foreign.made, original = 2, model()
    kept = [original[1].weight, original[3].weight]
    converted = q.quantize_dynamic(original, spec, mapping=mapping, inplace=inplace)
    assert Foreign.made == 4
    assert [type(m) for m in converted] == [nnqd.Linear, Foreign, nnqd.Linear, Foreign]
    assert all((converted[i].weight is w) == inplace for i, w in zip((1, 3), kept, strict=True))


class Subclass(nnqd.Linear):
    """A subclass of the user's whose `from_float` is its own: nothing of ours answers for it."""

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Subclass:
        mod.weight.data.zero_()
        return super().from_float(mod, use_precomputed_fake_quant)


def test_a_users_subclass_gets_a_real_copy() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    before = model[0].weight.clone()
    converted = q.quantize_dynamic(model, {nn.Linear}, mapping={nn.Linear: Subclass})
    assert type(converted[0]) is Subclass
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("inplace", [False, True])
def test_strict_findings_come_before_anything_is_let_go(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    before = modules_and_tensors(model)
    with pytest.raises(QuantizationError, match="no dynamic counterpart"):
        q.quantize_dynamic(model, {nn.Linear, nn.Conv1d}, inplace=inplace, strict=True)
    assert_as_before(model, before)
    with pytest.warns(QuantizationWarning, match="Conv1d has no dynamic counterpart, so '1'"):
        q.quantize_dynamic(model, {nn.Linear, nn.Conv1d}, inplace=inplace)


def test_an_interrupt_in_the_second_phase_leaves_each_layer_float_or_quantized(
    at_each_weight: list[Callable[[Tensor], None]],
) -> None:
    model, x = stack(), torch.randn(2, WIDTH)
    seen: list[Tensor] = []

    def interrupt(weight: Tensor) -> None:
        seen.append(weight)
        if len(seen) == 3:
            raise KeyboardInterrupt

    at_each_weight.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        q.quantize_dynamic(model, inplace=True)
    assert [type(m) for m in model] == [nnqd.Linear, nnqd.Linear, nn.Linear, nn.Linear]
    at_each_weight.clear()
    done = q.quantize_dynamic(model, inplace=True)  # goes on where it stopped
    assert [type(m) for m in done] == [nnqd.Linear] * COUNT
    assert done(x).shape == x.shape
