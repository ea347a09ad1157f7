"""Programs and files of torch.ao where torch.ao is gone: purged from `sys.modules`, its import blocked."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

GONE = """
import sys, warnings
import torch
PREFIXES = ("torch.ao", "torch.quantization", "torch.nn.quantized", "torch.nn.intrinsic", "torch.nn.qat",
            "torch.nn.quantizable")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(PREFIXES):
            raise ImportError(f"blocked: {name}")
def remove():
    for name in [n for n in sys.modules if n.startswith(PREFIXES)]:
        del sys.modules[name]
    for owner, name in ((torch, "ao"), (torch, "quantization"), (torch.nn, "quantized"), (torch.nn, "qat"),
                        (torch.nn, "intrinsic"), (torch.nn, "quantizable")):
        if hasattr(owner, name):
            delattr(owner, name)
    sys.meta_path.insert(0, Block())
remove()
"""
STATIC = """
import quantization.compat
quantization.compat.alias_torch_ao()
import torch.ao.quantization as tq
from torch import nn
model = nn.Sequential(tq.QuantStub(), nn.Conv2d(2, 3, 3), nn.ReLU(), tq.DeQuantStub()).eval()
model = tq.fuse_modules(model, ["1", "2"])
model.qconfig = tq.get_default_qconfig("x86")
prepared = tq.prepare(model)
x = torch.randn(2, 2, 6, 6)
prepared(x)
converted = tq.convert(prepared)
"""


def run(program: str, *arguments: str, cwd: Path | None = None) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_alias_resolves() -> None:
    out = run(
        GONE
        + """
import quantization.compat
from quantization.compat.names import SOURCES
quantization.compat.alias_torch_ao()
import importlib
for name in SOURCES:
    importlib.import_module(name)
import torch.quantization, torch.nn.quantized, torch.nn.intrinsic.qat
from torch.ao.quantization import *
print(prepare.__module__, torch.nn.quantized.Linear.__module__)
"""
    )
    assert out.split() == ["quantization.workflows.ptq", "quantization.nn.quantized"]


def test_scripting_works() -> None:
    out = run(
        GONE
        + STATIC
        + """
warnings.filterwarnings("ignore", r".*torch\\.jit")
scripted = torch.jit.script(converted)
print(torch.equal(scripted(x), converted(x)))
wrapped = torch.jit.script(tq.QuantWrapper(nn.ReLU()))
print(wrapped(torch.tensor([-1.0])).item())
"""
    )
    assert out.split() == ["True", "0.0"]


def test_compiling_works() -> None:
    out = run(
        GONE
        + STATIC
        + """
warnings.simplefilter("ignore")
compiled = torch.compile(converted, backend="eager")
print(torch.equal(compiled(x), converted(x)))
"""
    )
    assert out.split() == ["True"]


WHOLE = """
import warnings
warnings.simplefilter("ignore")
import sys, torch
import torch.ao.quantization as tq
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant = tq.QuantStub()
        self.conv = nn.Conv2d(2, 3, 3)
        self.relu = nn.ReLU()
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.dequant = tq.DeQuantStub()
        self.embed = nn.Embedding(6, 4)
        self.lstm = nn.LSTM(4, 4)
        self.fc = nn.Linear(4, 2)
    def forward(self, x, i):
        x = self.relu(self.conv(self.quant(x)))
        return self.dequant(self.add.add(x, x)), self.fc(self.lstm(self.embed(i))[0])
torch.manual_seed(0)
model = tq.fuse_modules(Net().eval(), ["conv", "relu"])
x, i = torch.randn(2, 2, 6, 6), torch.tensor([[1, 2], [3, 4]])
for part in (model.quant, model.conv, model.add, model.dequant):
    part.qconfig = tq.default_qconfig
model = tq.prepare(model)
model(x, i)
model = tq.convert(model)
q8 = tq.float_qparams_weight_only_qconfig
model = tq.quantize_dynamic(model, {"embed": q8, "lstm": tq.default_dynamic_qconfig,
                                    "fc": tq.default_dynamic_qconfig})
torch.save(model, sys.argv[1])
torch.save((x, i, *model(x, i)), sys.argv[2])
"""
READING = """
import quantization.compat
from torch import nn
class Net(nn.Module):
    def forward(self, x, i):
        x = self.relu(self.conv(self.quant(x)))
        return self.dequant(self.add.add(x, x)), self.fc(self.lstm(self.embed(i))[0])
model = quantization.compat.load(sys.argv[1], classes=[Net])
x, i, *expected = torch.load(sys.argv[2])
quantized, recurrent = [(ours - theirs).abs().max().item() for ours, theirs in zip(model(x, i), expected)]
print(quantized == 0, recurrent < 0.02)
print(sorted({type(m).__module__.partition(".")[0] for m in model.children()}))
"""


def test_a_whole_model_pickled_by_torch_ao_loads_and_computes_the_same(tmp_path: Path) -> None:
    """To the bit where both run one operator; the compiled LSTM may take a neighbouring code."""
    pytest.importorskip("torch.ao.quantization")
    files = [str(tmp_path / "model.pt"), str(tmp_path / "data.pt")]
    run(WHOLE, *files)
    out = run(GONE + READING, *files)
    assert out.split("\n")[:2] == ["True True", "['quantization', 'torch']"]


SCRIPT = """
import sys
import torch
from torch.ao.quantization import quantize_dynamic
model = quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(4, 2)), {torch.nn.Linear})
print(__name__, sys.argv[1:], type(model[0]).__module__)
"""


@pytest.mark.parametrize("form", ["script", "module"])
def test_an_unmodified_program_runs(form: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SCRIPT)
    program = ["program.py"] if form == "script" else ["-m", "program"]
    command = [sys.executable, "-W", "error", "-m", "quantization.compat", *program, "--lr", "1"]
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": root, "PATH": ""},
    )
    assert done.stdout == "__main__ ['--lr', '1'] quantization.nn.dynamic\n", done.stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["nowhere.py"]])
def test_usage_is_shown_where_there_is_no_program(arguments: list[str]) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-m", "quantization.compat", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=root)
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python -m quantization.compat")


def test_the_default_compiler_works() -> None:
    """It imports torch.ao for operators, which we register in its place."""
    out = run(
        GONE
        + """
import quantization.compat
from torch import nn
quantization.compat.alias_torch_ao()
import torch.ao.quantization as tq
warnings.simplefilter("ignore")
model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
print(torch.allclose(torch.compile(model)(x), model(x), atol=1e-5))
quantized = tq.quantize_dynamic(model)
print(torch.equal(torch.compile(quantized)(x), quantized(x)))
"""
    )
    assert out.split() == ["True", "True"]
