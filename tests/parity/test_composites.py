"""LSTM and MultiheadAttention, ours against torch.ao: equal trees, equal checkpoints, equal bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from quantization import compat
from quantization.nn import quantizable, quantized
from tests.parity.libraries import Library, assert_same, on_both, theirs
from tests.support import quiet_ao

SHARP = 0.02, 120
# A model to load a checkpoint into need not be calibrated, but says so.
BLANK = pytest.mark.filterwarnings("ignore:must run observer")


def quant(x: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(x, *SHARP, torch.quint8)


def rooms(library: Library) -> tuple[Any, Any]:
    """The modules that hold the observed composites and the quantized ones."""
    if library.name == "ours":
        return quantizable, quantized
    return pytest.importorskip("torch.ao.nn.quantizable"), pytest.importorskip("torch.ao.nn.quantized")


def evidence(model: nn.Module) -> dict[str, Any]:
    """Tree, checkpoint and versions; the joint projections aside, which torch.ao leaves at random values."""
    state = model.state_dict()
    for key in [key for key in state if "in_proj_" in key or "_proj_weight" in key]:
        state[key] = torch.tensor(state[key].shape)
    tree = [
        (name, type(m).__name__, len(m._forward_hooks) + len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]
    versions = {k: v.get("version") for k, v in state._metadata.items()}
    return {"tree": tree, "state": dict(state), "versions": versions}


def qconfig(library: Library, engine: str, histogram: bool = False) -> Any:
    """The engine's own qconfig; with min/max in place of histograms, which take most of the time."""
    own = library.q.get_default_qconfig(engine)
    if histogram:
        return own
    kind = library.q.default_observer if engine in ("x86", "fbgemm") else library.q.MinMaxObserver
    return library.q.QConfig(activation=kind, weight=own.weight)


LSTMS = {
    "plain": {},
    "two_layers_both_ways": {"num_layers": 2, "bidirectional": True},
    "no_bias": {"bias": False, "num_layers": 2},
    "batch_first": {"batch_first": True, "bidirectional": True},
}


@pytest.mark.parametrize("split", [False, True], ids=["joint", "split_gates"])
@pytest.mark.parametrize("name", LSTMS)
def test_lstm_from_float_and_from_observed(engine: str, name: str, split: bool):
    def program(library: Library) -> Any:
        observed_room, quantized_room = rooms(library)
        lstm = nn.LSTM(4, 5, **LSTMS[name]).eval()
        lstm.qconfig = qconfig(library, engine, histogram=name == "plain")
        x = torch.randn(4, 3, 4)
        observed = observed_room.LSTM.from_float(lstm, split_gates=split)
        output, state = observed(x)
        again = observed(x, state)
        converted = quantized_room.LSTM.from_observed(observed)
        result, q_state = converted(quant(x))
        outputs = output, state, again, result, q_state, converted(quant(x), q_state)
        return evidence(observed), evidence(converted), outputs

    assert_same(*on_both(program))


@BLANK
@pytest.mark.parametrize("split", [False, True], ids=["joint", "split_gates"])
def test_lstm_checkpoints_go_both_ways(engine: str, split: bool):
    def program(library: Library) -> Any:
        observed_room, quantized_room = rooms(library)
        lstm = nn.LSTM(4, 5, 2, bidirectional=True).eval()
        lstm.qconfig = qconfig(library, engine)
        observed = observed_room.LSTM.from_float(lstm, split_gates=split)
        blank = quantized_room.LSTM.from_observed(observed)
        observed(torch.ones(2, 1, 4) * torch.tensor([1.0, -2.0, 0.5, 3.0]))
        return blank, quantized_room.LSTM.from_observed(observed), observed

    ours, expected = on_both(program)
    x = quant(torch.randn(3, 2, 4))
    for reader, writer in ((ours, expected), (expected, ours)):
        with quiet_ao():
            reader[0].load_state_dict(writer[1].state_dict())
            assert_same(reader[0](x), writer[1](x))
            reader[2].load_state_dict(writer[2].state_dict())


class Recurrent(nn.Module):
    def __init__(self, library: Library) -> None:
        super().__init__()
        self.quant, self.dequant = library.q.QuantStub(), library.q.DeQuantStub()
        self.lstm = nn.LSTM(4, 5, 2, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.head(self.lstm(self.quant(x))[0]))


def test_lstm_through_prepare_and_convert(engine: str):
    def program(library: Library) -> Any:
        model = Recurrent(library).eval()
        model.qconfig = library.q.get_default_qconfig(engine)
        torch.manual_seed(1)
        prepared = library.q.prepare(model)
        prepared(torch.randn(3, 2, 4))
        converted = library.q.convert(prepared)
        return evidence(prepared), evidence(converted), converted(torch.randn(3, 2, 4))

    torch.manual_seed(0)
    assert_same(*on_both(seeded(program)))


def seeded(program: Any) -> Any:
    """Building a module draws random numbers, in torch.ao more often: draw the data elsewhere."""
    data = [torch.randn(3, 2, 4) for _ in range(8)]

    def run(library: Library) -> Any:
        supply = iter(data)
        original, torch.randn = torch.randn, lambda *shape: next(supply)
        try:
            return program(library)
        finally:
            torch.randn = original

    return run


@pytest.mark.parametrize("version", [0, 1], ids=["plain", "fused_fake_quantize"])
def test_lstm_through_prepare_qat(engine: str, version: int):
    def program(library: Library) -> Any:
        model = Recurrent(library).train()
        model.qconfig = library.q.get_default_qat_qconfig(engine, version)
        prepared = library.q.prepare_qat(model)
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            prepared(torch.randn(3, 2, 4)).square().mean().backward()
            optimizer.step()
        gradients = {name: p.grad for name, p in prepared.named_parameters()}
        prepared.eval()
        converted = library.q.convert(prepared)
        return gradients, evidence(prepared), evidence(converted), converted(torch.randn(3, 2, 4))

    assert_same(*on_both(seeded(program)))


MASK, PADDING = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
MASK[0, 1] = PADDING[0, 4] = True
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_weights": {"need_weights": False},
    "weights_per_head": {"average_attn_weights": False},
    "float_mask": {"attn_mask": torch.where(MASK, -3.0, 0.0)},
    "bool_mask": {"attn_mask": MASK},
    "mask_per_head": {"attn_mask": MASK.repeat(4, 1, 1)},
    "padding": {"key_padding_mask": PADDING},
    "mask_and_padding": {"attn_mask": MASK, "key_padding_mask": PADDING},
}
ATTENTIONS = {
    "plain": {},
    "no_bias": {"bias": False},
    "zero_attn": {"add_zero_attn": True},
    "other_widths": {"kdim": 6, "vdim": 7},
}


def attention(options: dict[str, Any]) -> tuple[nn.MultiheadAttention, list[torch.Tensor]]:
    """An attention with biases that matter, and query, key and value for it."""
    mha = nn.MultiheadAttention(8, 2, **options).eval()
    for name, param in mha.named_parameters():
        if "bias" in name:
            nn.init.normal_(param, std=0.3)
    shapes = [(3, 2, 8), (5, 2, mha.kdim), (5, 2, mha.vdim)]
    inputs = [torch.randn(shape) for shape in shapes]
    return mha, [x.transpose(0, 1) for x in inputs] if mha.batch_first else inputs


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_from_float_and_from_observed(engine: str, name: str):
    def program(library: Library) -> Any:
        observed_room, quantized_room = rooms(library)
        mha, inputs = attention(ATTENTIONS[name])
        mha.qconfig = qconfig(library, engine, histogram=name == "plain")
        observed = observed_room.MultiheadAttention.from_float(mha)
        for call in CALLS.values():
            observed(*inputs, **call)
        converted = quantized_room.MultiheadAttention.from_observed(observed)
        results = {k: converted(*map(quant, inputs), **call) for k, call in CALLS.items()}
        return evidence(observed), evidence(converted), results

    assert_same(*on_both(program))


@BLANK
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_checkpoints_go_both_ways(engine: str, name: str):
    def program(library: Library) -> Any:
        observed_room, quantized_room = rooms(library)
        mha, inputs = attention(ATTENTIONS[name])
        mha.qconfig = qconfig(library, engine)
        observed = observed_room.MultiheadAttention.from_float(mha)
        blank = quantized_room.MultiheadAttention.from_observed(observed)
        observed(*inputs)
        return blank, quantized_room.MultiheadAttention.from_observed(observed), list(map(quant, inputs))

    ours, expected = on_both(program)
    for reader, writer in ((ours, expected), (expected, ours)):
        with quiet_ao():
            reader[0].load_state_dict(writer[1].state_dict())
            assert_same(reader[0](*reader[2]), writer[1](*reader[2]))


class Attending(nn.Module):
    def __init__(self, library: Library, **options: Any) -> None:
        super().__init__()
        self.quant, self.dequant = library.q.QuantStub(), library.q.DeQuantStub()
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quant(x)
        return self.dequant(self.head(self.attention(x, x, x)[0]))


def test_attention_through_prepare_and_convert(engine: str):
    def program(library: Library) -> Any:
        model = Attending(library).eval()
        model.qconfig = library.q.get_default_qconfig(engine)
        prepared = library.q.prepare(model)
        prepared(torch.randn(3, 2, 4))
        converted = library.q.convert(prepared)
        return evidence(prepared), evidence(converted), converted(torch.randn(3, 2, 4))

    assert_same(*on_both(seeded(program)))


def test_bias_kv_keeps_its_range_where_torch_ao_loses_it(engine: str):
    """torch.ao gives bias_v the scale of bias_k, and both that of the keys and values they are joined to."""

    def program(library: Library) -> Any:
        observed_room, quantized_room = rooms(library)
        mha, inputs = attention({"add_bias_kv": True})
        mha.bias_v.data.mul_(20)
        mha.qconfig = qconfig(library, engine)
        observed = observed_room.MultiheadAttention.from_float(mha)
        observed(*inputs)
        converted = quantized_room.MultiheadAttention.from_observed(observed)
        error = (converted(*map(quant, inputs))[0].dequantize() - mha(*inputs)[0]).abs().max()
        return converted, error, mha.bias_v.detach()

    (ours, error, bias_v), (expected, their_error, _) = on_both(program)
    assert (ours.bias_v.dequantize() - bias_v).abs().max() <= ours.bias_v.q_scale()
    assert error < 0.3 * their_error
    assert_same(ours.bias_k, expected.bias_k)


def test_checkpoint_of_torch_ao_without_bias_kv_loads_with_a_warning(engine: str):
    def program(library: Library) -> Any:
        observed_room, quantized_room = rooms(library)
        mha, inputs = attention({"add_bias_kv": True})
        mha.qconfig = qconfig(library, engine)
        observed = observed_room.MultiheadAttention.from_float(mha)
        observed(*inputs)
        return quantized_room.MultiheadAttention.from_observed(observed)

    ours, expected = on_both(program)
    before = ours.bias_v
    with pytest.warns(UserWarning, match=r"lacks \['bias_k', 'bias_v'\]"):
        ours.load_state_dict(expected.state_dict())
    assert_same(ours.bias_v, before)
    expected.load_state_dict(ours.state_dict(), strict=False)


def test_attention_pickled_by_torch_ao_saves_its_biases(tmp_path: Any, engine: str):
    observed_room, quantized_room = rooms(theirs())
    mha, inputs = attention({"add_bias_kv": True})
    with quiet_ao():
        mha.qconfig = qconfig(theirs(), engine)
        observed = observed_room.MultiheadAttention.from_float(mha)
        observed(*inputs)
        pickled = quantized_room.MultiheadAttention.from_observed(observed)
    torch.save(pickled, tmp_path / "attention.pt")
    loaded = compat.load(tmp_path / "attention.pt")
    assert type(loaded) is quantized.MultiheadAttention and loaded.in_proj_bias is None
    assert_same(loaded.state_dict()["bias_v"], pickled.bias_v)
    inputs = list(map(quant, inputs))
    expected = mha(*(x.dequantize() for x in inputs))[0]
    assert (loaded(*inputs)[0].dequantize() - expected).abs().max() < 0.2
