"""`quantization.save` and `quantization.load`: the same model from a float one, and no code from a file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import quantization as q
from quantization.checkpoint import file
from quantization.nn.functional_modules import FloatFunctional
from tests.support import ENGINES

safetensors_torch = pytest.importorskip("safetensors.torch")
ROOT = Path(__file__).resolve().parents[2]


class Static(nn.Module):
    """Every kind of static module, and one layer that stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = q.QuantStub()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 2, padding="same", padding_mode="reflect", groups=2)
        self.bn2 = nn.BatchNorm2d(4)
        self.add = FloatFunctional()
        self.acts = nn.Sequential(nn.Hardswish(), nn.PReLU(), nn.ELU(), nn.LeakyReLU(), nn.ReLU6())
        self.norms = nn.Sequential(nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(6))
        self.fc = nn.Linear(4, 5)
        self.dequant = q.DeQuantStub()
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.add.add_relu(x, self.bn2(self.conv2(x)))
        x = self.norms(self.acts(x))
        return self.head(self.dequant(self.fc(x.mean((2, 3)))))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.bag = nn.EmbeddingBag(10, 6, mode="mean")
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        self.projected = nn.LSTM(10, 5, proj_size=3)
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.rnn = nn.RNN(4, 4, nonlinearity="relu")
        self.cells = nn.ModuleList([nn.LSTMCell(4, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 4, bias=False)])
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rnn(self.gru(self.projected(self.lstm(self.embed(x))[0])[0])[0])[0][-1]
        y = self.cells[2](self.cells[1](self.cells[0](y)[0]))
        return self.fc(y) + self.bag(x).mean()


IMAGES, WORDS = torch.randn(2, 3, 6, 6), torch.randint(0, 10, (7, 2))
PARTS = [["conv", "bn", "relu"], ["conv2", "bn2"]]


def static(**options: Any) -> nn.Module:
    model = q.fuse_modules(Static().eval(), PARTS)
    model.qconfig = q.get_default_qconfig()
    model.head.qconfig = None
    prepared = q.prepare(model)
    prepared(IMAGES)
    return q.convert(prepared, **options)


def trained() -> nn.Module:
    model = q.fuse_modules_qat(Static().train(), PARTS)
    model.qconfig = q.get_default_qat_qconfig()
    model.head.qconfig = None
    prepared = q.prepare_qat(model)
    prepared(IMAGES)
    return q.convert(prepared.eval())


class Composite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant = q.QuantStub()
        self.lstm = nn.LSTM(4, 5, 2, bidirectional=True)
        self.attention = nn.MultiheadAttention(10, 2, add_bias_kv=True)
        self.dequant = q.DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lstm(self.quant(x))[0]
        return self.dequant(self.attention(y, y, y)[0])


SERIES = torch.randn(6, 3, 4)


def composite() -> nn.Module:
    model = Composite().eval()
    model.qconfig = q.default_qconfig
    prepared = q.prepare(model)
    prepared(SERIES)
    return q.convert(prepared)


def reference() -> nn.Module:
    """Reference layers on their own: their input and output are float."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 2)
    ).eval()
    model.qconfig = q.default_qconfig
    prepared = q.prepare(model)
    prepared(IMAGES)
    return q.convert(prepared, is_reference=True)


def float_reference() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2), nn.Flatten(), nn.Linear(75, 2))


def dynamic(dtype: torch.dtype = torch.qint8, **spec: Any) -> nn.Module:
    return q.quantize_dynamic(Text().eval(), spec or None, dtype)


_RECURRENT = dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.Linear))


def every_dynamic(weights: Any) -> nn.Module:
    embeddings = q.float_qparams_weight_only_qconfig
    spec = {**dict.fromkeys(_RECURRENT, weights), nn.Embedding: embeddings, nn.EmbeddingBag: embeddings}
    return q.quantize_dynamic(Text().eval(), spec)


def four_bit() -> nn.Module:
    bits = q.float_qparams_weight_only_qconfig_4bit
    return q.quantize_dynamic(Text().eval(), {nn.Embedding: bits, nn.EmbeddingBag: bits})


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], torch.Tensor]] = {
    "static": (static, Static, IMAGES),
    "trained": (trained, Static, IMAGES),
    "composites": (composite, Composite, SERIES),
    "reference": (reference, float_reference, IMAGES),
    "dynamic": (lambda: every_dynamic(q.default_dynamic_qconfig), Text, WORDS),
    "dynamic per channel": (lambda: every_dynamic(q.per_channel_dynamic_qconfig), Text, WORDS),
    "dynamic float16": (lambda: every_dynamic(q.float16_dynamic_qconfig), Text, WORDS),
    "embeddings of 4 bits": (four_bit, Text, WORDS),
    "a bare layer": (lambda: q.quantize_dynamic(nn.Linear(4, 2)), lambda: nn.Linear(4, 2), torch.randn(3, 4)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("case", CASES)
def test_the_loaded_model_is_the_saved_one(case: str, tmp_path: Path) -> None:
    make, build, x = CASES[case]
    model = make()
    q.save(model, tmp_path / "model.eq")
    restored = q.load(tmp_path / "model.eq", build())
    assert torch.equal(restored(x), model(x))
    assert str(restored) == str(model)
    assert str(q.summary(restored)) == str(q.summary(model))
    assert dir(restored) == dir(model)
    assert [m.training for m in restored.modules()] == [m.training for m in model.modules()]
    assert list(restored.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine(name: str, tmp_path: Path) -> None:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        model = static()
        q.save(model, tmp_path / "model.eq")
        assert torch.equal(q.load(tmp_path / "model.eq", Static())(IMAGES), model(IMAGES))
    finally:
        torch.backends.quantized.engine = before


FRESH = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tests.quantization import test_checkpoint as t
x, expected = torch.load(sys.argv[3])
with torch.no_grad():
    model = t.q.load(sys.argv[2], t.Static())
print(torch.equal(model(x), expected))
"""


def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    model = static()
    q.save(model, tmp_path / "model.eq")
    torch.save((IMAGES, model(IMAGES).detach()), tmp_path / "data.pt")
    arguments = [str(ROOT), str(tmp_path / "model.eq"), str(tmp_path / "data.pt")]
    command = [sys.executable, "-W", "error", "-c", FRESH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    "build",
    [
        lambda: q.fuse_modules(Static().eval(), PARTS),
        lambda: q.fuse_modules_qat(Static(), PARTS),
        lambda: Static().train(),
    ],
    ids=["fused", "fused for training", "in training mode"],
)
def test_the_float_model_may_be_fused_or_not(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = static()
    q.save(model, tmp_path / "model.eq")
    assert torch.equal(q.load(tmp_path / "model.eq", build())(IMAGES), model(IMAGES))


def test_the_float_model_may_be_on_the_meta_device(tmp_path: Path) -> None:
    model = static()
    q.save(model, tmp_path / "model.eq")
    with torch.device("meta"):
        empty = Static()
    assert torch.equal(q.load(tmp_path / "model.eq", empty)(IMAGES), model(IMAGES))
    assert empty.fc.weight.is_meta


def test_the_float_model_stays_as_it_is_unless_inplace(tmp_path: Path) -> None:
    q.save(static(), tmp_path / "model.eq")
    model = Static()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    restored = q.load(tmp_path / "model.eq", model)
    assert type(model.conv) is nn.Conv2d and model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert restored.head.weight is not model.head.weight
    assert q.load(tmp_path / "model.eq", model, inplace=True) is model
    assert type(model.conv) is q.nn.quantized.ConvReLU2d


def test_attributes_of_the_program_come_from_the_float_model(tmp_path: Path) -> None:
    q.save(static(), tmp_path / "model.eq")
    model = Static()
    model.fc.tag = lambda: "a function, which no file holds"
    assert q.load(tmp_path / "model.eq", model).fc.tag is model.fc.tag


def test_attributes_that_are_no_plain_data_are_named(tmp_path: Path) -> None:
    model = static()
    model.fc.tag, model.fc.kept = object(), {"plain": [1, (2.5, None)]}
    with pytest.warns(q.QuantizationWarning, match=r"left out .*fc\.tag"):
        q.save(model, tmp_path / "model.eq")
    restored = q.load(tmp_path / "model.eq", Static())
    assert not hasattr(restored.fc, "tag")
    assert restored.fc.kept == {"plain": [1, (2.5, None)]}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.a, self.b = nn.Bilinear(2, 2, 2), nn.Bilinear(2, 2, 2)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("inplace", [False, True])
def test_modules_and_tensors_stay_tied(inplace: bool, tmp_path: Path) -> None:
    model = q.quantize_dynamic(Tied())
    q.save(model, tmp_path / "model.eq")
    restored = q.load(tmp_path / "model.eq", Tied(), inplace=inplace)
    assert type(restored.first) is q.nn.dynamic.Linear and restored.first is restored.again
    assert restored.a.weight is restored.b.weight
    assert torch.equal(restored.a.weight, model.a.weight)


def test_the_header_says_what_was_done(tmp_path: Path) -> None:
    q.save(static(), tmp_path / "model.eq")
    structure, tensors, metadata = file.read(tmp_path / "model.eq")
    conv = structure["modules"]["conv"]
    assert conv["class"] == "quantized:ConvReLU2d"
    assert conv["attributes"]["_float_type"] == "ConvReLU2d"
    assert conv["attributes"]["_qconfig_text"].startswith("activation=HistogramObserver(")
    assert conv["packed"]["weight"]["dtype"] == "torch.qint8"
    assert metadata["engine"] == torch.backends.quantized.engine
    assert metadata["library"] == file.LIBRARY and metadata["torch"] == str(torch.__version__)
    assert structure["identities"] == ["bn", "relu", "bn2"]
    assert {t.dtype for t in tensors.values()} <= {
        torch.int8, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64,
    }  # fmt: skip


def test_the_version_is_that_of_the_distribution() -> None:
    assert f'\nversion = "{file.LIBRARY}"\n' in (ROOT / "pyproject.toml").read_text()


# --- what is refused, and why ---


def test_a_prepared_model_is_not_saved(tmp_path: Path) -> None:
    model = Static().eval()
    model.qconfig = q.default_qconfig
    with pytest.raises(q.QuantizationError, match=r"takes a converted model.*'quant'.*call convert"):
        q.save(q.prepare(model), tmp_path / "model.eq")
    model.train().qconfig = q.default_qat_qconfig
    with pytest.raises(q.QuantizationError, match="call convert"):
        q.save(q.prepare_qat(model), tmp_path / "model.eq")
    assert list(tmp_path.iterdir()) == []


def test_a_float_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(q.QuantizationError, match="no quantized module"):
        q.save(Static(), tmp_path / "model.eq")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.eq"
    q.save(q.quantize_dynamic(nn.Linear(2, 2)), target)
    before = target.read_bytes()

    class Stateful(nn.Linear):
        def get_extra_state(self) -> Any:
            return object()

    with pytest.raises(q.QuantizationError, match="'1' \\(Stateful\\) keeps extra state"):
        q.save(q.quantize_dynamic(nn.Sequential(nn.Linear(2, 2), Stateful(2, 2))), target)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def _wider() -> nn.Module:
    model = Static()
    model.fc = nn.Linear(4, 6)
    model.head = nn.Linear(6, 2)
    return model


def _shallower() -> nn.Module:
    model = Static()
    del model.norms
    return model


def _other() -> nn.Module:
    model = Static()
    model.fc = nn.Bilinear(4, 4, 5)
    return model


@pytest.mark.parametrize(
    "build, said",
    [
        (_wider, ["'fc': out_features=6, but the file has out_features=5", "'head.weight': shape (2, 6)"]),
        (_shallower, ["'norms.0': no such module, but the file has a GroupNorm"]),
        (_other, ["'fc': Bilinear, but the file has a Linear"]),
        (Text, ["'conv': no such module", " more\n"]),
        (static, ["takes a float model, but ['quant', 'conv'"]),
    ],
    ids=["wider", "shallower", "other layer", "other model", "quantized already"],
)
def test_another_architecture_is_refused_with_the_differences(
    build: Callable[[], nn.Module], said: list[str], tmp_path: Path
) -> None:
    q.save(static(), tmp_path / "model.eq")
    model = build()
    before = list(model.named_modules())
    with pytest.raises(q.QuantizationError) as caught:
        q.load(tmp_path / "model.eq", model, inplace=True)
    assert [words for words in said if words not in str(caught.value)] == []
    assert list(model.named_modules()) == before


def test_another_engine_is_pointed_out(tmp_path: Path) -> None:
    others = [name for name in ENGINES if name not in ("x86", "fbgemm")]
    if not others or torch.backends.quantized.engine not in ("x86", "fbgemm"):
        pytest.skip("one engine only")
    q.save(static(), tmp_path / "model.eq")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = others[0]
    try:
        with pytest.warns(q.QuantizationWarning, match=f"engine '{before}'.*'{others[0]}'"):
            q.load(tmp_path / "model.eq", Static())
    finally:
        torch.backends.quantized.engine = before


def saved(tmp_path: Path) -> Path:
    q.save(q.quantize_dynamic(nn.Sequential(nn.Linear(4, 2), nn.Bilinear(2, 2, 2))), tmp_path / "model.eq")
    return tmp_path / "model.eq"


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2), nn.Bilinear(2, 2, 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:50],
        lambda b: b[:-1],
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b.replace(b'\\"in_features\\":4', b'\\"in_features\\":5'),
        lambda b: b"",
        lambda b: b"PK\x03\x04" + b,
    ],
    ids=["header cut", "end cut", "bit flipped", "structure edited", "empty", "other kind"],
)
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    with pytest.raises(q.QuantizationError, match="damaged"):
        q.load(path, small())


def test_a_missing_file_is_a_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.eq"):
        q.load(tmp_path / "nowhere.eq", small())


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors_torch.save_file({"0.weight": torch.zeros(2, 4)}, str(path))
    with pytest.raises(q.QuantizationError, match=r"no structure that quantization\.save wrote"):
        q.load(path, small())
    torch.save(small().state_dict(), path)
    with pytest.raises(q.QuantizationError, match=r"For a file of torch\.save use torch\.load"):
        q.load(path, small())


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(file, "VERSION", 2)
        path = saved(tmp_path)
    with pytest.raises(q.QuantizationError, match=r"format version 2.*update the library"):
        q.load(path, small())


def test_without_safetensors_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_safetensors", None)
    for call in (lambda: q.save(q.quantize_dynamic(small()), tmp_path / "m"), lambda: q.load("m", small())):
        with pytest.raises(ImportError, match="pip install"):
            call()


def forged(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the structure of a file, checksum and all, as an attacker could."""
    structure, tensors, _ = file.read(path)
    change(structure)
    file.write(path, structure, tensors)


def _record(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(structure: dict[str, Any]) -> None:
        structure["modules"]["0"][name] = value

    return change


def _attribute(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(structure: dict[str, Any]) -> None:
        structure["modules"]["0"]["attributes"][name] = value

    return change


FORGERIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "a class of another package": _record("class", "os:system"),
    "a dotted class": _record("class", "torch.nn:Linear"),
    "a function of a table": _record("class", "nn:factory_kwargs"),
    "a name with a path": _record("class", "nn:modules.module.Module"),
    "a class that is no text": _record("class", {"tensor": "x"}),
    "a dunder attribute": _attribute("__class__", "Evil"),
    "a hook": _attribute("_forward_hooks", {"dict": [["0", "evil"]]}),
    "an unknown form": _attribute("in_features", {"call": "os.system"}),
    "an unknown dtype": _attribute("in_features", {"dtype": "torch.evil"}),
    "a missing tensor": _attribute("in_features", {"tensor": "no such"}),
    "a form that is empty": _attribute("in_features", {}),
    "an unknown packing": lambda s: s["modules"]["0"]["children"]["_packed_params"].update(packing="evil"),
    "a packing of another kind": lambda s: s["modules"]["0"]["children"]["_packed_params"].update(
        packing="cell"
    ),
    "no children": _record("children", None),
    "an unpackable child": lambda s: s["modules"]["0"]["children"]["_packed_params"].pop("packed"),
    "a weight that is none": lambda s: s["modules"]["0"]["children"]["_packed_params"]["packed"].update(
        weight=1
    ),
    "modules that are a list": lambda s: s.update(modules=[]),
    "ties that are numbers": lambda s: s.update(tied={"a": 1}),
    "the same as nothing": lambda s: s.update(same={"1": "nowhere"}),
    "a float tensor that is not there": lambda s: s.update(tied={"1.weight": "gone"}, float=["1.bias"]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_structure_is_refused(forgery: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    forged(path, FORGERIES[forgery])
    model = small()
    with pytest.raises(q.QuantizationError):
        q.load(path, model, inplace=True)
    assert type(model[0]) is nn.Linear


def test_a_structure_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    _, tensors, _ = file.read(path)
    deep = "[" * 100_000 + "]" * 100_000
    metadata = {
        "format": file.FORMAT,
        "format_version": str(file.VERSION),
        "structure": deep,
        "checksum": str(file._checksum(deep, tensors)),
    }
    safetensors_torch.save_file(tensors, str(path), metadata)
    with pytest.raises(q.QuantizationError, match="cannot be read"):
        q.load(path, small())


def test_the_structure_is_json_of_plain_values(tmp_path: Path) -> None:
    with __import__("safetensors").safe_open(str(saved(tmp_path)), framework="pt") as opened:
        structure = json.loads(opened.metadata()["structure"])
    assert set(structure) == {"modules", "same", "identities", "training", "notes", "float", "tied"}


# --- state dicts in the wrong structure ---


def test_a_float_state_dict_in_a_quantized_model_names_the_modules_and_the_calls() -> None:
    with pytest.raises(RuntimeError) as caught:
        static().load_state_dict(Static().state_dict())
    for name, kind in (("conv2", "QuantizedConv2d"), ("fc", "QuantizedLinear")):
        assert f"'{name}' is a {kind} here, but the checkpoint is of a model in which it is float" in str(
            caught.value
        )
    with pytest.raises(RuntimeError, match=r"'lstm' is a DynamicQuantizedLSTM here.*it is float"):
        every_dynamic(q.default_dynamic_qconfig).load_state_dict(Text().state_dict())


def test_a_prepared_state_dict_in_a_converted_model_says_to_convert() -> None:
    model = Static().eval()
    model.qconfig = q.default_qconfig
    prepared = q.prepare(model)
    prepared(IMAGES)
    with pytest.raises(
        RuntimeError, match=r"'fc' is a QuantizedLinear here.*is prepared.*call convert after"
    ):
        q.convert(prepared).load_state_dict(prepared.state_dict())


def test_a_converted_state_dict_in_a_float_model_says_to_prepare_and_convert() -> None:
    with pytest.raises(RuntimeError, match=r"'quant' is a QuantStub here.*is float: call prepare\(model\)"):
        Static().load_state_dict(static().state_dict())
